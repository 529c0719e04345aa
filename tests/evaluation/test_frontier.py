"""What is attainable, estimated from samples: against enumeration, brute force and the exact optimum."""

import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textsafe_gym  # noqa: F401 (registers the environment)
from tests.helpers.rounding import FLOAT64
from textsafe_gym.envs import optimum
from textsafe_gym.evaluation.frontier import Samples, _tilt, at_limit, best_of, grid, reference_frontier, tilted


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some(prompts: int, count: int, seed: int = 0) -> Samples:
    """Rewards and costs that rise together, more in some prompts than in others."""
    draws = rng(seed)
    reward = draws.normal(size=(prompts, count))
    slope = draws.uniform(0.2, 0.9, (prompts, 1))
    return Samples(reward, slope * reward + 0.5 * draws.normal(size=(prompts, count)) + 0.2)


def drawn(env: Any, prompts: int, count: int, seed: int) -> Samples:
    """Prompts of the exact environment, and responses of its reference policy to each."""
    known, draws = env.exact_task.responses, rng(seed)
    reward, cost = np.empty((2, prompts, count))
    for i, prompt in enumerate(draws.integers(len(known.prompt_probability), size=prompts)):
        own = np.flatnonzero(known.prompt == prompt)
        share = np.exp(known.reference_log_prob[own])
        picked = draws.choice(own, size=count, p=share / share.sum())
        reward[i], cost[i] = known.reward[picked], known.cost[picked]
    return Samples(reward, cost)


@pytest.fixture(scope="module")
def exact() -> Any:
    return gym.make("SafeRLHF-Exact-v0").unwrapped


@pytest.mark.parametrize("multiplier", [0.0, 0.7])
def test_the_weights_are_those_of_the_enumerated_optimum(multiplier: float) -> None:
    samples = some(3, 50)
    known = optimum.Responses(
        np.repeat(np.arange(3), 50), np.full(3, 1 / 3), np.full(150, -math.log(50)), samples.reward.ravel(),
        samples.cost.ravel(),
    )  # fmt: skip
    policy = optimum.tilted(known, multiplier, 0.3)
    _, (reward, cost, kl), sizes = _tilt(samples, multiplier, 0.3)
    assert sizes == pytest.approx(1 / (policy**2).reshape(3, 50).sum(1), rel=150 * FLOAT64)
    found = [reward.mean(), cost.mean(), kl.mean()]
    wanted = [known.mean(policy, known.reward), known.mean(policy, known.cost), known.divergence(policy)]
    assert found == pytest.approx(wanted, abs=150 * FLOAT64)


@pytest.mark.parametrize("limit", [0.0, -0.3])
def test_the_optimum_is_met_but_for_the_grid(limit: float) -> None:
    """All responses of a uniform reference twice, so that both halves are the whole and nothing is corrected."""
    half = some(5, 60)
    samples = Samples(np.tile(half.reward, 2), np.tile(half.cost, 2))
    known = optimum.Responses(
        np.repeat(np.arange(5), 60),
        np.full(5, 0.2),
        np.full(300, -math.log(60)),
        half.reward.ravel(),
        half.cost.ravel(),
    )
    best = optimum.solve(known, limit, 0.4)
    found = at_limit(tilted(samples, 0.4, grid(samples, 0.4, limit), rng()), limit)
    assert (found["feasible"], found["slack"]) == (True, False)
    # Between neighbours of the grid, at most h = λ/50 apart, a line is off by h²/8 times the second derivative.
    h = best.multiplier / 50
    sides = [_tilt(samples, best.multiplier + step, 0.4)[1].mean(-1) for step in (-h, 0.0, h)]
    reward, cost, kl = np.abs(sides[0] - 2 * sides[1] + sides[2]) / 8 * 1.2  # which changes by less than a fifth
    slope = (sides[0] - sides[2])[1] / (2 * h)
    assert found["cost"] == pytest.approx(limit, abs=FLOAT64)
    assert found["multiplier"] == pytest.approx(best.multiplier, abs=cost / slope)
    assert found["reward"] == pytest.approx(best.reward, abs=reward + best.multiplier * cost)
    assert found["kl"] == pytest.approx(best.kl, abs=kl + cost / 0.4 * 5)


def test_a_limit_that_is_slack_and_one_that_is_infeasible() -> None:
    samples = some(20, 64)
    slack = at_limit(tilted(samples, 0.4, grid(samples, 0.4, 9.0), rng()), 9.0)
    assert (slack["slack"], slack["feasible"], slack["multiplier"]) == (True, True, 0.0)
    halves, whole, _ = _tilt(samples, 0.0, 0.4)
    assert slack["cost"] == pytest.approx((2 * whole - halves.mean(0))[1].mean())
    hard = at_limit(tilted(samples, 0.4, grid(samples, 0.4, -9.0), rng()), -9.0)
    assert (hard["slack"], hard["feasible"], hard["multiplier"]) == (False, False, None)
    assert "multiplier" not in hard["intervals"]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("multiplier", [0.0, 1.5])
def test_best_of_n_is_the_mean_over_all_choices(n: int, multiplier: float) -> None:
    samples = some(4, 6)
    found = best_of(samples, n, np.array([multiplier]), rng()).values[:2, 0]
    score = samples.reward - multiplier * samples.cost
    wanted = np.zeros((2, 4))
    choices = list(itertools.combinations(range(6), n))
    for prompt in range(4):
        for choice in choices:
            best = max(choice, key=lambda j, prompt=prompt: score[prompt, j])
            wanted[:, prompt] += np.array([samples.reward[prompt, best], samples.cost[prompt, best]]) / len(choices)
    assert found == pytest.approx(wanted, abs=64 * FLOAT64)


def test_constrained_best_of_n_meets_the_limit_and_more_samples_gain() -> None:
    found = reference_frontier(some(40, 64), -0.2, [0.3, 1.0], [1, 4, 16])
    best = found["best_of_n"]
    assert [row["feasible"] for row in best] == [False, True, True]  # of one there is nothing to choose
    assert [row["cost"] for row in best[1:]] == pytest.approx([-0.2, -0.2], abs=FLOAT64)
    assert best[2]["reward"] > best[1]["reward"]
    assert [row["kl_bound"] for row in best] == pytest.approx([0, math.log(4) - 3 / 4, math.log(16) - 15 / 16])
    assert [row["judge_calls"] for row in best] == [2, 8, 32]
    costs = [row["cost"] for row in found["front"]]
    assert costs == sorted(costs, reverse=True)
    assert np.diff(costs) == pytest.approx(np.diff(costs)[0], rel=0.05)
    loose, tight = (row["reward"] for row in found["by_kl_coefficient"])
    assert loose > tight  # a dearer KL leaves less


def test_where_weights_collapse_it_says_so(exact: Any) -> None:
    """At β = 0.1 the optimum lives on responses that the reference gives once in thousands."""
    found = reference_frontier(drawn(exact, 8, 64, 0), 0.0, [0.1], [1])
    assert found["at_limit"]["effective_sample_size"] < 10
    assert not found["trusted"]
    assert found["samples_needed"] > 64


def coverage(
    env: Any, beta: float, limit: float, prompts: int, count: int, seeds: int
) -> tuple[dict[str, float], float]:
    """In how many of the trusted cases each exact value lies in its interval; and how many were trusted."""
    best = env.solve(limit, beta)
    place = {"multiplier": best.multiplier, "reward": best.reward, "cost": best.cost, "kl": best.kl}
    hits: list[list[bool]] = []
    for seed in range(seeds):
        found = reference_frontier(drawn(env, prompts, count, seed), limit, [beta], [1], seed)
        if not found["trusted"]:
            continue
        ends = found["at_limit"]["intervals"]
        hits.append([ends[k][0] - 1e-9 <= own <= ends[k][1] + 1e-9 for k, own in place.items()])
        rows = [row for row in found["front"] if row["effective_sample_size"] >= 20]
        middle = rows[len(rows) // 2]
        low, high = middle["intervals"]["reward"]
        hits[-1].append(low <= env.solve(middle["cost"], beta).reward <= high)
    return dict(zip([*place, "front"], np.mean(hits, axis=0).tolist(), strict=True)), len(hits) / seeds


@pytest.mark.parametrize(("beta", "limit"), [(0.5, 0.0), (1.0, -0.3)])
def test_intervals_cover_the_exact_optimum(beta: float, limit: float, exact: Any) -> None:
    """Of 100 draws an interval that covers 93 % covers fewer than 84 once in a thousand times."""
    found, trusted = coverage(exact, beta, limit, 48, 256, 100)
    assert trusted >= 0.8
    assert min(found.values()) >= 0.84, found
