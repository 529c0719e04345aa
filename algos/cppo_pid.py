"""CPPO-PID: PPO-Lagrangian whose multiplier a PID controller drives, against overshoot and oscillation.

Source: Stooke, Achiam & Abbeel, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods", arXiv
2007.03964, algorithms 1 and 2, with its rescaled objective (A_R - λ·A_C) / (1 + λ).

What differs: the KL to the reference is in the reward, so that the objective is E[R] - β·KL; the derivative acts on the
window's mean, which smooths as their delayed moving average does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, MultiplierConfig):
    """Settings of CPPO-PID; `multiplier_learning_rate` is the integral gain."""

    multiplier_update: Literal["pid"] = Field("pid", description="a PID controller, always")
    multiplier_kd: float = Field(0.1, ge=0, description="derivative gain")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "cppo_pid")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import clipped_losses, estimate, mix_advantages, shaped_rewards

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics}
