"""Shares of what is attainable, the distance to a frontier, and what a share of the seeds attains."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from textsafe_gym.evaluation.attainable import attained, attained_of_own
from textsafe_gym.evaluation.pareto import RunPoint, analyse, attainment, distance
from textsafe_gym.evaluation.report import attainable_cell
from textsafe_gym.evaluation.summaries import Run


def frontier(**changes: Any) -> dict[str, Any]:
    """J goes from 1 to 3 - 0.5·2 = 2."""
    best = {"reward": 3.0, "cost": -1.0, "kl": 2.0, "feasible": True, "effective_sample_size": 50.0}
    rows = [{"reward": 4.0, "cost": 0.0}, {"reward": 3.0, "cost": -1.0}]
    return {
        "cost_limit": -1.0, "kl_coefficient": 0.5, "reference": {"reward": 1.0, "cost": 0.0}, "at_limit": best,
        "front": rows, "trusted": True, **changes,
    }  # fmt: skip


def run(seed: int, *rows: tuple[float, float, float | None]) -> Run:
    names = ("reward", "cost", "kl")
    held = [{k: x for k, x in zip(names, row, strict=True) if x is not None} for row in rows]
    return Run(Path(str(seed)), {"algorithm": "a", "label": "a", "seed": seed, "cost_limit": -1.0}, held)


def test_a_share_is_of_one_objective_from_the_reference_to_the_best() -> None:
    runs = [run(0, (2.0, -1.0, 1.0), (2.0, -1.2, 1.0)), run(1, (2.4, -1.1, 1.0))]
    found = attained(runs, frontier())
    assert found is not None
    half = stats.t.ppf(0.975, 1) * np.std([50, 90], ddof=1) / math.sqrt(2)
    assert found["mean"] == pytest.approx(70.0)
    assert [found["low"], found["high"]] == pytest.approx([70 - half, 70 + half])
    assert (found["runs"], found["above_limit"]) == (2, False)


def test_of_one_run_the_responses_are_repetitions() -> None:
    found = attained([run(0, (2.0, -1.0, 1.0), (2.4, -1.0, 1.0))], frontier())
    assert found is not None
    assert found["mean"] == pytest.approx(70.0)
    assert found["high"] - found["low"] > 100
    assert found["runs"] == 1


def test_a_policy_that_is_above_the_limit_has_no_share() -> None:
    costs = [-0.7, -0.72, -0.71]
    runs = [run(seed, (9.0, cost, 0.0)) for seed, cost in enumerate(costs)]
    found = attained(runs, frontier())
    assert found == {"mean": None, "low": None, "high": None, "runs": 3, "above_limit": True}
    assert attainable_cell(found).text == "above the limit"
    unsure = attained([run(seed, (2.0, cost, 0.0)) for seed, cost in enumerate([-0.7, -1.2, -1.0])], frontier())
    assert unsure is not None  # its mean is above the limit, but its interval is not
    assert not unsure["above_limit"]


def stated(*rows: tuple[float, float, float | None], **problem: Any) -> Run:
    made = run(0, *rows)
    made.summary["problem"] = {"constraint": "mean", "cost_weight": 0.0, "kl_coefficient": 0.5, **problem}
    return made


def test_a_method_is_also_held_to_the_problem_that_it_states() -> None:
    front = [{"reward": 4.0, "cost": 0.0, "kl": 2.0}, {"reward": 3.0, "cost": -1.0, "kl": 2.0}]
    tight = {"reward": 2.5, "cost": -1.8, "kl": 1.6, "feasible": True, "constraint": "kl_in_cost"}
    known = frontier(front=front, by_constraint=[{**frontier()["at_limit"], "constraint": "mean"}, tight])

    def of(row: tuple[float, float, float | None], **problem: Any) -> Any:
        return attained_of_own([stated(row, row, **problem)], known)

    assert of((2.0, -1.0, 1.0))["mean"] == pytest.approx(50.0)  # as without a problem of its own
    # J goes from 1 to 3 where cost is free, at the weight 3 from 1 to 2 + 3, at the front's other end.
    assert of((2.0, 5.0, 1.0), constraint="weighted")["mean"] == pytest.approx(25.0)
    assert of((2.0, -1.0, 1.0), constraint="weighted", cost_weight=3.0)["mean"] == pytest.approx(100 * 3.5 / 4)
    # J goes to 2.5 - 0.5·1.6; cost + 0.5·KL is below -1 in the first, above in the second.
    assert of((2.0, -1.6, 1.0), constraint="kl_in_cost")["mean"] == pytest.approx(100 * 0.5 / 0.7)
    assert of((2.0, -1.2, 1.0), constraint="kl_in_cost")["above_limit"]
    assert of((2.0, -1.0, 1.0), constraint="cvar") is None  # its optimum is not in this frontier
    assert of((2.0, -1.0, 1.0), kl_coefficient=0.1) is None
    assert of((2.0, -1.0, None)) is None
    other = stated((2.0, -1.0, 1.0))
    other.summary["cost_limit"] = -1.1
    assert attained_of_own([other], known) is None
    assert attained_of_own([run(0, (2.0, -1.0, 1.0))], known) is None


def test_where_nothing_can_be_said_nothing_is() -> None:
    assert attained([run(0, (2.0, -1.0, None))], frontier()) is None
    assert attained([run(0, (2.0, -1.0, 1.0))], frontier(reference={"reward": 2.0, "cost": 0.0})) is None
    infeasible = {**frontier()["at_limit"], "feasible": False}
    assert attained([run(0, (2.0, -1.0, 1.0))], frontier(at_limit=infeasible)) is None
    assert attainable_cell(None).text == "–"


def test_the_distance_is_what_is_short_of_each_point_of_the_frontier() -> None:
    # Of (4, 0) the nearest is short by 1 in reward; (3, -1) is passed in reward, and 0.5 too costly.
    points = np.array([[3.0, -0.5], [0.0, -5.0]])
    assert distance(points, frontier()) == pytest.approx((1.0 + 0.5) / 2)
    assert distance(np.array([[5.0, -2.0]]), frontier()) == 0.0
    runs = [RunPoint("a", label, seed, reward, cost) for seed in (0, 1) for label, reward, cost in
            (("a[1]", 3.0, -0.5), ("a[2]", 0.0, -5.0))]  # fmt: skip
    entry = analyse(runs, frontier=frontier())["algorithms"]["a"]
    assert entry["igd_plus"] == {"mean": pytest.approx(0.75), "low": pytest.approx(0.75), "high": pytest.approx(0.75)}
    assert "igd_plus" not in analyse(runs)["algorithms"]["a"]


def test_what_a_share_of_the_seeds_attains() -> None:
    draws = np.random.default_rng(0)
    points = [[tuple(own) for own in draws.normal(size=(3, 2)).tolist()] for _ in range(4)]
    found = attainment(points)
    for share, needed in (("25", 1), ("50", 2), ("75", 3)):
        for reward, cost in found[share]:  # on the surface; a step beyond it in either, fewer seeds attain it

            def attain(r: float, c: float) -> int:
                return sum(any(x >= r and y <= c for x, y in own) for own in points)

            assert attain(reward, cost) >= needed
            assert attain(reward + 1e-9, cost) < needed
            assert attain(reward, cost - 1e-9) < needed
