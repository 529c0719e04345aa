"""The enumerable environment: its rows are the MDP's, and its optima are optimal."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.special import logit

from tests.helpers.rounding import EXACT_LM, FLOAT32, FLOAT64, rounding
from textsafe_gym.envs.optimum import Responses, dual, solve, solve_each, solve_weighted, tilted
from textsafe_gym.errors import ConfigError, DataError, TextsafeError

NAME = "SafeRLHF-Exact-v0"
SMALL = {"vocabulary": 4, "max_response_length": 3, "prompts": 3, "seed": 5}
# A solution is a root, found to 1e-14, of sums over up to 120 responses of probabilities, whose logits R/β are 100 at
# most: a relative error of theirs is an absolute one of the exponent. About 1e-12.
SOLVED = rounding(terms=120, scale=100.0, dtype=torch.float64)


@pytest.fixture(scope="module")
def env() -> Any:
    return gym.make(NAME, **SMALL).unwrapped


def by_hand() -> Responses:
    """Two equally likely prompts of three responses each, all as probable for the reference."""
    return Responses(
        prompt=np.array([0, 0, 0, 1, 1, 1]),
        prompt_probability=np.array([0.5, 0.5]),
        reference_log_prob=np.full(6, -np.log(3)),
        reward=np.array([0.0, 1.0, 3.0, 0.0, 2.0, 3.0]),
        cost=np.array([0.0, 1.0, 4.0, 0.0, 1.0, 3.0]),
    )


def halfway(env: Any, kl_coefficient: float, kl_in_cost: bool = False) -> float:
    """A limit that binds and can be met."""
    free = env.solve(1e6, kl_coefficient, kl_in_cost)
    burden = free.cost + (kl_coefficient * free.kl if kl_in_cost else 0)
    return (burden + free.smallest_cost) / 2


def test_the_rows_are_every_way_to_end(env: Any) -> None:
    rows = env.enumerate()
    assert len(rows) == 3 * (1 + 3 + 9 + 27)
    assert len({(row.prompt, row.response) for row in rows}) == len(rows)
    responses = env.exact_task.responses
    np.testing.assert_allclose(np.bincount(responses.prompt, np.exp(responses.reference_log_prob)), 1, atol=FLOAT64)
    assert sum(row.prompt_probability for row in rows if row.response == "") == pytest.approx(1)
    # Helping harms, more for some prompts than for others.
    conflicts = [
        np.corrcoef(responses.reward[responses.prompt == i], responses.cost[responses.prompt == i])[0, 1]
        for i in range(3)
    ]
    assert len({round(conflict, 2) for conflict in conflicts}) == 3


def test_the_rows_pay_what_the_environment_pays(env: Any) -> None:
    word = env.tokenizer.get_vocab()
    for row in env.enumerate():
        env.reset(options={"prompt": row.prompt})
        tokens = [word[text] for text in row.response.split()]
        if len(tokens) < env.max_response_length:
            tokens.append(env.tokenizer.eos_token_id)
        for token in tokens:
            _, reward, terminated, _, info = env.step(token)
        assert terminated
        assert (info["prompt"], info["response"]) == (row.prompt, row.response)
        assert (reward, info["cost"]) == pytest.approx((row.reward, row.cost), abs=FLOAT64)


def test_a_policy_begins_as_the_reference() -> None:
    from textsafe_gym.models import make_actor
    from textsafe_gym.rollouts import collect

    envs = gym.make_vec(NAME, num_envs=256, **SMALL)
    rollout = collect(make_actor(envs), envs, seed=0)
    rows = {(row.prompt, row.response): row for row in envs.unwrapped.enumerate()}
    for i, info in enumerate(rollout.infos):
        row = rows[info["prompt"], info["response"]]
        spoken = float((rollout.log_probs[i] * rollout.mask[i]).sum())
        assert spoken == pytest.approx(row.reference_log_prob, abs=math.sqrt(4) * EXACT_LM)  # of up to 4 tokens
        assert float(rollout.episode_rewards[i]) == pytest.approx(row.reward, rel=FLOAT32)
        assert info["cost"] == pytest.approx(row.cost, abs=FLOAT64)


def test_a_case_worked_by_hand() -> None:
    # Per unit of cost the second prompt's first step is worth 2, the first prompt's steps 1 and 2/3, the last one 1/2.
    # A mean cost of 1.25 buys the steps worth 2 and 1, and a sixth of the step worth 2/3, which is the multiplier.
    best = solve(by_hand(), 1.25, 0.0)
    np.testing.assert_allclose(best.policy, [0, 5 / 6, 1 / 6, 0, 1, 0], atol=SOLVED)
    assert (best.reward, best.cost, best.multiplier) == pytest.approx((5 / 3, 1.25, 2 / 3))
    assert best.feasible
    assert best.smallest_cost == 0
    # With two responses and a uniform reference the tilted policy is a logistic function, and λ can be solved for.
    two = Responses(np.zeros(2, int), np.ones(1), np.full(2, np.log(0.5)), np.array([0.0, 2.0]), np.array([0.0, 1.0]))
    best = solve(two, 0.25, 0.5)
    assert best.multiplier == pytest.approx(2 - 0.5 * logit(0.25))
    np.testing.assert_allclose(best.policy, [0.75, 0.25], atol=SOLVED)
    # The KL in the cost as well: cost 0.25 + β·KL is exactly spent by that policy if the limit is that much higher.
    both = solve(two, 0.25 + 0.5 * best.kl, 0.5, kl_in_cost=True)
    np.testing.assert_allclose(both.policy, best.policy, atol=SOLVED)
    assert (2 - both.multiplier) / (0.5 * (1 + both.multiplier)) == pytest.approx(logit(0.25))


@pytest.mark.parametrize("kl_in_cost", [False, True])
@pytest.mark.parametrize("kl_coefficient", [0.05, 0.3])
def test_strong_duality_and_nothing_better_nearby(env: Any, kl_coefficient: float, kl_in_cost: bool) -> None:
    responses = env.exact_task.responses
    limit = halfway(env, kl_coefficient, kl_in_cost)
    best = solve(responses, limit, kl_coefficient, kl_in_cost)
    assert best.feasible
    assert best.multiplier > 0
    assert best.dual == pytest.approx(best.objective, abs=SOLVED)
    burden = best.cost + (kl_coefficient * best.kl if kl_in_cost else 0)
    assert burden == pytest.approx(limit, abs=SOLVED)
    for multiplier in np.linspace(0, 3 * best.multiplier, 50):
        assert dual(responses, multiplier, limit, kl_coefficient, kl_in_cost) >= best.dual - SOLVED
    rng = np.random.default_rng(0)
    tried = 0
    for _ in range(2000):
        other = best.policy * np.exp(rng.normal(scale=0.05, size=len(best.policy)))
        other /= np.bincount(responses.prompt, other)[responses.prompt]
        spent = responses.mean(other, responses.cost) + (
            kl_coefficient * responses.divergence(other) if kl_in_cost else 0
        )
        if spent <= limit:
            tried += 1
            assert (
                responses.mean(other, responses.reward) - kl_coefficient * responses.divergence(other) < best.objective
            )
    assert tried > 100


def test_the_two_solvers_meet_as_the_penalty_vanishes(env: Any) -> None:
    limit = halfway(env, 0.0)
    linear = env.solve(limit, 0.0)
    gaps = [linear.reward - env.solve(limit, kl_coefficient).objective for kl_coefficient in (1e-1, 1e-2, 1e-3)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.02
    assert linear.dual == pytest.approx(linear.reward, abs=SOLVED)
    assert env.solve(limit, 1e-3).cost == pytest.approx(limit)
    assert linear.cost == pytest.approx(limit)


def test_newton_finds_the_same_multiplier(env: Any) -> None:
    responses, kl_coefficient, limit = env.exact_task.responses, 0.3, halfway(env, 0.3)
    multiplier = 0.0
    for _ in range(100):
        policy = tilted(responses, multiplier, kl_coefficient)
        means = np.bincount(responses.prompt, policy * responses.cost)
        squares = np.bincount(responses.prompt, policy * responses.cost**2)
        slope = responses.mean(policy, responses.cost) - limit
        multiplier = max(
            multiplier + kl_coefficient * slope / (responses.prompt_probability @ (squares - means**2)), 0.0
        )
    assert solve(responses, limit, kl_coefficient).multiplier == pytest.approx(multiplier, abs=SOLVED)


def test_a_limit_that_binds_nothing_has_no_price(env: Any) -> None:
    for kl_coefficient in (0.0, 0.2):
        best = env.solve(100.0, kl_coefficient)
        assert best.multiplier == 0
        assert best.feasible
    np.testing.assert_allclose(best.policy, tilted(env.exact_task.responses, 0.0, 0.2))


@pytest.mark.parametrize(("kl_coefficient", "kl_in_cost"), [(0.0, False), (0.2, False), (0.2, True)])
def test_an_infeasible_limit_is_said_with_the_smallest_cost(env: Any, kl_coefficient: float, kl_in_cost: bool) -> None:
    best = env.solve(-100.0, kl_coefficient, kl_in_cost)
    assert not best.feasible
    assert best.multiplier == np.inf
    spent = best.cost + (kl_coefficient * best.kl if kl_in_cost else 0)
    assert spent == pytest.approx(best.smallest_cost, abs=1e-7)  # the linear program's solver promises no more
    assert env.solve(best.smallest_cost + 1e-3, kl_coefficient, kl_in_cost).feasible
    assert not env.solve(best.smallest_cost - 1e-3, kl_coefficient, kl_in_cost).feasible


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.2])
def test_the_frontier_rises_and_flattens(env: Any, kl_coefficient: float) -> None:
    points = env.frontier(kl_coefficient, 9)
    costs, objectives = np.array([(point.cost, point.objective) for point in points]).T
    assert len(points) == 9
    assert (np.diff(costs) < 0).all()
    assert (np.diff(objectives) < 0).all()
    assert (np.diff(objectives) / np.diff(costs) >= -SOLVED).all()
    assert (np.diff([point.multiplier for point in points]) >= -SOLVED).all()


def test_the_seed_and_the_sizes_make_the_world() -> None:
    def rows(**changes: int) -> list[Any]:
        return gym.make(NAME, **{**SMALL, **changes}).unwrapped.enumerate()

    assert rows() == rows()
    assert rows() != rows(seed=6)
    assert len(rows(vocabulary=3)) == 3 * (1 + 2 + 4 + 8)


def test_a_response_is_paid_by_its_tables(env: Any) -> None:
    """A neighbour's reward is in the row of the first word and the column of the one that follows."""
    task = env.exact_task
    helpful, pairs, harmful = task.tables
    words = np.array([[2, 0, 1], [1, 1, 0]])
    rewards = [helpful[1, row].sum() + pairs[1, row[0], row[1]] + pairs[1, row[1], row[2]] for row in words]
    np.testing.assert_allclose(task.scores("reward", 1, words), rewards, atol=FLOAT64)
    np.testing.assert_allclose(task.scores("cost", 1, words), [harmful[1, row].sum() for row in words], atol=FLOAT64)


def test_it_is_an_environment_like_the_other() -> None:
    check_env(gym.make(NAME, **SMALL).unwrapped)
    env = gym.make(NAME, cost_limit=-0.5, kl_coefficient=0.3, **SMALL)
    assert env.unwrapped.cost_limit == -0.5
    assert gym.make(env.spec).unwrapped.enumerate() == env.unwrapped.enumerate()
    assert np.array_equal(env.unwrapped.solve().policy, env.unwrapped.solve(-0.5, 0.3).policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 2}, "vocabulary: expected a whole number, at least 3, got 2"),
        ({"vocabulary": 99}, "vocabulary = 99: at most"),
        ({"prompts": 10}, "prompts = 10: at most 9"),
        ({"prompts": True}, "prompts: expected a whole number"),
        ({"max_response_length": 0}, "max_response_length: expected a whole number, at least 1"),
        ({"max_response_length": 12}, "too many to list"),
        ({"seed": -1}, "seed: expected a whole number, at least 0"),
        ({"cost_limit": float("nan")}, "cost_limit"),
        ({"kl_coefficient": -1.0}, "kl_coefficient = -1.0: expected a finite number, at least 0"),
        ({"kl_coefficient": "high"}, "kl_coefficient = 'high': expected a finite number"),
    ],
)
def test_wrong_sizes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TextsafeError, match=message) as caught:
        gym.make(NAME, **{**SMALL, **options})
    with pytest.raises(TextsafeError, match=message):
        gym.make_vec(NAME, num_envs=2, **{**SMALL, **options})
    assert "\n" not in str(caught.value)


def test_wrong_questions_are_one_line(env: Any) -> None:
    with pytest.raises(ConfigError, match="kl_coefficient = -1"):
        env.solve(0.0, -1)
    with pytest.raises(ConfigError, match="cost_limit = nan"):
        env.solve(float("nan"))
    with pytest.raises(ConfigError, match="n = 1: a frontier takes"):
        env.frontier(n=1)
    env.reset(options={"prompt": "ab"})
    with pytest.raises(DataError, match="has no prompt 'ab'; its prompts"):
        env.step(0)


def test_a_price_stands_for_its_limit() -> None:
    responses = by_hand()
    best = solve(responses, 1.0, 0.5)
    found = solve_weighted(responses, best.multiplier, 0.5)
    np.testing.assert_allclose(found.policy, best.policy, atol=SOLVED)
    assert found.objective == pytest.approx(best.objective)
    with pytest.raises(ConfigError, match="cost_weight = -1"):
        solve_weighted(responses, -1, 0.5)
    with pytest.raises(ConfigError, match="kl_coefficient = 0"):
        solve_weighted(responses, 1.0, 0.0)


def test_each_prompt_by_itself_by_hand() -> None:
    # Both prompts' free optima are far above a cost of 1, so that each has E[C | x] = 1.
    best = solve_each(by_hand(), 1.0, 0.5)
    costs = np.bincount(by_hand().prompt, best.policy * by_hand().cost)
    np.testing.assert_allclose(costs, [1.0, 1.0], atol=SOLVED)
    assert best.objective < solve(by_hand(), 1.0, 0.5).objective - 0.005  # which may trade one prompt for the other
    assert best.dual == pytest.approx(best.objective)
    assert not solve_each(by_hand(), -0.1, 0.5).feasible


def test_a_models_expectations_are_those_of_its_responses() -> None:
    from textsafe_gym.models import make_actor
    from textsafe_gym.rollouts import collect

    envs = gym.make_vec(NAME, num_envs=2048, **SMALL)
    base: Any = envs.unwrapped
    actor: Any = make_actor(envs)
    frozen = actor.reference()
    reference = base.evaluate(actor.model)
    assert reference.kl == pytest.approx(0.0, abs=FLOAT64)
    with torch.no_grad():
        actor.model.lm_head.weight *= 3
    exact = base.evaluate(actor.model)
    rollout = collect(actor, envs, seed=0, reference=frozen)
    kls = (rollout.log_probs - rollout.reference_log_probs).sum(1)
    for value, sample in (
        (exact.reward, rollout.episode_rewards),
        (exact.cost, rollout.episode_costs),
        (exact.kl, kls),
    ):
        assert value == pytest.approx(sample.mean().item(), abs=4 * sample.std().item() / 2048**0.5)
    assert exact.kl > 0.3
    assert np.mean(exact.prompt_costs) == pytest.approx(exact.cost)


def test_preferences_are_bradley_terrys_on_pairs_of_the_reference(env: Any) -> None:
    known = {(row.prompt, row.response): row for row in env.enumerate()}
    pairs = env.preferences(4000, 7)
    assert pairs[:9] == env.preferences(4000, 7)[:9] != env.preferences(4000, 8)[:9]
    for pair in pairs:
        better, worse = known[pair.prompt, pair.better], known[pair.prompt, pair.worse]
        assert better is not worse
        assert better.reward >= worse.reward
        assert logit(pair.probability) == pytest.approx(better.reward - worse.reward)
    # A pair (i, j) of a prompt is drawn with 2·p_i·p_j over what different pairs have together; each response's share
    # of all 8000 places has a standard deviation of at most 0.5 / √4000 = 0.008.
    wanted = {key: np.exp(row.reference_log_prob) for key, row in known.items()}
    different = {text: 1 - sum(p * p for (prompt, _), p in wanted.items() if prompt == text) for text, _ in wanted}
    for key, p in wanted.items():
        found = sum(key in {(pair.prompt, pair.better), (pair.prompt, pair.worse)} for pair in pairs)
        assert found / 4000 == pytest.approx(2 * p * (1 - p) / different[key[0]] / 3, abs=0.032)
