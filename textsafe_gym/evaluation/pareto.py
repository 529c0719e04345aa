"""The Pareto front of (reward up, cost down) and the hypervolume under it, with an interval over seeds."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from textsafe_gym.evaluation.intervals import t_interval
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


def distance(points: NDArray[np.float64], frontier: Row) -> float:
    """IGD+ of (n, 2) reward-cost points to a frontier: the mean over its points of how far the nearest of these falls
    short of it in reward, in cost, or in both (Ishibuchi et al. 2015); 0 where they reach all of it.

    Args:
        points: (n, 2) float64.
        frontier: what `frontier.json` holds.
    """
    target = np.array([(row["reward"], row["cost"]) for row in frontier["front"]])
    return float(moocore.igd_plus(_minimised(points), ref=_minimised(target)))


def attainment(points: Sequence[Sequence[tuple[float, float]]], shares: Sequence[int] = (25, 50, 75)) -> Row:
    """By share in %, the (reward, cost) that so many of the repetitions attain or better (the empirical attainment
    function, Grunert da Fonseca et al. 2001).

    Args:
        points: of each repetition, such as a seed, the (reward, cost) of all settings.
        shares: in %.
    """
    cloud = _minimised(np.array([point for own in points for point in own]))
    numbers = np.repeat(np.arange(len(points)), [len(own) for own in points])
    found = moocore.eaf(cloud, numbers, percentiles=list(shares)).tolist()
    return {str(share): [[-reward, cost] for reward, cost, level in found if level == share] for share in shares}


def worst_point(runs: Sequence[RunPoint]) -> tuple[float, float]:
    """(lowest reward, highest cost) of all runs."""
    return min(run.reward for run in runs), max(run.cost for run in runs)


def _by_label(runs: Sequence[RunPoint]) -> dict[str, list[RunPoint]]:
    labels: dict[str, list[RunPoint]] = defaultdict(list)
    for run in runs:
        labels[run.label].append(run)
    return labels


def _bootstrap(
    by_label: Mapping[str, list[RunPoint]], measure: Callable[[NDArray[np.float64]], float]
) -> tuple[float, float] | None:
    """95 % percentile interval over seeds of a measure of the settings' points (n, 2); None with fewer than two seeds
    in common.

    Seeds are drawn with replacement, the same ones for all labels, as runs of one seed share their random draws.
    """
    tables = [{run.seed: (run.reward, run.cost) for run in runs} for runs in by_label.values()]
    seeds = sorted(set.intersection(*(set(table) for table in tables)))
    if len(seeds) < 2:
        return None
    cube = np.array([[table[seed] for seed in seeds] for table in tables])  # (labels, seeds, 2)

    def statistic(index: NDArray[np.int64]) -> float:
        return measure(cube[:, index].mean(axis=1))

    index = np.arange(len(seeds))
    drawn = stats.bootstrap(
        (index,), statistic, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _attainment(by_label: Mapping[str, list[RunPoint]]) -> Row:
    tables = [{run.seed: (run.reward, run.cost) for run in runs} for runs in by_label.values()]
    seeds = sorted(set.intersection(*(set(table) for table in tables)))
    return attainment([[table[seed] for table in tables] for seed in seeds]) if len(seeds) > 1 else {}


def analyse(
    runs: Sequence[RunPoint],
    cost_limit: float | None = None,
    reference: tuple[float, float] | None = None,
    frontier: Row | None = None,
    repetitions: Sequence[RunPoint] | None = None,
) -> Row:
    """The front over all settings and each algorithm's hypervolume.

    Args:
        runs: at least one.
        cost_limit: marks each point whose mean cost is at or under it as feasible.
        reference: (reward, cost); the worst of all runs' rewards and costs where it is None.
        frontier: what is attainable, as `frontier.json` holds it.
        repetitions: what intervals are over, where that is not the runs: prompts, numbered by `seed`.

    Returns:
        For `pareto.json`: "points" (one a setting, the mean of its seeds, with "intervals", "front" and "feasible"),
        "over" ("seeds" or "prompts", what intervals are over), "algorithms" (hypervolume, its 95 % interval, the
        numbers of settings and runs; "attainment" by `attainment` over the seeds that all of its settings have; with a
        frontier "igd_plus", see `distance`, and its interval), "reference", "equal_runs".
    """
    reference = reference or worst_point(runs)
    by_label = _by_label(runs)
    repeated = _by_label(runs if repetitions is None else repetitions)
    means = np.array([[np.mean([run.reward for run in own]), np.mean([run.cost for run in own])]
                      for own in by_label.values()])  # fmt: skip
    points = []
    for (label, own), (reward, cost), front in zip(by_label.items(), means.tolist(), on_front(means), strict=True):
        point = {"label": label, "algorithm": own[0].algorithm, "reward": reward, "cost": cost, "runs": len(own)}
        point["intervals"] = {
            "reward": t_interval([one.reward for one in repeated[label]]).as_dict(),
            "cost": t_interval([one.cost for one in repeated[label]]).as_dict(),
        }
        point["front"] = bool(front)
        if cost_limit is not None:
            point["feasible"] = cost <= cost_limit
        points.append(point)
    algorithms: Row = {}
    for name in dict.fromkeys(run.algorithm for run in runs):
        own = [run for run in runs if run.algorithm == name]
        labels = _by_label(own)
        area = hypervolume(means[[label in labels for label in by_label]], reference)
        parts = {label: repeated[label] for label in labels}
        bounds = _bootstrap(parts, lambda points: hypervolume(points, reference)) or (None, None)
        algorithms[name] = {
            "hypervolume": area,
            "low": bounds[0],
            "high": bounds[1],
            "settings": len(labels),
            "runs": len(own),
            "attainment": _attainment(labels) if repetitions is None else {},
        }
        if frontier:
            near = means[[label in labels for label in by_label]]
            ends = _bootstrap(parts, lambda points: distance(points, frontier)) or (None, None)
            algorithms[name]["igd_plus"] = {"mean": distance(near, frontier), "low": ends[0], "high": ends[1]}
    trained = [entry["runs"] for name, entry in algorithms.items() if name != "initial"]
    return {
        "reference": {"reward": reference[0], "cost": reference[1]},
        "cost_limit": cost_limit,
        "equal_runs": len(set(trained)) <= 1,
        "over": "seeds" if repetitions is None else "prompts",
        "algorithms": algorithms,
        "points": points,
    }
