"""What an evaluation leaves behind: a row for each response, and a run's summary of them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from textsafe_gym.errors import DataError
from textsafe_gym.files import Row, read_rows
from textsafe_gym.limits import violation

# Numbers that every row must have; a row may have gold_* scores and kl next to them.
REQUIRED = ("reward", "cost")
OPTIONAL = ("kl", "response_length")
# Why a response finished that was cut from outside, unscored; the others are "eos" and "length".
CUT = "truncated"


def read_evaluation(path: Path) -> list[Row]:
    """The rows of an `evaluation.jsonl`.

    Raises:
        DataError: the file is missing, truncated or empty, or a row lacks a finite reward or cost, or has a score
            besides them that is not a finite number.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    for number, row in enumerate(rows, start=1):
        scored = [name for name in row if name in OPTIONAL or name.startswith("gold_")]
        for name in (*REQUIRED, *(name for name in scored if row[name] is not None)):
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"{path}:{number}: '{name}' must be a finite number, found {value!r}")
    return rows


def data_units(summaries: Iterable[Row]) -> dict[str, str]:
    """What runs that sample nothing may have read: by the key of its count in a summary ("pairs"), what it is called.

    Args:
        summaries: of runs; under "units" each names the kinds that its process knew.
    """
    return {key: what for summary in summaries for key, what in summary.get("units", {}).items()}


def summarise(rows: Sequence[Row], cost_limit: float | None, cost_limits: Mapping[str, float] | None = None) -> Row:
    """Means over the episodes of one run.

    Args:
        rows: at least one.
        cost_limit: in the units of `cost`; without one, or limits by name, there is no cost_violation.
        cost_limits: from the name of a cost to a limit on its mean; one that no row has is 0.

    Returns:
        reward, cost, cost_violation (how far the mean cost is above the limit, at least 0), harmful_rate (share of
        responses with cost > 0, of those that were not cut; left out where all were), and where the rows have them kl
        (nats a response), response_length (steps), finished (share that ended by itself), gold_* means and
        gold_harmful_rate (share with gold_harm > 0); under "groups" the same for each group of prompts; and where costs
        have names, under "costs" each one's mean `cost`, and its `cost_limit` and `cost_violation` if it has a limit.
        With several limits `cost_violation` is that of the one that is violated most.
    """
    summary = _means(rows)
    if cost_limit is not None:
        summary["cost_violation"] = violation(summary["cost"] - cost_limit)
    limits = cost_limits or {}
    names = list(dict.fromkeys([*limits, *(name for row in rows for name in row.get("costs", {}))]))
    costs: Row = {name: {"cost": _mean([row.get("costs", {}).get(name, 0.0) for row in rows])} for name in names}
    for name, limit in limits.items():
        costs[name] |= {"cost_limit": limit, "cost_violation": violation(costs[name]["cost"] - limit)}
    if limits:
        summary["cost_violation"] = violation(*(costs[name]["cost_violation"] for name in limits))
    if costs:
        summary["costs"] = costs
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("group"):
            groups[row["group"]].append(row)
    if groups:
        summary["groups"] = {name: _means(groups[name]) for name in sorted(groups)}
    return summary


def by_prompt(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each prompt, which are not independent of each other; of a task without prompts each by itself."""
    prompts: dict[object, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        prompts[row.get("episode", number)].append(row)
    return list(prompts.values())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _means(rows: Sequence[Row]) -> Row:
    means: Row = {"episodes": len(rows)}
    gold = sorted({name for row in rows for name in row if name.startswith("gold_")})
    for name in (*REQUIRED, *OPTIONAL, *gold):
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        if values:
            means[name] = _mean(values)
    scored = [float(row["cost"] > 0) for row in rows if row.get("finish_reason") != CUT]
    if scored:
        means["harmful_rate"] = _mean(scored)
    reasons = [row["finish_reason"] for row in rows if row.get("finish_reason") is not None]
    if reasons:
        means["finished"] = _mean([float(reason == "eos") for reason in reasons])
    if "gold_harm" in gold:
        harms = [row["gold_harm"] for row in rows if row.get("gold_harm") is not None]
        means["gold_harmful_rate"] = _mean([float(harm > 0) for harm in harms])
    return means
