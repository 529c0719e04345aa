"""Means with intervals over independent runs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from textsafe_gym.files import Row


@dataclass(frozen=True)
class Interval:
    """A mean over runs with its interval; the bounds are None where there is one run only.

    Attributes:
        mean: of the runs.
        low, high: bounds of the interval.
        runs: how many there were.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int

    def as_dict(self) -> Row:
        """Its fields by name, for JSON."""
        return asdict(self)


def t_interval(
    values: Sequence[float], confidence: float = 0.95, within: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """The mean and Student's t interval with n - 1 degrees of freedom.

    Args:
        values: one number a run, at least one.
        confidence: in (0, 1).
        within: what the values cannot leave and Student's interval knows nothing of; it is cut off there.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, None, None, len(array))
    half = float(stats.sem(array) * stats.t.ppf((1 + confidence) / 2, len(array) - 1))
    return Interval(mean, max(within[0], mean - half), min(within[1], mean + half), len(array))


def share_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of shares in [0, 1] and its interval.

    Clopper and Pearson's where each is 0 or 1, whose bounds are right for few and for none of them; Student's, cut off
    at 0 and 1, where they are shares of several.

    Args:
        values: one number a repetition, at least one.
        confidence: in (0, 1).
    """
    if len(values) < 2 or not set(values) <= {0.0, 1.0}:
        return t_interval(values, confidence, (0.0, 1.0))
    found = stats.binomtest(int(sum(values)), len(values)).proportion_ci(confidence, "exact")
    return Interval(sum(values) / len(values), float(found.low), float(found.high), len(values))
