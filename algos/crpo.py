"""CRPO: a step for the reward while the limit is kept, a step against the cost while it is not.

Source: Xu, Liang & Lan, "CRPO: A New Approach for Safe Reinforcement Learning with Convergence Guarantee", arXiv
2011.05869, algorithm 1, with PPO's clipped step for both kinds. There is no multiplier: the share f of cost steps
settles where f / (1 - f) is what a multiplier would be, and the policy oscillates about the limit as far as a
step takes it.

What differs: the KL to the reference is in the reward steps alone, so that the stationary point is that of E[R] - β·KL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, ConstraintConfig, CriticConfig, TrainingConfig

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig):
    """Settings of CRPO; it has no multiplier, only a tolerance that decides which signal a step follows."""

    tolerance: float = Field(0.0, ge=0, description="how far above the limit the cost may be before a cost step")


class Algorithm:
    """An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "crpo", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, the window's, and `cost_step`, 1 or 0."""
        from algos.core.objectives import clipped_losses, estimate, shaped_rewards

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        violated = excess > config.tolerance
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = -estimates.cost if violated else estimates.reward
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **measured.metrics, "cost_step": float(violated)}
