"""RLOO-Lagrangian: RLOO on reward - λ·cost, without critics.

Source: RLOO (Ahmadian et al., arXiv 2402.14740) on both signals, and a multiplier. Advantages are mixed,
(A_R - λ·A_C) / (1 + λ), though for RLOO, whose advantages are linear in the rewards, mixing rewards would do the same.
The KL to the reference is in the reward alone: the problem is max E[R] - β·KL subject to E[C] <= limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, ClipConfig, MultiplierConfig):
    """Settings of RLOO-Lagrangian; without critics there are none of theirs."""

    group_size: int = Field(4, ge=2, description="episodes that begin in the same state, as answers to one prompt")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ()

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "rloo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        from algos.core.constraints import weighted_cost
        from algos.core.groups import leave_one_out, response_loss
        from algos.core.objectives import mix_advantages, shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        returns = [episode_sums(signal, rollout.mask) for signal in (rewards, costs)]
        reward, cost = (leave_one_out(own, rollout.groups) for own in returns)
        advantages = mix_advantages(reward, cost, multiplier)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return response_loss(new, batch, advantages[index], config)

        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **self.multipliers.metrics, **measured.metrics}
