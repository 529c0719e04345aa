"""Algorithms against the exact optimum of the problem that each of them states."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from textsafe_gym.envs.exact import ExactView
from textsafe_gym.evaluation.intervals import t_interval
from textsafe_gym.evaluation.report import Cell, Table, cell
from textsafe_gym.files import Row
from textsafe_gym.limits import violation

SOLVED = ("mean", "kl_in_cost", "per_prompt", "weighted")
"""The problems whose optimum is known."""


@dataclass(frozen=True)
class Score:
    """One run, measured exactly.

    Attributes:
        algorithm: its name.
        cost_limit: of the run; None for a method without one.
        seed: of the run.
        fraction: of the way from the reference policy's objective (0) to the optimum's (1).
        violation: by how much what is bounded is above its limit, as a share of the range of costs.
        kl: to the reference, in nats.
        cost: mean cost.
        objective: E[R] - β·KL, less the weighted cost where the method has a fixed weight.
        multiplier: λ, the mean over the last tenth of the iterations; None where there is none.
        best_multiplier: the optimum's; None without a limit.
    """

    algorithm: str
    cost_limit: float | None
    seed: int
    fraction: float
    violation: float
    kl: float
    cost: float
    objective: float
    multiplier: float | None
    best_multiplier: float | None


def score(env: ExactView, summary: Row, name: str, metrics: Sequence[Row]) -> Score:
    """Holds a run's exact values to the optimum.

    Args:
        env: the base of a `SafeRLHF-Exact-v0`.
        summary: of `summary.json`, with "exact", and "problem": "mean", E[C] <= limit; "kl_in_cost",
            E[C] + β·KL <= limit; "per_prompt", E[C | x] <= limit for every prompt; "weighted", no limit but a weight
            of the cost.
        name: what it is called.
        metrics: of `metrics.jsonl`.
    """
    problem, cost_weight = summary["problem"]["constraint"], summary["problem"]["cost_weight"]
    exact, limit, kl_coefficient = summary["exact"], summary["cost_limit"], env.kl_coefficient
    costs = env.exact_task.responses.cost
    bounded = exact["cost"]
    if problem == "weighted":
        best = env.solve_weighted(cost_weight)
        limit, above = None, 0.0
    elif problem == "per_prompt":
        best = env.solve_each(limit)
        weights = env.exact_task.responses.prompt_probability
        above = float(weights @ [violation(cost - limit) for cost in exact["prompt_costs"]])
    else:
        best = env.solve(limit, kl_in_cost=problem == "kl_in_cost")
        bounded += kl_coefficient * exact["kl"] if problem == "kl_in_cost" else 0.0
        above = violation(bounded - limit)
    reached = exact["reward"] - kl_coefficient * exact["kl"] - cost_weight * exact["cost"]
    multipliers = [row["multiplier"] for row in metrics[-max(len(metrics) // 10, 1) :] if "multiplier" in row]
    start = env.evaluate(env.exact_task.reference)
    ground = start.reward - cost_weight * start.cost
    aim = best.objective - cost_weight * best.cost
    return Score(
        algorithm=name,
        cost_limit=limit,
        seed=summary["seed"],
        fraction=(reached - ground) / (aim - ground),
        violation=above / float(costs.max() - costs.min()),
        kl=exact["kl"],
        cost=exact["cost"],
        objective=reached,
        multiplier=float(np.mean(multipliers)) if multipliers else None,
        best_multiplier=None if limit is None else best.multiplier,
    )


def summarise_study(scores: Sequence[Score]) -> list[Row]:
    """A row for each algorithm and limit: means and 95 % t intervals over seeds."""
    groups: dict[tuple[str, float | None], list[Score]] = defaultdict(list)
    for one in scores:
        groups[one.algorithm, one.cost_limit].append(one)
    rows = []
    for (algorithm, limit), own in groups.items():
        row: Row = {"algorithm": algorithm, "cost_limit": limit, "runs": len(own)}
        for name in ("fraction", "violation", "kl", "cost", "objective"):
            within = (0.0 if name in ("violation", "kl") else -math.inf, math.inf)
            row[name] = t_interval([vars(one)[name] for one in own], within=within).as_dict()
        multipliers = [one.multiplier for one in own if one.multiplier is not None]
        row["multiplier"] = t_interval(multipliers, within=(0.0, math.inf)).as_dict() if multipliers else None
        row["best_multiplier"] = own[0].best_multiplier
        rows.append(row)
    return rows


def study_table(rows: Sequence[Row], problems: Mapping[str, str]) -> Table:
    """The study's table on the terminal."""
    cells = [
        [
            Cell(row["algorithm"]),
            Cell(problems[row["algorithm"]]),
            Cell("–" if row["cost_limit"] is None else f"{row['cost_limit']:g}"),
            cell(row["fraction"], 1, 100),
            cell(row["violation"], 2, 100),
            cell(row["kl"], 2),
            cell(row["multiplier"], 2),
            Cell("–" if row["best_multiplier"] is None else f"{row['best_multiplier']:.2f}"),
            Cell(str(row["runs"])),
        ]
        for row in rows
    ]
    return Table(
        title="Fraction of the exact optimum",
        note="0 %: the reference policy; 100 %: the optimum of the problem that the algorithm states. Violation of the "
        "limit in % of the range of costs. λ: over the last tenth of a run; λ*: the optimum's. Means over seeds with "
        "95 % t intervals.",
        columns=["algorithm", "problem", "limit", "optimum, %", "violation, %", "KL, nats", "λ", "λ*", "runs"],
        rows=cells,
    )


def frontiers(env: ExactView, problems: Collection[str], points: int = 25) -> dict[str, list[dict[str, float]]]:
    """For each problem with a limit its optima, from no limit to nearly the smallest that can be kept.

    Returns:
        From problem to points with `cost`, the mean cost, and `objective`, E[R] - β·KL.
    """
    free = env.solve_weighted(0.0)
    solvers = {
        "mean": lambda limit: env.solve(limit),
        "kl_in_cost": lambda limit: env.solve(limit, kl_in_cost=True),
        "per_prompt": lambda limit: env.solve_each(limit),
    }
    found = {}
    for problem in sorted(problems & solvers.keys()):
        solve = solvers[problem]
        high = free.cost + (env.kl_coefficient * free.kl if problem == "kl_in_cost" else 0.0)
        low = solve(high).smallest_cost
        optima = [solve(limit) for limit in np.linspace(high, low + 0.1 * (high - low), points)]
        found[problem] = [{"cost": one.cost, "objective": one.objective} for one in optima]
    return found
