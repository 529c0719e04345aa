"""CUP: first a step for the reward, then a projection back into the constraint.

Source: Yang et al., "Constrained Update Projection Approach to Safe Policy Optimization", arXiv 2209.07089, algorithm
1. The first half of an iteration is PPO on the reward's advantages, from π_old to π_half. The second minimises

    E[ KL(π‖π_half) + ν·ρ·A_C ],   ρ = π(a|s) / π_old(a|s)

on the same episodes (eq. 17), with ν by projected ascent on the excess cost.

What differs: their factor (1 - γ·λ_GAE) / (1 - γ) on A_C, which is infinite for undiscounted episodes, is left to ν;
the KL to the reference is in the reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, MultiplierConfig):
    """Settings of CUP; an iteration makes `epochs` passes in each of its halves."""

    projection_weight: float = Field(1.0, gt=0, description="of the KL to the half-way policy")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup, parts=2)
        self.constraints = Constraints(self.config, setup.cost_limit, "cup")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over the first half's minibatches, `projection_loss` over the
        second's, ν and the window's."""
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import clipped_losses, estimate, masked_mean, shaped_rewards
        from algos.core.trust_region import by_episode, divergences

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        first = clipped_losses(estimates.reward, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, first, generator, target_kl=config.target_kl)
        half = by_episode(self.agent.actor, rollout, config.at_once)

        def second(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            away = divergences(self.agent.actor, batch, [half[i] for i in index.tolist()])
            ratios = (new.log_probs - batch.log_probs).masked_fill(~batch.mask, 0.0).exp()
            harm = multiplier * ratios * estimates.cost[index]
            loss = masked_mean(config.projection_weight * away + harm, batch.mask)
            return loss, {"projection_loss": loss}

        projected = self.optimizer.train(rollout, second, generator, only=("actor",))
        learned["projection_loss"] = projected["projection_loss"]
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics}
