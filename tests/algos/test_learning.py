"""The algorithms solve problems whose constrained optimum is known.

What is held is the mean over three seeds, which stand for processors as well: a last bit that is rounded otherwise can
part two runs as another seed does. What was measured is given as mean ± a single run's standard deviation, and a bound
is four or more of this over √3 away, unless it says so. Measured faults are those of PPO-Lagrangian with the cost's
advantages added, not subtracted ("sign"), or with reward and cost exchanged ("exchanged").
"""

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import algos
from tests.helpers.algorithms import SAMPLING
from tests.helpers.cmdps import Bandit, Crossing, Tracking, vector
from textsafe_gym.models import make_actor

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {
    "preset": "paper",
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "learning_rate_schedule": "constant",
    "epochs": 4,
    "minibatch_size": 16,
    "episodes_per_iteration": 32,
    "episodes": 1600,
}
DUAL = {"multiplier_update": "projected", "multiplier_init": 0.0, "multiplier_learning_rate": 0.05, "cost_window": 64}
SEEDS = (0, 1, 2)


def train(name: str, env: Any, log_std: float = -1.5, **config: Any) -> dict[str, Any]:
    """The metrics' mean over the last quarter of the iterations and over the seeds.

    In `Bandit`, cost and KL are those of the arms' `probabilities`, which are there as well. In `Crossing`, the reward
    is that of an episode of the mean length, as the lengths that were drawn say nothing of the policy. In `Tracking`,
    the actions begin with a standard deviation of 0.2, as one of 1 alone pays -8.
    """
    rows: list[dict[str, Any]] = []
    fields = {*algos.config_class(name).model_fields, "preset"}
    shared = {key: value for key, value in FAST.items() if key in fields}
    for seed in SEEDS:
        envs = vector(env, 32)
        torch.manual_seed(seed)
        actor: Any = make_actor(envs)
        if env is Tracking:
            torch.nn.init.constant_(actor.log_std, log_std)
        own: list[dict[str, Any]] = []

        def after(row: dict[str, float], actor: Any = actor, own: list[dict[str, Any]] = own) -> None:
            own.append({**row, **(exactly(actor) if env is Bandit else {})})

        algos.make(name, envs, actor, seed=seed, **{**shared, **config}).learn(on_iteration=after)
        rows += own[3 * len(own) // 4 :]
    found = {key: np.mean([row[key] for row in rows], 0) for key in rows[0]}
    if env is Crossing:
        found["reward"] *= Crossing.STEPS / found["response_length"]
    return found


@torch.no_grad()
def exactly(actor: Any) -> dict[str, Any]:
    p = torch.softmax(actor.network(torch.ones(1)), 0).double().numpy()
    return {"probabilities": p, "cost": p @ Bandit.COSTS, "kl": p @ np.log(3 * p)}


@pytest.mark.parametrize("rule", ["projected", pytest.param("log", marks=pytest.mark.long)])
def test_the_bandit_is_solved_and_its_limit_met(rule: str) -> None:
    dual = {**DUAL, "multiplier_update": rule, "multiplier_init": 0.0 if rule == "projected" else 0.5}
    dual |= {"multiplier_learning_rate": 0.08}
    metrics = train("ppo_lagrangian", Bandit, episodes=5600, kl_coefficient=0.2, **dual)
    probabilities, multiplier = Bandit.optimum(kl=0.2)
    # Over four seeds and 4800 episodes: 0.008 ± 0.005 off, a cost of -0.013 ± 0.009 and a multiplier 0.008 ± 0.005 off;
    # both faults end at the forbidden arm: cost 1, multiplier 4.
    assert np.abs(metrics["probabilities"] - probabilities).max() < 0.05
    assert metrics["cost"] == pytest.approx(Bandit.COST_LIMIT, abs=0.03)
    assert metrics["multiplier"] == pytest.approx(multiplier, abs=0.05)


def test_ppo_lagrangian_on_box_actions() -> None:
    metrics = train("ppo_lagrangian", Tracking, episodes=3200, kl_coefficient=0.0, **DUAL)
    # Over three seeds: 0.84 ± 0.05, about the limit and not below it; -1.40 ± 0.05, of which a part is the noise of the
    # Gaussian, -8·σ²; and 1.10 ± 0.19, as the multiplier oscillates. A wrong sign has a cost of 12, whose
    # multiplier grows by 0.5 an iteration, exchanged signals a reward of -21.
    assert metrics["cost"] <= Tracking.COST_LIMIT + 0.2
    assert metrics["reward"] > Tracking.REWARD - 0.3
    assert metrics["multiplier"] == pytest.approx(Tracking.MULTIPLIER, abs=0.75)


def test_ppo_lagrangian_on_discrete_actions() -> None:
    reward, multiplier = Crossing.optimum(kl=0.1)
    metrics = train("ppo_lagrangian", Crossing, episodes=3200, kl_coefficient=0.1, **DUAL)
    # Over three seeds: 0.435 ± 0.041; 4.19 ± 0.015 of the optimum's 4.22; 0.948 ± 0.001 of 1.03. A wrong sign has a
    # cost of 3.1, exchanged signals a reward of 1.8.
    assert metrics["cost"] <= Crossing.COST_LIMIT + 0.05
    assert metrics["reward"] == pytest.approx(reward, abs=0.1)
    assert metrics["multiplier"] == pytest.approx(multiplier, abs=0.15)


def test_ppo_takes_the_reward_whatever_it_costs() -> None:
    box = train("ppo", Tracking, kl_coefficient=0.0, episodes=800)
    assert box["reward"] > -0.5
    assert box["cost"] == pytest.approx(4.0, abs=0.3)
    discrete = train("ppo", Crossing, kl_coefficient=0.0, episodes=800)
    assert discrete["reward"] == pytest.approx(Crossing.STEPS, abs=0.3)
    assert discrete["cost_violation"] > 2


@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_reward_shaping_meets_the_limit_at_a_cost_weight_that_is_high_enough(env: Any) -> None:
    heavy = train("reward_shaping", env, cost_weight=1.0, kl_coefficient=0.0, episodes=960)
    light = train("reward_shaping", env, cost_weight=0.05, kl_coefficient=0.0, episodes=960)
    assert heavy["cost"] <= env.COST_LIMIT
    assert light["cost"] > env.COST_LIMIT + 1
    assert light["reward"] > heavy["reward"] + 1


@pytest.mark.parametrize(("name", "cost_weight"), [("ppo", 0.0), ("reward_shaping", 0.5)])
def test_the_kl_holds_the_policy_at_the_known_optimum(name: str, cost_weight: float) -> None:
    kl = 0.5
    settings = {} if name == "ppo" else {"cost_weight": cost_weight}
    metrics = train(name, Bandit, kl_coefficient=kl, **settings)
    weights = np.exp((Bandit.REWARDS - cost_weight * Bandit.COSTS) / kl)  # π ∝ π_ref·exp((R - νC) / kl)
    best = weights / weights.sum()
    # Over four seeds: 0.004 ± 0.007 and 0.007 ± 0.010 off; the other weight's optimum is 0.37 and 0.2 away.
    assert np.abs(metrics["probabilities"] - best).max() < 0.03
    assert metrics["kl"] == pytest.approx(best @ np.log(3 * best), abs=0.03)


CONSTRAINED = sorted(set(SAMPLING) - {"ppo", "reward_shaping", "rloo", "grpo"})
WINDOW = {"cost_window": 64, "multiplier_learning_rate": 0.05}
LONG: dict[Any, set[str]] = {
    Tracking: {"cup", "p3o", "ppo_lagrangian", "trpo_lagrangian"},
    Crossing: {"grpo_lagrangian", "ppo_lagrangian", "repo"},
}
# Without a constraint the cost is 4 in Tracking and 3.4 in Crossing, a wrong sign's 12 and 3.1. Above the limit it is,
# over four seeds (three where runs are long), at most 0.04 ± 0.03 (cpo) in Tracking and 0.01 ± 0.02 (pcpo) in Crossing.
# Some oscillate about the limit with more noise: crpo -0.01 ± 0.10, cup -0.11 ± 0.18, focops -0.31 ± 0.21,
# grpo_lagrangian -0.15 ± 0.18, p3o 0.01 ± 0.09, ppo_lagrangian 0.05 ± 0.06, repo 0.11 ± 0.07, rloo_lagrangian
# 0.00 ± 0.12; in Crossing grpo_lagrangian 0.04 ± 0.18, from which 0.3 is 2.5 standard errors away.
WALKING = ["crpo", "cup", "focops", "grpo_lagrangian", "p3o", "ppo_lagrangian", "repo", "rloo_lagrangian"]
ABOVE: dict[Any, dict[str, float]] = {Tracking: dict.fromkeys(WALKING, 0.3), Crossing: {"grpo_lagrangian": 0.3}}
# Keeping still earns Σ -s² = -2.7 in Tracking and 0.3 a step, 1.8, in Crossing, exchanged signals -21 and 1.8; the
# optima are -1.28 and 4.28. Measured: -1.68 ± 0.13 (cup) at least in Tracking, but crpo -1.76 ± 0.12, focops
# -1.80 ± 0.15 and p3o -2.09 ± 0.05, whose spread is still large; 3.93 ± 0.02 in Crossing: to wait whenever it is busy.
LOWEST: dict[Any, dict[str, float]] = {Tracking: {"crpo": -2.1, "focops": -2.2, "p3o": -2.3}, Crossing: {}}


@pytest.mark.long
@pytest.mark.parametrize("env", [Tracking, Crossing])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_every_constrained_algorithm_keeps_the_limit_and_earns(name: str, env: Any) -> None:
    fields = importlib.import_module(f"algos.{name}").Config.model_fields
    config: dict[str, Any] = {key: value for key, value in WINDOW.items() if key in fields}
    config |= {"multiplier_learning_rate": 0.15} if name == "grpo_lagrangian" else {}
    config |= {"episodes": 3200} if name in LONG[env] else {}
    config |= {"log_std": 0.0} if env is Tracking and name in {"cup", "p3o"} else {}  # whose steps oscillate else
    metrics = train(name, env, kl_coefficient=0.0, **config)
    assert metrics["cost"] <= env.COST_LIMIT + ABOVE[env].get(name, 0.15)
    assert metrics["reward"] > LOWEST[env].get(name, -2.0 if env is Tracking else 3.7)
