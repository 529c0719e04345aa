"""Reward shaping: PPO on reward - ν·cost with a fixed weight ν, the baseline of the adaptive multiplier.

Source: the ablation of Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: one critic, and the
KL to the reference in the shaped reward alone.
"""

from typing import Any

import torch
from pydantic import Field

from algos.core.objectives import clipped_surrogate_loss, clipped_value_loss, gae, masked_mean, shape_with_kl
from algos.core.optim import Optimizer, TrainingConfig, minibatches
from textsafe_gym.types import Demonstrations, Policy, Rollout


class Config(TrainingConfig):
    """Settings of reward shaping; the defaults are the official script's."""

    cost_weight: float = Field(1.0, ge=0, description="ν, the price of a unit of cost in units of reward")
    kl_coefficient: float = Field(0.02, ge=0, description="weight of each step's KL, taken off the shaped reward")
    clip_range_score: float = Field(50.0, gt=0, description="bound on each step's shaped reward")
    gamma: float = Field(1.0, ge=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    clip_range_ratio: float = Field(0.2, gt=0, description="PPO's clip on the ratio of new to old probability")
    clip_range_value: float = Field(5.0, gt=0, description="how far a value may move from the old one in an update")
    value_coefficient: float = Field(1.0, ge=0, description="weight of the critic's loss beside the actor's")
    ptx_coefficient: float = Field(16.0, ge=0, description="weight of the cross-entropy on demonstrations, where given")


class Algorithm:
    """One policy and its optimiser; the policy's cost critic stays as it is.

    Args:
        policy: actor and critics; the reward critic learns the return of reward - ν·cost.
        config: settings.
        cost_limit: not used: ν is fixed.
        iterations: how many updates are planned; the learning rate is scheduled over them.
        demonstrations: for the PTX term; without them there is none.
    """

    def __init__(
        self,
        policy: Policy,
        config: Config,
        cost_limit: float | None,
        iterations: int,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.demonstrations = demonstrations if config.ptx_coefficient > 0 else None
        self.optimizer = Optimizer(policy, config, iterations)
        self.iteration = 0

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning.

        Args:
            rollout: whole episodes of the present policy.
            generator: all randomness of the update comes from it.

        Returns:
            Metrics: means over the iteration's minibatches.

        Raises:
            RunError: a loss or gradient is not finite.
        """
        config, policy = self.config, self.policy

        # What to learn from.
        old, reference, mask = rollout.log_probs, rollout.reference_log_probs, rollout.mask
        priced = rollout.rewards - config.cost_weight * rollout.costs
        rewards = shape_with_kl(priced, old, reference, -config.kl_coefficient, config.clip_range_score)
        advantages, returns = gae(
            rewards, rollout.reward_values, mask, config.gamma, config.gae_lambda, rollout.final_reward_values
        )

        # Minibatches: one step on actor and critic, then one on demonstrations.
        learning_rate = self.optimizer.begin(self.iteration)
        rows: list[dict[str, float]] = []
        for index in minibatches(len(rollout), config, generator):
            batch = rollout[index]
            new = policy.evaluate(batch.observations, batch.actions, batch.mask)
            actor_loss = clipped_surrogate_loss(
                new.log_probs, batch.log_probs, advantages[index], batch.mask, config.clip_range_ratio
            )
            reward_critic_loss = clipped_value_loss(
                new.reward_values, batch.reward_values, returns[index], batch.mask, config.clip_range_value
            )
            self.optimizer.step(actor_loss + config.value_coefficient * reward_critic_loss)
            row = {
                "actor_loss": actor_loss.item(),
                "reward_critic_loss": reward_critic_loss.item(),
                "entropy": masked_mean(new.entropy.detach(), batch.mask).item(),
            }
            if self.demonstrations is not None:
                shown = self.demonstrations[torch.randint(len(self.demonstrations), (len(index),), generator=generator)]
                spoken = policy.evaluate(shown.observations, shown.actions, shown.mask)
                ptx_loss = -masked_mean(spoken.log_probs, shown.mask)
                self.optimizer.step(config.ptx_coefficient * ptx_loss)
                row["ptx_loss"] = ptx_loss.item()
            rows.append(row)
        self.iteration += 1
        return {
            **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]},
            "learning_rate": learning_rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy that the next update depends on: tensors and JSON values."""
        return {**self.optimizer.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state)
        self.iteration = state["iteration"]
