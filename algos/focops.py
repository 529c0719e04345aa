"""FOCOPS: the best policy near the old one, found in closed form and approached by first-order steps.

Source: Zhang, Vuong & Ross, "First Order Constrained Optimization in Policy Space", arXiv 2002.06506. The optimum of
the Lagrangian in a trust region is π* ∝ π_old·exp((A_R - ν·A_C) / λ_F); minimising KL(π‖π*) state by state gives, for
states where π has not left the region (eq. 12),

    loss = E[ (KL(π‖π_old) - ρ·(A_R - ν·A_C) / λ_F)·1[KL(π‖π_old) <= η] ]

with ρ = π(a|s) / π_old(a|s); ν follows the excess cost by projected ascent (eq. 14).

What differs: advantages are divided by 1 + ν, as in most of their later uses, so that λ_F need not follow ν; the KL to
the reference is in the reward; `entropy_coefficient`, off by default, adds the mean entropy of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ActorConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ActorConfig, MultiplierConfig):
    """Settings of FOCOPS; a state's KL takes the place of the clip."""

    temperature: float = Field(1.5, gt=0, description="λ_F: how much a nat away from the old policy weighs")
    state_kl: float = Field(0.02, gt=0, description="η: a state farther than this from the old policy learns no more")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "focops")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, ν, the window's, and the `step_kl`."""
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import (
            critic_losses,
            estimate,
            masked_mean,
            mix_advantages,
            shaped_rewards,
            with_entropy,
        )
        from algos.core.trust_region import by_episode, divergences

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)
        old = by_episode(self.agent.actor, rollout, config.at_once)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            away = divergences(self.agent.actor, batch, [old[i] for i in index.tolist()])
            ratios = (new.log_probs - batch.log_probs).masked_fill(~batch.mask, 0.0).exp()
            near = away.detach() <= config.state_kl
            actor = masked_mean((away - ratios * advantages[index] / config.temperature) * near, batch.mask)
            critics, parts = critic_losses(new, batch, index, estimates, config)
            kept = with_entropy(actor, new, batch.mask, config)
            return kept + critics, {"actor_loss": actor, "step_kl": masked_mean(away, batch.mask), **parts}

        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics}
