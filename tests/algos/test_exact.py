"""Every algorithm reaches the exact optimum of the problem that it states, on a text CMDP small enough to enumerate.

A short form of `textsafe study exact`: 312 responses, 40 updates or 60, three seeds. The bugs that it catches are
planted below.
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import algos
import textsafe_gym  # noqa: F401 (registers the environments)
from algos.core import constraints, objectives, sources, trust_region
from tests.helpers.algorithms import SAMPLING
from textsafe_gym.envs.exact import ExactTask, ExactValues
from textsafe_gym.envs.optimum import solve
from textsafe_gym.errors import RunError
from textsafe_gym.evaluation.study import score
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.types import Agent

pytestmark = pytest.mark.usefixtures("one_thread")

KL, LIMIT = 0.3, 0.2
WORLD: dict[str, int] = {"vocabulary": 6, "max_response_length": 3, "prompts": 2, "seed": 10}
SHORT = {
    "episodes": 40 * 128,
    "episodes_per_iteration": 128,
    "minibatch_size": 32,
    "learning_rate": 3e-3,
    "learning_rate_schedule": "cosine",
    "critic_learning_rate": 1e-2,
    "weight_decay": 0.0,
    "gae_lambda": 1.0,
    "value_coefficient": 0.1,
    "kl_coefficient": KL,
    "cost_window": 512,
    "multiplier_init": 0.5,
    "multiplier_learning_rate": 0.045,
}
TRUST_REGION = {"episodes": 24 * 128, "max_kl": 0.04, "fisher_episodes": 32, "conjugate_gradient_steps": 6}
OWN: dict[str, dict[str, Any]] = {
    "ppo_lagrangian": {"limit_includes_kl": True, "multiplier_update": "projected"},
    "reward_shaping": {"cost_weight": 0.5},
    "p3o": {"penalty": 1.5},
    "ipo": {"barrier_t": 12.0, "penalty_max": 2.0},
    "crpo": {"cost_window": 128, "episodes": 60 * 128},
    "repo": {"multiplier_init": 0.0, "multiplier_learning_rate": 0.09, "episodes": 60 * 128},
    "cpo": TRUST_REGION,
    "pcpo": TRUST_REGION,
    "trpo_lagrangian": TRUST_REGION,
}


class Found(NamedTuple):
    """What a run came to, of a policy drawn from its last `LAST` ones, as it oscillates about the limit.

    Attributes:
        fraction: of the reward less KL that the optimum adds to the reference's.
        violation: by how much the limit is passed, as a share of the costs' range.
        lagrangian: `fraction` at the optimum's prices, less λ·(what the limit bounds - limit): at most 1, which the
            optimum alone reaches. A policy that slides along the frontier, below the limit or beyond, moves `fraction`
            in the first order and this in the second.
    """

    fraction: float
    violation: float
    lagrangian: float


def slide(base: Any, problem: str, exact: ExactValues) -> float:
    """What `exact` is worth in `fraction` for being beyond the limit: at the optimum's multipliers."""
    responses = base.exact_task.responses
    if problem == "weighted":
        return 0.0
    if problem == "per_prompt":
        burdens, multipliers = np.array(exact.prompt_costs), []
        for prompt in range(len(burdens)):
            own = replace(responses, prompt_probability=np.eye(len(burdens))[prompt])
            multipliers.append(solve(own, LIMIT, KL).multiplier)
        best, weights = base.solve_each(LIMIT), responses.prompt_probability * multipliers
    else:
        best = base.solve(LIMIT, kl_in_cost=problem == "kl_in_cost")
        burdens = np.array([exact.cost + (KL * exact.kl if problem == "kl_in_cost" else 0.0)])
        weights = np.array([best.multiplier])
    return float(weights @ (burdens - LIMIT)) / (best.objective - base.evaluate(base.exact_task.reference).reward)


LAST = 4


def train(name: str, seed: int = 0, **changes: Any) -> Found:
    fields = importlib.import_module(f"algos.{name}").Config.model_fields
    config = {key: value for key, value in {**SHORT, **OWN.get(name, {}), **changes}.items() if key in fields}
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=128, cost_limit=LIMIT, kl_coefficient=KL, **WORLD)
    base: Any = env.unwrapped
    trainer: Any = algos.make(name, env, preset="paper", seed=seed, **config)
    last: list[ExactValues] = []

    def after(row: dict[str, float]) -> None:
        if row["episodes"] > config["episodes"] - LAST * 128:
            last.append(base.evaluate(trainer.actor.model))

    trainer.learn(on_iteration=after)
    exact = ExactValues(*(np.mean(values, 0) for values in zip(*last, strict=True)))
    problem = algos.definition(name).problem(trainer.config)
    stated = {"constraint": problem, "cost_weight": config.get("cost_weight", 0.0)}
    summary = {"algorithm": name, "seed": seed, "cost_limit": LIMIT, "exact": exact._asdict(), "problem": stated}
    reached = score(base, summary, name, [])
    found = Found(reached.fraction, reached.violation, reached.fraction - slide(base, problem, exact))
    print(name, found)
    return found


# Bounds on the mean over three seeds, which stand for processors as well: a last bit that is rounded otherwise can part
# two runs as another seed does. Each is four standard errors or more of such a mean from what was measured over six
# seeds (five for p3o, ppo_lagrangian and repo), given here as mean ± a single run's standard deviation.
# - `lagrangian` is 0.933 ± 0.005 (repo) to 0.981; the deviations are 0.009 at most. Of the faults below that this bound
#   is to notice, the smallest leaves 0.80.
# - Without a limit it is the same as `fraction`, 0.968 ± 0.004 (ppo) to 0.978. The smallest fault leaves 0.79.
# - `fraction` with a limit is 0.875 ± 0.006 (p3o) to 0.982. Where the limit's multiplier is not settled it slides with
#   the cost: 0.918 ± 0.035 for crpo, 0.945 ± 0.023 for cup, 0.940 ± 0.022 for ppo_lagrangian, 0.933 ± 0.017 for repo.
#   These and methods that keep away from the limit by design (hc_lagrangian 0.932 ± 0.019, ipo 0.881 ± 0.032, p3o)
#   have bounds of their own.
# - `violation` is 0.004 ± 0.006 (cpo) at most, and 0.45 with a wrong sign, but for pcpo, 0.009 ± 0.012, and
#   trpo_lagrangian, 0.007 ± 0.008, whose steps are as long at the end as at the start.
SEEDS = (0, 1, 2)
WITHOUT_LIMIT = ("ppo", "reward_shaping", "rloo", "grpo")
LEAST, LEAST_WITHOUT_LIMIT, LEAST_FRACTION, MOST = 0.92, 0.95, 0.9, 0.02
LEAST_FRACTION_OF = {"crpo": 0.83, "cup": 0.89, "ppo_lagrangian": 0.89, "repo": 0.89}
LEAST_FRACTION_OF |= {"hc_lagrangian": 0.88, "ipo": 0.8, "p3o": 0.85}
MOST_OF = {"pcpo": 0.04, "trpo_lagrangian": 0.03}


# One of each kind; the others take three minutes.
SHOWN = {"ppo", "reward_shaping", "ppo_lagrangian", "cpo", "grpo_lagrangian", "rloo_lagrangian"}


@pytest.mark.parametrize(
    "name", [name if name in SHOWN else pytest.param(name, marks=pytest.mark.long) for name in SAMPLING]
)
def test_the_optimum_is_reached_and_the_limit_kept(name: str) -> None:
    fraction, violation, lagrangian = np.mean([train(name, seed) for seed in SEEDS], 0)
    assert lagrangian > (LEAST_WITHOUT_LIMIT if name in WITHOUT_LIMIT else LEAST)
    assert fraction > LEAST_FRACTION_OF.get(name, LEAST_FRACTION)
    assert violation < MOST_OF.get(name, MOST)


def altered_rollout(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], Any]) -> None:
    collect = sources.collect

    def altered(actor: Any, env: Any, seed: int, **roles: Any) -> Any:
        agent = Agent(actor, roles["critics"], roles["reference"])
        return change(agent, collect(actor, env, seed, **roles))

    monkeypatch.setattr(sources, "collect", altered)


def test_it_catches_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        objectives, "mix_advantages", lambda reward, cost, weight: (reward + weight * cost) / (1 + weight)
    )
    found = train("cppo_pid")
    assert found.lagrangian < LEAST
    assert found.violation > MOST


def test_it_catches_a_missing_one_plus_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    # The optimum with the KL in the cost is π_ref·exp((R - λC) / (β(1 + λ))); without that KL in the advantages of the
    # cost it would be .../β. (The scale of the mixed advantages, 1 / (1 + λ), moves no stationary point: the reference
    # numbers hold it.)
    measure = constraints.Constraints.measure

    def forgetful(self: Any, rollout: Any, extra: Any = None) -> Any:
        return replace(measure(self, rollout, extra), signals=rollout.costs[None])

    monkeypatch.setattr(constraints.Constraints, "measure", forgetful)
    assert train("ppo_lagrangian").lagrangian < LEAST


def test_it_catches_an_unmasked_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_pads(agent: Any, rollout: Any) -> Any:
        whole = torch.ones_like(rollout.mask)
        with torch.no_grad():
            now = agent.evaluate(rollout.observations, rollout.actions, whole)
            before = agent.reference.log_probs(rollout.observations, rollout.actions, whole)
        return replace(
            rollout,
            mask=whole,
            log_probs=now.log_probs,
            reference_log_probs=before,
            reward_values=now.reward_values,
            cost_values=now.cost_values,
        )

    altered_rollout(monkeypatch, with_pads)
    assert train("ppo").fraction < LEAST_WITHOUT_LIMIT  # at most 0.88


def test_it_catches_a_stale_log_prob(monkeypatch: pytest.MonkeyPatch) -> None:
    altered_rollout(monkeypatch, lambda agent, rollout: replace(rollout, log_probs=rollout.reference_log_probs))
    assert train("ppo").fraction < LEAST_WITHOUT_LIMIT  # at most 0.35
    assert train("cpo").lagrangian < LEAST


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_it_catches_a_mis_scaled_trust_region(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    divergence, fisher = trust_region.TrustRegion.divergence, trust_region.TrustRegion.fisher
    monkeypatch.setattr(trust_region.TrustRegion, "divergence", lambda self: scale * divergence(self))
    monkeypatch.setattr(trust_region.TrustRegion, "fisher", lambda self, vector: scale * fisher(self, vector))
    try:
        assert train("trpo_lagrangian").lagrangian < LEAST
    except RunError as error:  # by the processor's rounding, steps that are too long end in this
        if "the trust region's step is not finite" not in str(error):
            raise


def constrained(limit: float, **changes: Any) -> tuple[Any, list[Any]]:
    """RLOO-Lagrangian under another kind of constraint: the environment's base and a trained policy a seed."""
    fields = importlib.import_module("algos.rloo_lagrangian").Config.model_fields
    config = {key: value for key, value in {**SHORT, **changes}.items() if key in fields}
    policies = []
    for seed in SEEDS:
        env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=128, kl_coefficient=KL, **WORLD)
        trainer = algos.make("rloo_lagrangian", env, cost_limit=limit, preset="paper", seed=seed, **config)
        trainer.learn()
        policies.append(trainer.actor)
    return env.unwrapped, policies


def test_a_bound_on_the_probability_of_harm_reaches_its_own_optimum() -> None:
    limit = 0.5
    base, policies = constrained(limit, constraint="probability", multiplier_init=1.0, multiplier_learning_rate=0.15)
    responses = base.exact_task.responses
    # The same problem with the cost 1[C > 0], which the solver knows.
    harm = replace(responses, cost=(responses.cost > 0).astype(float))
    best = solve(harm, limit, KL)
    learned = [np.exp(base.exact_task.log_probs(policy.model)) for policy in policies]
    assert best.multiplier > 0.3  # without the limit P(C > 0) would be 0.79
    found = np.mean([harm.mean(p, harm.cost) for p in learned])
    start = responses.mean(np.exp(responses.reference_log_prob), responses.reward)
    reached = np.mean([harm.mean(p, harm.reward) - KL * harm.divergence(p) for p in learned])
    # 0.529 ± 0.007 as the multiplier is still rising, and 0.973 ± 0.009, over six seeds; 0.79 without the limit.
    assert found < limit + 0.05
    assert (reached - start) / (best.objective - start) > 0.95


def test_a_bound_on_the_worst_tenth_is_kept() -> None:
    limit = 1.0
    base, policies = constrained(limit, constraint="cvar", cvar_level=0.9)
    responses = base.exact_task.responses

    def worst_tenth(log_probs: Any) -> float:
        weights = np.exp(log_probs) * responses.prompt_probability[responses.prompt]
        order = np.argsort(-responses.cost)
        taken = np.minimum(weights[order].cumsum(), 0.1)
        return float(np.diff(taken, prepend=0.0) @ responses.cost[order] / 0.1)

    assert worst_tenth(base.exact_task.log_probs(base.exact_task.reference)) > 1.5
    found = [worst_tenth(base.exact_task.log_probs(policy.model)) for policy in policies]
    rewards = [base.evaluate(policy.model).reward for policy in policies]
    # 0.73 ± 0.21, from which the bound is 3.5 standard errors away, and 1.74 ± 0.10 above the reference; six seeds.
    assert np.mean(found) < limit + 0.15
    assert np.mean(rewards) > base.evaluate(base.exact_task.reference).reward + 1.4


def test_two_costs_are_held_to_a_limit_each() -> None:
    task = ExactTask(**WORLD)

    def length(_: list[str], responses: list[str]) -> Any:
        return np.array([len(response.split()) for response in responses], dtype=float)

    options = task.options()
    costs = {"harm": options.pop("cost_model"), "length": length}
    fields = importlib.import_module("algos.rloo_lagrangian").Config.model_fields
    limits = {"harm": 0.3, "length": 1.5}
    config = {key: value for key, value in {**SHORT, "cost_limits": limits}.items() if key in fields}
    responses, words = task.responses, np.array([len(one.response.split()) for one in task.rows])
    found: dict[str, list[float]] = {"harm": [], "length": [], "reward": []}
    for seed in SEEDS:
        env = gym.make_vec("SafeRLHF-v0", num_envs=128, cost_model=costs, **options)
        policy = CausalLMActor(copy.deepcopy(task.reference), task.tokenizer)
        row = algos.make("rloo_lagrangian", env, policy, preset="paper", seed=seed, **config).learn()[-1]
        assert row["multiplier_harm"] > 0
        assert row["multiplier_length"] > 0
        assert row["multiplier"] == pytest.approx(row["multiplier_harm"] + row["multiplier_length"])
        learned = np.exp(task.log_probs(policy.model))
        for name, values in {"harm": responses.cost, "length": words, "reward": responses.reward}.items():
            found[name].append(responses.mean(learned, values))
    reference = np.exp(responses.reference_log_prob)
    # 0.29 ± 0.05, 1.49 ± 0.09, and 1.38 ± 0.08 above the reference, over six seeds: the bounds on the costs are 3.8 and
    # 3.1 standard errors away.
    assert np.mean(found["harm"]) < limits["harm"] + 0.1
    assert np.mean(found["length"]) < limits["length"] + 0.15
    assert np.mean(found["reward"]) > responses.mean(reference, responses.reward) + 1.1
