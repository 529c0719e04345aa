"""HC-Lagrangian: PPO-Lagrangian held to the limit with confidence, by an upper bound of the cost.

Source: Chittepu et al., "Reinforcement Learning from Human Feedback with High-Confidence Safety Constraints", arXiv
2506.08266: optimise under a pessimistic constraint, then test the policy on responses that training has not seen.
Here the multiplier is driven by the one-sided upper confidence bound of the constraint over the window (`upper_bound`),
so that training ends below the limit by what the sample cannot tell.

What differs: the test is made in every iteration, each by itself at the full confidence, on its fresh episodes before
the policy learns from them (`safe`), not once at the end; the policy follows the gradient of the mean alone, not that
of its deviation, through which the bound could fall too; the window's episodes are of the last policies, so that the
bound that drives λ is one for their mixture; the KL to the reference is in the reward alone.

A CVaR is refused: it has no such bound where costs have none. Student's, at 95 % over 128 normal costs, would hold in
88 % of the cases at level 0.9 and in 61 % at 0.99.

Where it stays short of the optimum (96 to 98 % in `textsafe study exact`) it is by the width of the bound: about
1.65·s/√n below the limit. A longer window narrows it and lets the multiplier lag.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, MultiplierConfig):
    """Settings of HC-Lagrangian; the bound is over `cost_window` episodes."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the upper bound on the cost")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer
        from textsafe_gym.errors import ConfigError

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        if self.config.constraint == "cvar":
            raise ConfigError(
                "hc_lagrangian: constraint = 'cvar' has no confidence bound; set constraint to mean or probability, or "
                "take another Lagrangian method"
            )
        if min(self.config.cost_window, self.config.episodes_per_iteration) < 2 * self.config.group_size:
            raise ConfigError("hc_lagrangian: a bound takes two groups; raise cost_window or episodes_per_iteration")
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
        bounds = {name: self._bound(values) - self.constraints.limits[name] for name, values in measured.values.items()}
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(bounds))
        values = [episode_sums(signal, rollout.mask).double().cpu().numpy() for signal in measured.signals]
        fresh = [self._bound(own) for own in values]
        safe = all(bound <= limit for bound, limit in zip(fresh, self.constraints.limits.values(), strict=True))

        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        tests = {"upper_bound": max(bounds.values()), "safe": float(safe)}
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics, **tests}

    def _bound(self, values: np.ndarray) -> float:
        """Of episodes in the order in which they were played, in which those of a group are neighbours."""
        size = self.config.group_size
        if size > 1:
            values = values[len(values) % size :].reshape(-1, size)
        return upper_bound(values, self.config.confidence, self.config.constraint == "probability")


def upper_bound(values: np.ndarray, confidence: float, shares: bool = False) -> float:
    """One-sided upper confidence bound of the mean of `values`: (n,), or (n, k) where the k of a row depend on another.

    - Of means, by Student's t over the n, or over the means of the rows: as good as these are normal. Infinite for
      n = 1.
    - Of shares, single ones, Clopper & Pearson's (1934), which is exact: none of 128 gives 0.023 at 0.95.
    - Of shares, rows of them, Chernoff's: the m above the rows' mean x̄ with n·kl(x̄, m) = log 1/(1 - confidence), which
      holds for any independent rows in [0, 1] (Hoeffding 1963, eq. 2.1).

    Args:
        values: what to bound the mean of.
        confidence: below 1.
        shares: the values are 0 or 1.
    """
    n = len(values)
    if not shares:
        from scipy.stats import t as student

        means = values.reshape(n, -1).mean(-1)
        if n < 2:
            return math.inf
        return float(means.mean() + student.ppf(confidence, n - 1) * means.std(ddof=1) / math.sqrt(n))
    mean = float(values.mean())
    if mean == 1:
        return 1.0
    if values.ndim == 1:
        from scipy.stats import beta

        return float(beta.ppf(confidence, values.sum() + 1, n - values.sum()))
    from scipy.optimize import brentq
    from scipy.special import rel_entr

    def beyond(m: float) -> float:
        return float(n * (rel_entr(mean, m) + rel_entr(1 - mean, 1 - m)) + math.log(1 - confidence))

    return float(brentq(beyond, mean, 1 - 1e-12))
