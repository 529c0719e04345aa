"""Every algorithm reaches the exact optimum of the problem that it states, on a text CMDP small enough to enumerate.

A short form of `textsafe study exact`: 312 responses, 40 updates, three seeds. The bugs that it catches are planted
below.
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import algos
import textsafe_gym  # noqa: F401 (registers the environments)
from algos.core import constraints, objectives, sources, trust_region
from tests.helpers.algorithms import SAMPLING
from textsafe_gym.envs.exact import ExactTask
from textsafe_gym.envs.optimum import solve
from textsafe_gym.evaluation.study import Score, score
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
    "p3o": {"penalty": 0.7},
    "ipo": {"barrier_t": 100.0, "penalty_max": 2.0},
    "crpo": {"cost_window": 128, "tolerance": 0.05},
    "repo": {"multiplier_init": 0.0, "multiplier_learning_rate": 0.09},
    "cpo": TRUST_REGION,
    "pcpo": TRUST_REGION,
    "trpo_lagrangian": TRUST_REGION,
}
PROBLEMS = {"ppo_lagrangian": "kl_in_cost", "repo": "per_prompt"}
PROBLEMS |= dict.fromkeys(["ppo", "reward_shaping", "rloo", "grpo"], "weighted")


def train(name: str, seed: int = 0, **changes: Any) -> Score:
    fields = importlib.import_module(f"algos.{name}").Config.model_fields
    config = {key: value for key, value in {**SHORT, **OWN.get(name, {}), **changes}.items() if key in fields}
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=128, cost_limit=LIMIT, kl_coefficient=KL, **WORLD)
    base: Any = env.unwrapped
    trainer = algos.make(name, env, preset="paper", seed=seed, **config)
    trainer.learn()
    summary = {
        "algorithm": name,
        "seed": seed,
        "cost_limit": LIMIT,
        "exact": base.evaluate(trainer.actor.model)._asdict(),  # type: ignore[attr-defined]
    }
    found = score(base, PROBLEMS.get(name, "mean"), summary, config.get("cost_weight", 0.0))
    print(name, found)
    return found


# Bounds on the mean over the seeds, which stand for processors as well: a last bit that is rounded otherwise can part
# two runs as another seed does. With a limit, a policy walks to and fro about it: single runs have a standard deviation
# of up to 0.06 in the fraction (crpo; others 0.05) and 0.019 in the violation; the means are 0.927 at least and 0.024
# at most (ipo and p3o, whose penalties give way at the limit). Without one, the fraction is 0.969 at least, with a
# deviation of 0.004.
SEEDS = (0, 1, 2)
LEAST, LEAST_OF_CRPO, LEAST_WITHOUT_LIMIT, MOST = 0.85, 0.8, 0.93, 0.05


@pytest.mark.parametrize("name", SAMPLING)
def test_the_optimum_is_reached_and_the_limit_kept(name: str) -> None:
    found = [train(name, seed) for seed in SEEDS]
    least = LEAST_WITHOUT_LIMIT if PROBLEMS.get(name) == "weighted" else LEAST_OF_CRPO if name == "crpo" else LEAST
    assert np.mean([one.fraction for one in found]) > least
    assert np.mean([one.violation for one in found]) < MOST


def altered_rollout(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], Any]) -> None:
    collect = sources.collect

    def altered(actor: Any, env: Any, seed: int, **roles: Any) -> Any:
        agent = Agent(actor, roles["critics"], roles["reference"])
        return change(agent, collect(actor, env, seed, **roles))

    monkeypatch.setattr(sources, "collect", altered)


def test_it_catches_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "mix_advantages", lambda reward, cost, price: (reward + price * cost) / (1 + price))
    found = train("cppo_pid")
    assert found.fraction < LEAST  # over three seeds: at most 0.42
    assert found.violation > MOST  # at least 0.45


def test_it_catches_a_missing_one_plus_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    # The optimum with the KL in the cost is π_ref·exp((R - λC) / (β(1 + λ))); without that KL in the advantages of the
    # cost it would be .../β. (The scale of the mixed advantages, 1 / (1 + λ), moves no stationary point: the reference
    # numbers hold it.)
    measure = constraints.Constraints.measure

    def forgetful(self: Any, rollout: Any, extra: Any = None) -> Any:
        return replace(measure(self, rollout, extra), signals=rollout.costs[None])

    monkeypatch.setattr(constraints.Constraints, "measure", forgetful)
    assert train("ppo_lagrangian").fraction < LEAST  # at most 0.79


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
    assert train("cpo").fraction < LEAST  # at most 0.31


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_it_catches_a_mis_scaled_trust_region(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    divergence, fisher = trust_region.TrustRegion.divergence, trust_region.TrustRegion.fisher
    monkeypatch.setattr(trust_region.TrustRegion, "divergence", lambda self: scale * divergence(self))
    monkeypatch.setattr(trust_region.TrustRegion, "fisher", lambda self, vector: scale * fisher(self, vector))
    assert train("trpo_lagrangian").fraction < LEAST


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
    assert found < limit + 0.05
    assert (reached - start) / (best.objective - start) > LEAST


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
    assert np.mean(found) < limit + 0.15
    assert np.mean(rewards) > base.evaluate(base.exact_task.reference).reward + 0.3


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
    assert np.mean(found["harm"]) < limits["harm"] + 0.15
    assert np.mean(found["length"]) < limits["length"] + 0.15
    assert np.mean(found["reward"]) > responses.mean(reference, responses.reward) + 0.3
