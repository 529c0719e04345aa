"""HC-Lagrangian: PPO-Lagrangian held to the limit with confidence, by an upper bound of the cost.

Source: Chittepu et al., "Reinforcement Learning from Human Feedback with High-Confidence Safety Constraints", arXiv
2506.08266: optimise under a pessimistic constraint, then test the policy on responses that training has not seen.
Here the multiplier is driven by the one-sided upper confidence bound of the cost, Student's mean + t·s/√n over the
window, so that training ends below the limit by what the sample cannot tell.

What differs: the test is made in every iteration, on its fresh episodes before the policy learns from them (`safe`);
the KL to the reference is in the reward alone.

Where it stays short of the optimum (96 to 98 % in `textsafe study exact`) it is by the width of the bound: about
1.65·s/√n below the limit. A longer window narrows it and lets the multiplier lag.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, ConstraintConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig, MultiplierConfig):
    """Settings of HC-Lagrangian; the bound is over `cost_window` responses."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the upper bound on the cost")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "hc_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning.

        Metrics besides PPO-Lagrangian's: `upper_bound`, the largest excess of an upper bound over its limit; `safe`, 1
        if this iteration's episodes alone show with confidence that all limits are kept.
        """
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import clipped_losses, estimate, mix_advantages, shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        measured = self.constraints.measure(rollout)
        bounds = {
            name: upper_bound(values, config.confidence) - self.constraints.limits[name]
            for name, values in measured.values.items()
        }
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(bounds))
        values = [episode_sums(signal, rollout.mask).double().cpu().numpy() for signal in measured.signals]
        fresh = [upper_bound(own, config.confidence) for own in values]
        safe = all(bound <= limit for bound, limit in zip(fresh, self.constraints.limits.values(), strict=True))

        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        tests = {"upper_bound": max(bounds.values()), "safe": float(safe)}
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics, **tests}


def upper_bound(values: np.ndarray, confidence: float) -> float:
    """One-sided upper confidence bound of the mean of `values` (n,), by Student's t; infinite for n = 1."""
    if len(values) < 2:
        return math.inf
    from scipy.stats import t as student

    quantile = float(student.ppf(confidence, len(values) - 1))
    return float(values.mean() + quantile * values.std(ddof=1) / math.sqrt(len(values)))
