"""How much of what is attainable a policy attains."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from textsafe_gym.evaluation.intervals import t_interval
from textsafe_gym.evaluation.records import by_prompt
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from textsafe_gym.evaluation.summaries import Run


def objective(row: Row, kl_coefficient: float) -> float:
    """J = reward - β·KL of a row that has `reward` and `kl`."""
    return float(row["reward"] - kl_coefficient * row["kl"])


def share(row: Row, frontier: Row) -> float:
    """Of a row that has `reward` and `kl`, what `attained` is of runs, whatever its cost."""
    start, beta = float(frontier["reference"]["reward"]), frontier["kl_coefficient"]
    return 100 * (objective(row, beta) - start) / (objective(frontier["at_limit"], beta) - start)


def attained(runs: Sequence["Run"], frontier: Row) -> Row | None:
    """By how much a setting's runs come from the reference policy to the best one that keeps the limit, in %.

    100·(J - J_ref) / (J* - J_ref), where J = E[R] - β·KL, and β, the limit, the reference and the best policy are the
    frontier's, the same for all settings. J* is taken as it was estimated; its own interval is the frontier's.

    Args:
        runs: repetitions of one setting; of one run the unit of repetition is the prompt.
        frontier: what `frontier.json` holds, of a limit on the mean cost.

    Returns:
        `mean`, `low`, `high` and `runs`; and `above_limit`, whether the 95 % interval of the cost lies above the
        limit: then the others are None, as more is attainable there. None where the runs do not report their KL, or no
        policy keeps the limit.
    """
    return _share(runs, frontier, frontier["at_limit"], lambda row: float(row["cost"]))


def attained_of_own(runs: Sequence["Run"], frontier: Row) -> Row | None:
    """`attained` of the problem that the runs' algorithm states itself (`problem` in `summary.json`).

    "weighted" is judged by J less the weighted cost, and no cost is above a limit; "kl_in_cost" by the optimum under,
    and the excess of, E[C] + β·KL; "per_prompt" by its optimum, but by the mean cost, since single answers do not show
    a prompt's.

    Returns:
        As `attained`. None as well where the runs' β or limit is not the frontier's, or it has no such optimum.
    """
    problem = runs[0].summary.get("problem")
    if problem is None or problem["kl_coefficient"] != frontier["kl_coefficient"]:
        return None
    if problem["constraint"] == "weighted":
        weight = problem["cost_weight"]
        # Each row of the front is the best policy for some weight, and nearly that for those next to it.
        rows = [row for row in (*frontier["front"], frontier["at_limit"]) if row.get("kl") is not None]
        best = max(rows, key=lambda row: objective(row, frontier["kl_coefficient"]) - weight * row["cost"])
        return _share(runs, frontier, {**best, "feasible": True}, None, weight)
    optima = {row["constraint"]: row for row in frontier["by_constraint"]}
    best = optima.get(problem["constraint"])
    if best is None or any(run.summary["cost_limit"] != frontier["cost_limit"] for run in runs):
        return None
    beta = frontier["kl_coefficient"] if problem["constraint"] == "kl_in_cost" else 0.0
    return _share(runs, frontier, best, lambda row: float(row["cost"] + beta * row["kl"]))


def _share(
    runs: Sequence["Run"],
    frontier: Row,
    best: Row,
    bounded: Callable[[Row], float] | None,
    cost_weight: float = 0.0,
) -> Row | None:
    def value(row: Row) -> float:
        return objective(row, frontier["kl_coefficient"]) - cost_weight * float(row["cost"])

    if not best["feasible"] or any(row.get("kl") is None for run in runs for row in run.rows):
        return None
    single = by_prompt(runs[0].rows) if len(runs) == 1 else [run.rows for run in runs]
    start = value({**frontier["reference"], "kl": 0.0})
    gain = value(best) - start
    if gain <= 0:  # nothing is to be had over the reference
        return None
    if bounded is not None:
        costs = t_interval([float(np.mean([bounded(row) for row in rows])) for rows in single])
        if (costs.mean if costs.low is None else costs.low) > frontier["cost_limit"]:
            return {"mean": None, "low": None, "high": None, "runs": len(runs), "above_limit": True}
    values = [float(np.mean([value(row) for row in rows])) for rows in single]
    share = t_interval([100 * (value - start) / gain for value in values])
    return {**share.as_dict(), "runs": len(runs), "above_limit": False}
