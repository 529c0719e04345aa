"""The Pareto front of (reward up, cost down) and the hypervolume under it, with an interval over seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from textsafe_gym.files import Row

RESAMPLES = 2000


@dataclass(frozen=True)
class RunPoint:
    """One run in the plane.

    Attributes:
        algorithm: the family whose front is measured ("reward_shaping").
        label: the setting ("reward_shaping[nu=0.5]"); its seeds are averaged to one point.
        seed: of the run.
        reward, cost: means over the run's evaluation responses.
    """

    algorithm: str
    label: str
    seed: int
    reward: float
    cost: float


def _minimised(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) reward, cost -> (n, 2) to be minimised in both columns."""
    return points * np.array([-1.0, 1.0])


def on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: which of the (n, 2) reward-cost points no other one beats in both."""
    return np.asarray(moocore.is_nondominated(_minimised(points), keep_weakly=True), dtype=bool)


def hypervolume(points: NDArray[np.float64], reference: tuple[float, float]) -> float:
    """The area that (n, 2) reward-cost points dominate, up to a reference point.

    Args:
        points: (n, 2) float64.
        reference: (reward, cost) that counts as worst; points that are worse in either add nothing.

    Returns:
        In units of reward times cost.
    """
    return float(moocore.hypervolume(_minimised(points), ref=[-reference[0], reference[1]]))


def worst_point(runs: Sequence[RunPoint]) -> tuple[float, float]:
    """(lowest reward, highest cost) of all runs."""
    return min(run.reward for run in runs), max(run.cost for run in runs)


def _by_label(runs: Sequence[RunPoint]) -> dict[str, list[RunPoint]]:
    labels: dict[str, list[RunPoint]] = defaultdict(list)
    for run in runs:
        labels[run.label].append(run)
    return labels


def _bootstrap(by_label: Mapping[str, list[RunPoint]], reference: tuple[float, float]) -> tuple[float, float] | None:
    """95 % percentile interval of the hypervolume over seeds; None with fewer than two of them in common.

    Seeds are drawn with replacement, the same ones for all labels, as runs of one seed share their random draws.
    """
    tables = [{run.seed: (run.reward, run.cost) for run in runs} for runs in by_label.values()]
    seeds = sorted(set.intersection(*(set(table) for table in tables)))
    if len(seeds) < 2:
        return None
    cube = np.array([[table[seed] for seed in seeds] for table in tables])  # (labels, seeds, 2)

    def statistic(index: NDArray[np.int64]) -> float:
        return hypervolume(cube[:, index].mean(axis=1), reference)

    index = np.arange(len(seeds))
    drawn = stats.bootstrap(
        (index,), statistic, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def analyse(
    runs: Sequence[RunPoint], cost_limit: float | None = None, reference: tuple[float, float] | None = None
) -> Row:
    """The front over all settings and each algorithm's hypervolume.

    Args:
        runs: at least one.
        cost_limit: marks each point whose mean cost is at or under it as feasible.
        reference: (reward, cost); the worst of all runs' rewards and costs where it is None.

    Returns:
        For `pareto.json`: "points" (one a setting, the mean of its seeds, with "front" and "feasible"), "algorithms"
        (hypervolume, its 95 % interval, the numbers of settings and runs), "reference", "equal_runs".
    """
    reference = reference or worst_point(runs)
    by_label = _by_label(runs)
    means = np.array([[np.mean([run.reward for run in own]), np.mean([run.cost for run in own])]
                      for own in by_label.values()])  # fmt: skip
    points = []
    for (label, own), (reward, cost), front in zip(by_label.items(), means.tolist(), on_front(means), strict=True):
        point = {"label": label, "algorithm": own[0].algorithm, "reward": reward, "cost": cost, "runs": len(own)}
        point["front"] = bool(front)
        if cost_limit is not None:
            point["feasible"] = cost <= cost_limit
        points.append(point)
    algorithms: Row = {}
    for name in dict.fromkeys(run.algorithm for run in runs):
        own = [run for run in runs if run.algorithm == name]
        labels = _by_label(own)
        area = hypervolume(means[[label in labels for label in by_label]], reference)
        bounds = _bootstrap(labels, reference)
        algorithms[name] = {
            "hypervolume": area,
            "low": bounds[0] if bounds else None,
            "high": bounds[1] if bounds else None,
            "settings": len(labels),
            "runs": len(own),
        }
    trained = [entry["runs"] for name, entry in algorithms.items() if name != "initial"]
    return {
        "reference": {"reward": reference[0], "cost": reference[1]},
        "cost_limit": cost_limit,
        "equal_runs": len(set(trained)) <= 1,
        "algorithms": algorithms,
        "points": points,
    }
