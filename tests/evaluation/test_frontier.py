"""What is attainable, estimated from samples: against enumeration, brute force and the exact optimum."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.helpers.frontier_coverage import drawn, hits, shares
from tests.helpers.rounding import FLOAT64
from textsafe_gym.envs import optimum
from textsafe_gym.evaluation.frontier import at_limit, grid, reference_frontier
from textsafe_gym.evaluation.reweighting import (
    BOUNDED,
    COST,
    KL,
    REWARD,
    Problem,
    Samples,
    best_of,
    corrected,
    soft_best_of,
    tilt,
    tilted,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some(prompts: int, count: int, seed: int = 0) -> Samples:
    """Rewards and costs that rise together, more in some prompts than in others."""
    draws = rng(seed)
    reward = draws.normal(size=(prompts, count))
    slope = draws.uniform(0.2, 0.9, (prompts, 1))
    return Samples(reward, slope * reward + 0.5 * draws.normal(size=(prompts, count)) + 0.2)


def uniform(half: Samples) -> optimum.Responses:
    """What N equally likely responses a prompt are, enumerated."""
    prompts, count = half.reward.shape
    return optimum.Responses(
        np.repeat(np.arange(prompts), count), np.full(prompts, 1 / prompts),
        np.full(prompts * count, -math.log(count)), half.reward.ravel(), half.cost.ravel(),
    )  # fmt: skip


def twice(half: Samples) -> Samples:
    """All responses twice, so that both halves are the whole and nothing is corrected."""
    named = {name: np.tile(own, 2) for name, own in half.named_costs.items()}
    return Samples(np.tile(half.reward, 2), np.tile(half.cost, 2), named)


@pytest.mark.parametrize("multiplier", [0.0, 0.7])
@pytest.mark.parametrize("constraint", ["mean", "kl_in_cost"])
def test_the_weights_are_those_of_the_enumerated_optimum(constraint: Any, multiplier: float) -> None:
    samples = some(3, 50)
    known = uniform(samples)
    policy = optimum.tilted(known, multiplier, 0.3, constraint == "kl_in_cost")
    (*_, found), sizes = tilt(samples, Problem(constraint, 0.0, 0.3), multiplier)
    assert sizes == pytest.approx(1 / (policy**2).reshape(3, 50).sum(1), rel=150 * FLOAT64)
    wanted = [known.mean(policy, known.reward), known.mean(policy, known.cost), known.divergence(policy)]
    wanted.append(wanted[1] + (0.3 * wanted[2] if constraint == "kl_in_cost" else 0.0))
    assert found.mean(1) == pytest.approx(wanted, abs=150 * FLOAT64)


@pytest.mark.parametrize("limit", [0.0, -0.3])
@pytest.mark.parametrize("constraint", ["mean", "kl_in_cost"])
def test_the_optimum_is_met_but_for_the_grid(constraint: Any, limit: float) -> None:
    half = some(5, 60)
    samples, problem = twice(half), Problem(constraint, limit, 0.4)
    best = optimum.solve(uniform(half), limit, 0.4, constraint == "kl_in_cost")
    found = at_limit(tilted(samples, problem, grid(samples, problem), rng()), limit)
    assert (found["feasible"], found["slack"]) == (True, False)
    # Between neighbours of the grid, at most h = λ/50 apart, a line is off by h²/8 times the second derivative.
    h = best.multiplier / 50
    sides = [tilt(samples, problem, best.multiplier + step)[0][2].mean(-1) for step in (-h, 0.0, h)]
    reward, cost, kl, bounded = np.abs(sides[0] - 2 * sides[1] + sides[2]) / 8 * 1.2  # it changes by less than a fifth
    slope = (sides[0] - sides[2]) / (2 * h)
    off = bounded / slope[BOUNDED]  # of λ
    assert found["bounded"] == pytest.approx(limit, abs=FLOAT64)
    assert found["multiplier"] == pytest.approx(best.multiplier, abs=off)
    assert found["reward"] == pytest.approx(best.reward, abs=reward + off * abs(slope[REWARD]) * 1.2)
    assert found["cost"] == pytest.approx(best.cost, abs=cost + off * abs(slope[COST]) * 1.2)
    assert found["kl"] == pytest.approx(best.kl, abs=kl + off * abs(slope[KL]) * 1.2)


def test_each_prompt_keeps_its_own_limit() -> None:
    half = some(5, 60)
    best = optimum.solve_each(uniform(half), -0.1, 0.4)
    found = reference_frontier(twice(half), -0.1, [0.4], [1], "per_prompt")["at_limit"]
    assert (found["feasible"], found["slack"]) == (best.feasible, False)
    for name in ("multiplier", "reward", "cost", "kl"):
        assert found[name] == pytest.approx(getattr(best, name), abs=1e-9), name
    hard = reference_frontier(twice(half), -9.0, [0.4], [1], "per_prompt")["at_limit"]
    assert (hard["feasible"], hard["multiplier"]) == (False, None)


def test_a_prompt_half_of_whose_samples_cannot_keep_the_limit_is_not_corrected() -> None:
    """Its half's multiplier is the largest that is tried; as a correction it would make the mean negative."""
    half = some(5, 60)
    cost = half.cost.copy()
    cost[0] += 3.0  # all of the first prompt's, ...
    cost[0, :5] = -2.0  # ... but a few of its first half
    found = reference_frontier(Samples(half.reward, cost), -0.1, [0.4], [1], "per_prompt")["at_limit"]
    assert found["feasible"]
    assert 0 < found["multiplier"] < 10
    low, high = found["intervals"]["multiplier"]
    assert low <= found["multiplier"] <= high


def test_rewards_that_are_all_the_same_have_a_frontier() -> None:
    samples = Samples(np.ones((5, 60)), some(5, 60).cost)
    found = reference_frontier(samples, -0.5, [0.4], [1, 2])["at_limit"]
    assert found["feasible"]
    assert (found["reward"], found["cost"]) == (pytest.approx(1.0), pytest.approx(-0.5, abs=1e-3))


def test_a_probability_is_the_mean_of_an_indicator() -> None:
    half = some(5, 60)
    harmful = Samples(half.reward, (half.cost > 0).astype(float))
    best = optimum.solve(uniform(harmful), 0.2, 0.4)
    found = reference_frontier(twice(half), 0.2, [0.4], [1], "probability")["at_limit"]
    assert found["bounded"] == pytest.approx(0.2, abs=FLOAT64)
    for name in ("multiplier", "reward", "kl"):
        assert found[name] == pytest.approx(getattr(best, name), abs=2e-3), name


def test_a_cvar_is_kept_and_no_other_threshold_gives_more() -> None:
    half, level, limit = some(5, 60), 0.8, 0.4
    found = reference_frontier(twice(half), limit, [0.4], [1], "cvar", level)["at_limit"]

    def attained(threshold: float) -> optimum.Optimum:
        signal = threshold + np.maximum(half.cost - threshold, 0) / (1 - level)
        return optimum.solve(uniform(Samples(half.reward, signal)), limit, 0.4)

    tried = [attained(threshold) for threshold in np.linspace(half.cost.min(), half.cost.max(), 200)]
    best = max((own for own in tried if own.feasible), key=lambda own: own.objective)
    mine = found["reward"] - 0.4 * found["kl"]
    assert mine == pytest.approx(best.objective, abs=2e-3)  # of 200 thresholds

    def cvar(policy: Any) -> float:
        order = np.argsort(-half.cost.ravel())
        weight = (policy / 5)[order]
        worst = np.clip((1 - level) - (np.cumsum(weight) - weight), 0, weight)
        return float(worst @ half.cost.ravel()[order] / (1 - level))

    assert cvar(best.policy) <= limit + 1e-6
    slack = reference_frontier(twice(half), 9.0, [0.4], [1], "cvar", level)["at_limit"]
    assert slack["slack"]
    true = cvar(optimum.tilted(uniform(half), 0.0, 0.4))
    assert slack["bounded"] == pytest.approx(true, abs=5e-3)


def test_several_limits_are_met_by_multipliers_of_their_own() -> None:
    draws, limits, beta = rng(3), {"harm": 0.0, "length": -0.2}, 0.5
    costs = {name: draws.normal(size=(2, 7)) for name in limits}
    half = Samples(draws.normal(size=(2, 7)) + 0.8 * sum(costs.values()), sum(costs.values()), costs)
    names = list(limits)

    def split(x: Any) -> Any:
        return x.reshape(2, 7)

    def objective(x: Any) -> float:
        policy = split(x)
        kl = (policy * np.log(np.maximum(policy, 1e-12) * 7)).sum() / 2
        return -(float((policy * half.reward).sum() / 2) - beta * float(kl))

    brute = minimize(
        objective,
        np.full(14, 1 / 7),
        bounds=[(1e-9, 1)] * 14,
        constraints=[
            {"type": "eq", "fun": lambda x: split(x).sum(1) - 1},
            *(
                {"type": "ineq", "fun": lambda x, name=name: limits[name] - (split(x) * costs[name]).sum() / 2}
                for name in names
            ),
        ],
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    found = reference_frontier(twice(half), limits, [beta], [1])["at_limit"]
    assert found["feasible"]
    assert all(found["multipliers"][name] > 0 for name in names)
    assert found["multiplier"] == pytest.approx(sum(found["multipliers"].values()))
    assert [found["costs"][name] for name in names] == pytest.approx(list(limits.values()), abs=1e-4)
    assert found["reward"] - beta * found["kl"] == pytest.approx(-brute.fun, abs=1e-4)
    assert found["reward"] == pytest.approx(float((split(brute.x) * half.reward).sum() / 2), abs=1e-3)
    hard = reference_frontier(twice(half), {"harm": -9.0, "length": 0.0}, [beta], [1])["at_limit"]
    assert not hard["feasible"]


def test_a_limit_that_is_slack_and_one_that_is_infeasible() -> None:
    samples = some(20, 64)

    def found(limit: float) -> Any:
        problem = Problem("mean", limit, 0.4)
        return at_limit(tilted(samples, problem, grid(samples, problem), rng()), limit)

    slack, hard = found(9.0), found(-9.0)
    assert (slack["slack"], slack["feasible"], slack["multiplier"]) == (True, True, 0.0)
    assert slack["cost"] == pytest.approx(corrected(tilt(samples, Problem("mean", 9.0, 0.4), 0.0)[0])[COST].mean())
    assert (hard["slack"], hard["feasible"], hard["multiplier"]) == (False, False, None)
    assert "multiplier" not in hard["intervals"]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("multiplier", [0.0, 1.5])
def test_best_of_n_is_the_mean_over_all_choices(n: int, multiplier: float) -> None:
    samples = some(4, 6)
    found = best_of(samples, Problem("mean", 0.0, 1.0), n, np.array([multiplier]), rng()).values[:, 0]
    score = samples.reward - multiplier * samples.cost
    wanted = np.zeros((2, 4))
    choices = list(itertools.combinations(range(6), n))
    for prompt in range(4):
        for choice in choices:
            best = max(choice, key=lambda j, prompt=prompt: score[prompt, j])
            wanted[:, prompt] += np.array([samples.reward[prompt, best], samples.cost[prompt, best]]) / len(choices)
    assert found[[REWARD, COST]] == pytest.approx(wanted, abs=64 * FLOAT64)
    assert found[KL] == pytest.approx(math.log(n) - (n - 1) / n, abs=64 * FLOAT64)  # no two score the same


def chosen(scores: Any, n: int, temperature: float | None) -> Any:
    """P(each) of one of n draws, by enumeration: the best, equal ones alike, or ∝ exp(score / temperature)."""
    found = np.zeros(len(scores))
    for draw in itertools.product(range(len(scores)), repeat=n):
        own = scores[list(draw)]
        weight = (own == own.max()) * 1.0 if temperature is None else np.exp((own - own.max()) / temperature)
        np.add.at(found, list(draw), weight / weight.sum() / len(scores) ** n)
    return found


def divergence(policy: Any) -> float:
    return float((policy * np.log(np.maximum(policy, 1e-300) * len(policy))).sum())


def test_equal_scores_make_the_best_of_n_differ_less_from_the_reference() -> None:
    scores = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    samples = Samples(scores[None], np.zeros((1, 7)))
    found = best_of(samples, Problem("mean", 0.0, 1.0), 3, np.zeros(1), rng()).values[KL, 0, 0]
    assert found == pytest.approx(divergence(chosen(scores, 3, None)), abs=64 * FLOAT64)
    assert found < math.log(3) - 2 / 3


def test_a_soft_choice_is_a_softmax_and_never_farther_than_the_best() -> None:
    samples = some(4, 6)
    for n, wanted in ((1, samples.reward.mean(1)), (6, tilt(samples, Problem("mean", 0.0, 0.3), 0.0)[0][2, REWARD])):
        found = soft_best_of(samples, Problem("mean", 0.0, 0.3), n, np.zeros(1), rng()).values[REWARD, 0]
        assert found == pytest.approx(wanted, abs=64 * FLOAT64), n
    scores = samples.reward[0]
    farthest = divergence(chosen(scores, 4, None))
    assert all(divergence(chosen(scores, 4, temperature)) < farthest for temperature in (0.05, 0.3, 2.0))


def test_constrained_best_of_n_meets_the_limit_and_more_samples_gain() -> None:
    found = reference_frontier(some(40, 64), -0.2, [0.3, 1.0], [1, 4, 16])
    best = found["best_of_n"]
    assert [row["feasible"] for row in best] == [False, True, True]  # of one there is nothing to choose
    assert [row["cost"] for row in best[1:]] == pytest.approx([-0.2, -0.2], abs=FLOAT64)
    assert best[2]["reward"] > best[1]["reward"] > found["soft_best_of_n"][1]["reward"]
    assert [row["kl_bound"] for row in best] == pytest.approx([0, math.log(4) - 3 / 4, math.log(16) - 15 / 16])
    assert [row["judge_calls"] for row in best] == [2, 8, 32]
    costs = [row["cost"] for row in found["front"]]
    assert costs == sorted(costs, reverse=True)
    assert np.diff(costs) == pytest.approx(np.diff(costs)[0], rel=0.05)
    by_beta = found["by_kl_coefficient"]
    assert [row["kl_coefficient"] for row in by_beta][:2] == [0.3, 1.0]
    ordered = sorted(by_beta, key=lambda row: row["kl_coefficient"])
    for name in ("reward", "kl"):  # a dearer KL leaves less
        assert [row[name] for row in ordered] == sorted((row[name] for row in ordered), reverse=True)
    assert [row["constraint"] for row in found["by_constraint"]] == ["mean", "kl_in_cost", "per_prompt"]
    assert found["by_constraint"][0]["reward"] > found["by_constraint"][1]["reward"]


def test_where_weights_collapse_it_says_so() -> None:
    """At β = 0.1 the optimum lives on responses that the reference gives once in thousands."""
    found = reference_frontier(drawn(8, 64, 0), 0.0, [0.1], [1])
    assert found["at_limit"]["effective_sample_size"] < 10
    assert not found["trusted"]
    assert found["samples_needed"] > 64


@pytest.mark.parametrize(
    ("beta", "limit", "constraint"), [(0.5, 0.0, "mean"), (1.0, -0.3, "mean"), (1.0, 0.3, "kl_in_cost")]
)
def test_intervals_cover_the_exact_optimum(beta: float, limit: float, constraint: Any) -> None:
    """Of 100 draws an interval that covers 93 % covers fewer than 84 once in a thousand times."""
    found = shares([hits(seed, beta, limit, 48, 256, constraint) for seed in range(100)])
    assert found.pop("trusted") >= 0.8
    assert min(found.values()) >= 0.84, found
