"""How much of what is attainable a policy attains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from textsafe_gym.evaluation.intervals import t_interval
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from textsafe_gym.evaluation.summaries import Run


def objective(row: Row, kl_coefficient: float) -> float:
    """J = reward - β·KL of a row that has `reward` and `kl`."""
    return float(row["reward"] - kl_coefficient * row["kl"])


def attained(runs: Sequence["Run"], frontier: Row) -> Row | None:
    """By how much a setting's runs come from the reference policy to the best one that keeps the limit, in %.

    100·(J - J_ref) / (J* - J_ref), where J = E[R] - β·KL, and β, the limit, the reference and the best policy are the
    frontier's, the same for all settings. J* is taken as it was estimated; its own interval is the frontier's.

    Args:
        runs: repetitions of one setting; of one run the unit of repetition is the response.
        frontier: what `frontier.json` holds, of a limit on the mean cost.

    Returns:
        `mean`, `low`, `high` and `runs`; and `above_limit`, whether the 95 % interval of the cost lies above the
        limit: then the others are None, as more is attainable there. None where the runs do not tell their KL, or no
        policy keeps the limit.
    """
    best, start, beta = frontier["at_limit"], frontier["reference"]["reward"], frontier["kl_coefficient"]
    if not best["feasible"] or any(row.get("kl") is None for run in runs for row in run.rows):
        return None
    single = [[row] for row in runs[0].rows] if len(runs) == 1 else [run.rows for run in runs]
    costs = t_interval([float(np.mean([row["cost"] for row in rows])) for rows in single])
    values = [float(np.mean([objective(row, beta) for row in rows])) for rows in single]
    gain = objective(best, beta) - start
    if gain <= 0:  # nothing is to be had over the reference
        return None
    above = (costs.mean if costs.low is None else costs.low) > frontier["cost_limit"]
    if above:
        return {"mean": None, "low": None, "high": None, "runs": len(runs), "above_limit": True}
    share = t_interval([100 * (value - start) / gain for value in values])
    return {**share.as_dict(), "runs": len(runs), "above_limit": False}
