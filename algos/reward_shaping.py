"""Reward shaping: PPO on reward - ν·cost with a fixed weight ν, the baseline of the adaptive multiplier.

Source: the ablation of Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: one critic, and the
KL to the reference in the shaped reward alone.
"""

import torch
from pydantic import Field
from torch import Tensor

from algos.core.objectives import (
    ClipConfig,
    CriticConfig,
    clipped_surrogate_loss,
    clipped_value_loss,
    gae,
    shape_with_kl,
)
from algos.core.optim import Optimizer, Setup, TrainingConfig
from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig):
    """Settings of reward shaping; the defaults are the official script's."""

    cost_weight: float = Field(1.0, ge=0, description="ν, the price of a unit of cost in units of reward")


class Algorithm:
    """One policy and its optimiser; the cost critic and the limit are not used. See `algos.core.optim.Setup`."""

    def __init__(self, setup: Setup[Config]) -> None:
        self.policy, self.config = setup.policy, setup.config
        self.optimizer = Optimizer(setup)
        self.parts = {"optimizer": self.optimizer}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches."""
        config, mask = self.config, rollout.mask
        old, reference = rollout.log_probs, rollout.reference_log_probs
        priced = rollout.rewards - config.cost_weight * rollout.costs
        rewards = shape_with_kl(priced, old, reference, -config.kl_coefficient, config.clip_range_score)
        advantages, returns = gae(
            rewards, rollout.reward_values, mask, config.gamma, config.gae_lambda, rollout.final_reward_values
        )

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            actor = clipped_surrogate_loss(
                new.log_probs, batch.log_probs, advantages[index], batch.mask, config.clip_range_ratio
            )
            critic = clipped_value_loss(
                new.reward_values, batch.reward_values, returns[index], batch.mask, config.clip_range_value
            )
            return actor + config.value_coefficient * critic, {"actor_loss": actor, "reward_critic_loss": critic}

        return self.optimizer.descend(rollout, losses, generator)
