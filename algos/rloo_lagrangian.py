"""RLOO-Lagrangian: RLOO on reward - λ·cost, without critics.

Source: RLOO (Ahmadian et al., arXiv 2402.14740) on both signals, and a multiplier. Advantages are mixed,
(A_R - λ·A_C) / (1 + λ), though for RLOO, whose advantages are linear in the rewards, mixing rewards would do the same.
The KL to the reference is in the reward alone: the problem is max E[R] - β·KL subject to E[C] <= limit.
"""

import torch
from pydantic import Field
from torch import Tensor

from algos.core.constraints import ConstraintConfig, Constraints, MultiplierConfig, Multipliers, price
from algos.core.objectives import ClipConfig, leave_one_out, mix_advantages, response_surrogate_loss, shaped_rewards
from algos.core.optim import Optimizer, Setup, TrainingConfig
from textsafe_gym.types import Evaluation, Rollout, episode_sums


class Config(TrainingConfig, ClipConfig, ConstraintConfig, MultiplierConfig):
    """Settings of RLOO-Lagrangian."""

    group_size: int = Field(4, ge=2, description="episodes that begin in the same state, as answers to one prompt")


class Algorithm:
    """One policy, its optimiser, the constraints and their multipliers; see `algos.core.optim.Setup`."""

    def __init__(self, setup: Setup[Config]) -> None:
        self.policy, self.config = setup.policy, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "rloo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        config = self.config
        signals = self.constraints.observe(rollout)
        costs, multiplier = price(signals, self.multipliers.update(self.constraints.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        returns = [episode_sums(signal, rollout.mask) for signal in (rewards, costs)]
        reward, cost = (leave_one_out(own, rollout.groups) for own in returns)
        advantages = mix_advantages(reward, cost, multiplier)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = response_surrogate_loss(
                new.log_probs, batch.log_probs, advantages[index], batch.mask, config.clip_range_ratio
            )
            return loss, {"actor_loss": loss}

        learned = self.optimizer.descend(rollout, losses, generator, only=("actor",))
        return {**learned, **self.multipliers.metrics, **self.constraints.metrics}
