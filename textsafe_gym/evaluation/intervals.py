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


def share_interval(values: Sequence[float], responses: int, confidence: float = 0.95) -> Interval:
    """The mean of shares in [0, 1] and its interval, whose bounds are right for few and for none of them as well.

    Clopper and Pearson's; where a share is of several responses, with as many as would have the same variance were they
    independent of each other (Korn & Graubard 1998).

    Args:
        values: each prompt's share, at least one.
        responses: that they are of, in all.
        confidence: in (0, 1).
    """
    shares, tail = np.asarray(values, dtype=np.float64), (1 - confidence) / 2
    mean, size = float(shares.mean()), float(len(shares))
    if size < 2:
        return Interval(mean, None, None, len(shares))
    if not set(shares.tolist()) <= {0.0, 1.0}:
        fewer = (stats.norm.ppf(1 - tail) / stats.t.ppf(1 - tail, size - 1)) ** 2  # as the variance is an estimate
        variance = float(shares.var(ddof=1)) / size
        size = min(mean * (1 - mean) / variance, responses) * fewer if variance else size
    hits = mean * size
    low = float(stats.beta.ppf(tail, hits, size - hits + 1)) if mean > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, size - hits)) if mean < 1 else 1.0
    return Interval(mean, low, high, len(shares))
