"""P3O: the constraint as an exact penalty, in PPO's clipped form.

Source: Zhang et al., "Penalized Proximal Policy Optimization for Safe Reinforcement Learning", arXiv 2205.11814, eq.
13:

    min  -L_R + κ·(L_C + J_C - limit)⁺,   L_C = E[Σ_t max(ρ·A_C, clip(ρ, 1 ± ε)·A_C)]

For κ above the multiplier of the optimum the penalty is exact: the same optimum, with no multiplier to tune. In between
the gradient is either with the full penalty or without any, so that too large a κ makes the policy oscillate. On
minibatches, that is κ times the share of them that violates: the policy settles where that product is right, which is
below the limit for a large κ and above it for one that hardly exceeds the optimum's multiplier.

What differs: whether the limit is violated is a matter of whole episodes, L_C + J_C with L_C their sums; the penalty's
gradient weighs steps as L_R does, by the length of their episode, so that the two balance where the gradients of reward
and λ·cost do in the other methods; the KL to the reference is in the reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, ConstraintConfig, CriticConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig):
    """Settings of P3O; a fixed penalty takes the place of a multiplier."""

    penalty: float = Field(5.0, gt=0, description="κ: weight of a unit of cost above the limit")


class Algorithm:
    """An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "p3o", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, the window's, and the `penalty_loss`."""
        from algos.core.objectives import (
            actor_loss,
            clipped_ratio_term,
            critic_losses,
            estimate,
            masked_mean,
            shaped_rewards,
        )

        config, clip = self.config, self.config.clip_range_ratio
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        length = rollout.lengths.float().mean()

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            actor, reports = actor_loss(new, batch, estimates.reward[index], config)
            rises = clipped_ratio_term(new.log_probs, batch.log_probs, estimates.cost[index], batch.mask, clip)
            violated = (rises.sum(-1).mean() + excess > 0).to(rises)
            penalty = config.penalty * violated * (masked_mean(rises, batch.mask) + excess / length)
            critics, parts = critic_losses(new, batch, index, estimates, config)
            return actor + penalty + critics, {**reports, "penalty_loss": penalty, **parts}

        learned = self.optimizer.train(rollout, losses, generator, is_mean=False, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **measured.metrics}
