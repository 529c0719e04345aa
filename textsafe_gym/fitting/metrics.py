"""How well scores rank pairs and tell labels, with intervals that respect prompts."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ranking_accuracy(higher: NDArray, lower: NDArray) -> float:
    """The share of pairs that are ranked right; a tie counts as half, as a coin would decide it.

    Args:
        higher: (n,) scores of the answers that should score higher.
        lower: (n,) scores of the others.
    """
    return float(np.mean((higher > lower) + 0.5 * (higher == lower)))


def sign_accuracy(scores: NDArray, labels: NDArray) -> float:
    """The share of answers for which score > 0 holds exactly when the label does; scores (n,), labels (n,) bool."""
    return float(np.mean((scores > 0) == labels))


def auc(scores: NDArray, labels: NDArray) -> float:
    """The area under the ROC curve: the chance that a labelled answer outscores an unlabelled one, ties half.

    Args:
        scores: (n,).
        labels: (n,) bool.

    Returns:
        The area, or NaN where only one label occurs.
    """
    from scipy.stats import rankdata

    positives, negatives = int(np.sum(labels)), int(np.sum(~labels))
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def interval_by_prompt(
    measure: Callable[[NDArray[np.int64]], float], prompts: Sequence[str], seed: int = 0, resamples: int = 400
) -> tuple[float, float]:
    """A 95 % bootstrap interval that resamples prompts, since rows of one prompt are not independent.

    Args:
        measure: the metric over an index of rows (repeats allowed).
        prompts: (n,) the prompt of each row.
        seed: of the resampling.
        resamples: how many.
    """
    _, inverse = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        chosen = generator.integers(len(groups), size=len(groups))
        values.append(measure(np.concatenate([groups[i] for i in chosen])))
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
