"""IPO: the constraint as a logarithmic barrier in the objective.

Source: Liu, Ding & Liu, "IPO: Interior-point Policy Optimization under Constraints", arXiv 1910.09615: maximise
E[R] + (1/t)·log(limit - E[C]), whose gradient weighs the cost by 1 / (t·(limit - E[C])). The optimum therefore keeps a
distance of 1 / (t·λ*) from the limit, and gives up reward for it: a larger t gives up less and oscillates more.

What differs: outside the feasible set, where the paper's barrier does not exist, that weight w is `penalty_max`;
advantages are (A_R - w·A_C) / (1 + w); the KL to the reference is in the reward.
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
    """Settings of IPO; the barrier takes the place of a multiplier."""

    barrier_t: float = Field(20.0, gt=0, description="t: sharpness of the barrier")
    penalty_max: float = Field(5.0, gt=0, description="largest weight of the cost, and its weight beyond the limit")


class Algorithm:
    """An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "ipo", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, the window's, and the cost's `penalty`."""
        from algos.core.objectives import clipped_losses, estimate, mix_advantages, shaped_rewards

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        penalty = config.penalty_max if excess >= 0 else min(-1 / (config.barrier_t * excess), config.penalty_max)
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, penalty)
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **measured.metrics, "penalty": penalty}
