"""Reward shaping: PPO on reward - ν·cost with a fixed weight ν, the baseline of the adaptive multiplier.

Source: the ablation of Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: one critic, and the
KL to the reference in the shaped reward alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig):
    """Settings of reward shaping; the defaults are the official script's."""

    cost_weight: float = Field(1.0, ge=0, description="ν, what a unit of cost weighs in units of reward")

    @property
    def problem(self) -> str:
        """Without a limit; see `StepConfig.problem`."""
        return "weighted"


class Algorithm:
    """An agent without a cost critic, and its optimiser; the limit is not used. See `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward",)

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "reward_shaping")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches."""
        from algos.core.objectives import actor_loss, critic_loss, estimate_one, shape_with_kl

        config = self.config
        weighted = rollout.rewards - config.cost_weight * rollout.costs
        rewards = shape_with_kl(weighted, rollout.log_ratios, -config.kl_coefficient, config.clip_range_score)
        advantages, returns, metrics = estimate_one(rollout, rewards, "reward", config)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            actor, reports = actor_loss(new, batch, advantages[index], config)
            critic = critic_loss(new.reward_values, batch.reward_values, returns[index], batch.mask, config)
            return actor + config.value_coefficient * critic, {**reports, "reward_critic_loss": critic}

        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **metrics}
