"""Every algorithm reaches the exact optimum of the problem that it states, on a text CMDP small enough to enumerate.

A short form of `textsafe study exact`: 255 responses, 40 updates, one seed. What it catches is planted below, bug by bug.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch

import algos
import textsafe_gym  # noqa: F401 (registers the environments)
from algos.core import trust_region
from textsafe_gym.evaluation.study import Score, score
from textsafe_gym.models.causal_lm import CausalLMPolicy

KL, LIMIT = 0.3, -0.1
SHORT = {
    "episodes": 40 * 128,
    "episodes_per_iteration": 128,
    "minibatch_size": 32,
    "learning_rate": 2e-3,
    "critic_learning_rate": 1e-2,
    "weight_decay": 0.0,
    "gae_lambda": 1.0,
    "value_coefficient": 0.1,
    "kl_coefficient": KL,
    "cost_window": 512,
    "multiplier_init": 0.5,
    "multiplier_learning_rate": 0.05,
    "max_kl": 0.02,
}
OWN: dict[str, dict[str, Any]] = {
    "ppo_lagrangian": {"limit_includes_kl": True, "multiplier_update": "projected"},
    "reward_shaping": {"cost_weight": 0.5},
    "p3o": {"penalty": 1.0},
    "ipo": {"barrier_t": 50.0, "penalty_max": 2.0},
    "repo": {"multiplier_init": 0.0},
}
PROBLEMS = {"ppo_lagrangian": "kl_in_cost", "repo": "per_prompt"}
PROBLEMS |= dict.fromkeys(["ppo", "reward_shaping", "rloo", "grpo"], "priced")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(name: str, **changes: Any) -> Score:
    fields = importlib.import_module(f"algos.{name}").Config.model_fields
    config = {key: value for key, value in {**SHORT, **OWN.get(name, {}), **changes}.items() if key in fields}
    env = gym.make_vec(
        "SafeRLHF-Exact-v0", num_envs=128, vocabulary=5, max_response_length=3, prompts=3, cost_limit=LIMIT, kl_coeff=KL
    )
    base: Any = env.unwrapped
    trainer = algos.make(name, env, **config)
    trainer.learn()
    summary = {
        "algorithm": name,
        "seed": 0,
        "cost_limit": LIMIT,
        "exact": base.evaluate(trainer.policy.model)._asdict(),  # type: ignore[attr-defined]
    }
    found = score(base, PROBLEMS.get(name, "mean"), summary, config.get("cost_weight", 0.0))
    print(name, found)
    return found


@pytest.mark.parametrize("name", sorted(algos.available()))
def test_the_optimum_is_reached_and_the_limit_kept(name: str) -> None:
    found = train(name)
    assert 0.95 < found.fraction
    assert found.violation < 0.02
