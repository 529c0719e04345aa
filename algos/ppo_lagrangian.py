"""PPO-Lagrangian: max reward subject to mean cost <= limit, as the Safe RLHF paper ships it.

Source: Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: two critics, the KL to the reference
in reward *and* cost, advantages mixed by a multiplier λ that the window of recent episode costs drives, PTX steps on
demonstrations. λ moves once an iteration, before the actor does.
"""

import logging
from collections import deque
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from algos.core.multiplier import Multiplier
from algos.core.objectives import clipped_surrogate_loss, clipped_value_loss, gae, masked_mean, shape_with_kl
from algos.core.optim import Optimizer, TrainingConfig, minibatches
from textsafe_gym.errors import ConfigError
from textsafe_gym.types import Demonstrations, Policy, Rollout


class Config(TrainingConfig):
    """Settings of PPO-Lagrangian; the defaults are the official script's."""

    kl_coefficient: float = Field(0.01, ge=0, description="weight of the KL, taken off the reward and put on the cost")
    clip_range_score: float = Field(50.0, gt=0, description="bound on each step's shaped reward and cost")
    gamma: float = Field(1.0, ge=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    clip_range_ratio: float = Field(0.2, gt=0, description="PPO's clip on the ratio of new to old probability")
    clip_range_value: float = Field(5.0, gt=0, description="how far a value may move from the old one in an update")
    value_coefficient: float = Field(1.0, ge=0, description="weight of the critics' losses beside the actor's")
    ptx_coefficient: float = Field(16.0, ge=0, description="weight of the cross-entropy on demonstrations, where given")
    multiplier_update: Literal["log", "projected"] = Field("log", description="log: the paper's; projected: λ may be 0")
    multiplier_init: float = Field(1.0, ge=0, description="λ before the first update")
    multiplier_learning_rate: float = Field(0.1, ge=0, description="step of the multiplier's update")
    multiplier_max: float | None = Field(5.0, gt=0, description="largest λ; none: unbounded")
    cost_window: int = Field(128, gt=0, description="episodes over whose mean cost the constraint is judged")

    @model_validator(mode="after")
    def _check_multiplier(self) -> "Config":
        if self.multiplier_update == "log" and self.multiplier_init == 0:
            raise ValueError(
                "multiplier_init = 0 would stay 0 under multiplier_update 'log', which moves log λ; "
                "use a small positive value, or multiplier_update 'projected'"
            )
        if self.multiplier_max is not None and self.multiplier_init > self.multiplier_max:
            raise ValueError(f"multiplier_init = {self.multiplier_init} exceeds multiplier_max = {self.multiplier_max}")
        return self


class Algorithm:
    """One policy, its optimiser, λ and the window of costs.

    Args:
        policy: actor and two critics.
        config: settings.
        cost_limit: the largest allowed mean episode cost.
        iterations: how many updates are planned; the learning rate is scheduled over them.
        demonstrations: for the PTX term; without them there is none.

    Raises:
        ConfigError: there is no cost limit.
    """

    def __init__(
        self,
        policy: Policy,
        config: Config,
        cost_limit: float | None,
        iterations: int,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        if cost_limit is None:
            raise ConfigError("ppo_lagrangian needs a cost limit and the environment has none; set cost_limit")
        self.policy = policy
        self.config = config
        self.cost_limit = cost_limit
        self.demonstrations = demonstrations if config.ptx_coefficient > 0 else None
        self.optimizer = Optimizer(policy, config, iterations)
        self.multiplier = Multiplier(
            config.multiplier_init, config.multiplier_learning_rate, config.multiplier_max, config.multiplier_update
        )
        self.costs: deque[float] = deque(maxlen=config.cost_window)
        self.iteration = 0
        self.slack = False

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning.

        Args:
            rollout: whole episodes of the present policy.
            generator: all randomness of the update comes from it.

        Returns:
            Metrics: means over the iteration's minibatches, λ, and the mean cost of the window that drove it.

        Raises:
            RunError: a loss or gradient is not finite, or λ diverged.
        """
        config, policy = self.config, self.policy

        # The multiplier, on the costs that the environment paid: the KL is no part of the constraint.
        self.costs.extend(rollout.episode_costs.tolist())
        window_cost = sum(self.costs) / len(self.costs)
        multiplier = self.multiplier.update(window_cost - self.cost_limit)
        if self.iteration == 0 and window_cost < self.cost_limit:
            self.slack = True
            logging.getLogger("algos").warning(
                "the cost limit %g is slack: the policy starts at a mean cost of %.3g, so the multiplier falls and "
                "training may raise the cost up to the limit; set a lower cost_limit to prevent that",
                self.cost_limit,
                window_cost,
            )

        # What to learn from.
        old, reference, mask = rollout.log_probs, rollout.reference_log_probs, rollout.mask
        rewards = shape_with_kl(rollout.rewards, old, reference, -config.kl_coefficient, config.clip_range_score)
        costs = shape_with_kl(rollout.costs, old, reference, config.kl_coefficient, config.clip_range_score)
        discounts = config.gamma, config.gae_lambda
        reward_advantages, reward_returns = gae(
            rewards, rollout.reward_values, mask, *discounts, rollout.final_reward_values
        )
        cost_advantages, cost_returns = gae(costs, rollout.cost_values, mask, *discounts, rollout.final_cost_values)
        advantages = mix_advantages(reward_advantages, cost_advantages, multiplier)

        # Minibatches: one step on actor and critics, then one on demonstrations.
        learning_rate = self.optimizer.begin(self.iteration)
        rows: list[dict[str, float]] = []
        for index in minibatches(len(rollout), config, generator):
            batch = rollout[index]
            new = policy.evaluate(batch.observations, batch.actions, batch.mask)
            actor_loss = clipped_surrogate_loss(
                new.log_probs, batch.log_probs, advantages[index], batch.mask, config.clip_range_ratio
            )
            reward_critic_loss = clipped_value_loss(
                new.reward_values, batch.reward_values, reward_returns[index], batch.mask, config.clip_range_value
            )
            cost_critic_loss = clipped_value_loss(
                new.cost_values, batch.cost_values, cost_returns[index], batch.mask, config.clip_range_value
            )
            self.optimizer.step(actor_loss + config.value_coefficient * (reward_critic_loss + cost_critic_loss))
            row = {
                "actor_loss": actor_loss.item(),
                "reward_critic_loss": reward_critic_loss.item(),
                "cost_critic_loss": cost_critic_loss.item(),
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
            "multiplier": multiplier,
            "window_cost": window_cost,
            "limit_slack": float(self.slack),
            "learning_rate": learning_rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy that the next update depends on: tensors and JSON values."""
        return {
            **self.optimizer.state_dict(),
            "multiplier": self.multiplier.state,
            "costs": list(self.costs),
            "iteration": self.iteration,
            "slack": self.slack,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state)
        self.multiplier.state = state["multiplier"]
        self.costs = deque(state["costs"], maxlen=self.config.cost_window)
        self.iteration = state["iteration"]
        self.slack = state["slack"]


def mix_advantages(reward: torch.Tensor, cost: torch.Tensor, multiplier: float) -> torch.Tensor:
    """The Lagrangian's advantage (A_R - λ·A_C) / (1 + λ), whose scale does not grow with λ; shapes (B, T)."""
    return (reward - multiplier * cost) / (1.0 + multiplier)
