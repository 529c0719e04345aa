"""The algorithms solve problems whose constrained optimum is known.

What is held is the mean over three seeds, which stand for processors as well: a last bit that is rounded otherwise can
part two runs as another seed does. Measured faults are those of PPO-Lagrangian with the cost's advantages added, not
subtracted ("sign"), or with reward and cost exchanged ("exchanged").
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
    for seed in SEEDS:
        envs = vector(env, 32)
        torch.manual_seed(seed)
        actor: Any = make_actor(envs)
        if env is Tracking:
            torch.nn.init.constant_(actor.log_std, log_std)
        own: list[dict[str, Any]] = []

        def after(row: dict[str, float], actor: Any = actor, own: list[dict[str, Any]] = own) -> None:
            own.append({**row, **(exactly(actor) if env is Bandit else {})})

        algos.make(name, envs, actor, seed=seed, **{**FAST, **config}).learn(on_iteration=after)
        rows += own[3 * len(own) // 4 :]
    found = {key: np.mean([row[key] for row in rows], 0) for key in rows[0]}
    if env is Crossing:
        found["reward"] *= Crossing.STEPS / found["response_length"]
    return found


@torch.no_grad()
def exactly(actor: Any) -> dict[str, Any]:
    p = torch.softmax(actor.network(torch.ones(1)), 0).double().numpy()
    return {"probabilities": p, "cost": p @ Bandit.COSTS, "kl": p @ np.log(3 * p)}


@pytest.mark.parametrize("rule", ["projected", "log"])
def test_the_bandit_is_solved_and_its_limit_met(rule: str) -> None:
    dual = {**DUAL, "multiplier_update": rule, "multiplier_init": 0.0 if rule == "projected" else 0.5}
    dual |= {"multiplier_learning_rate": 0.08}
    metrics = train("ppo_lagrangian", Bandit, episodes=5600, kl_coefficient=0.2, **dual)
    probabilities, multiplier = Bandit.optimum(kl=0.2)
    # Measured: within 0.03, 0.05 and 0.03; both faults end at the forbidden arm: cost 1, multiplier 4.
    assert np.abs(metrics["probabilities"] - probabilities).max() < 0.05
    assert metrics["cost"] == pytest.approx(Bandit.COST_LIMIT, abs=0.1)
    assert metrics["multiplier"] == pytest.approx(multiplier, abs=0.1)


def test_ppo_lagrangian_on_box_actions() -> None:
    metrics = train("ppo_lagrangian", Tracking, kl_coefficient=0.0, **DUAL)
    # Measured: 0.55, -1.67 and 0.82; a wrong sign has a cost of 12, exchanged signals a reward of -21.
    assert metrics["cost"] <= Tracking.COST_LIMIT + 0.3
    assert metrics["reward"] > Tracking.REWARD - 0.7  # the rest is the noise of the Gaussian, -8·σ², and slack
    assert metrics["multiplier"] == pytest.approx(Tracking.MULTIPLIER, abs=0.15)


def test_ppo_lagrangian_on_discrete_actions() -> None:
    reward, multiplier = Crossing.optimum(kl=0.1)
    metrics = train("ppo_lagrangian", Crossing, kl_coefficient=0.1, **DUAL)
    # Measured: 0.44, 0.05 below the optimum's 4.22, and 0.01 off; a wrong sign has a cost of 3.1, exchanged signals a
    # reward of 1.8.
    assert metrics["cost"] <= Crossing.COST_LIMIT + 0.2
    assert metrics["reward"] == pytest.approx(reward, abs=0.25)
    assert metrics["multiplier"] == pytest.approx(multiplier, abs=0.15)


def test_ppo_takes_the_reward_whatever_it_costs() -> None:
    box = train("ppo", Tracking, kl_coefficient=0.0, episodes=800)
    assert box["reward"] > -0.5
    assert box["cost"] == pytest.approx(4.0, abs=0.3)
    discrete = train("ppo", Crossing, kl_coefficient=0.0, episodes=800)
    assert discrete["reward"] == pytest.approx(Crossing.STEPS, abs=0.3)
    assert discrete["cost_violation"] > 2


@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_reward_shaping_meets_the_limit_at_a_price_that_is_high_enough(env: Any) -> None:
    dear = train("reward_shaping", env, cost_weight=1.0, kl_coefficient=0.0, episodes=960)
    cheap = train("reward_shaping", env, cost_weight=0.05, kl_coefficient=0.0, episodes=960)
    assert dear["cost"] <= env.COST_LIMIT
    assert cheap["cost"] > env.COST_LIMIT + 1
    assert cheap["reward"] > dear["reward"] + 1


@pytest.mark.parametrize(("name", "price"), [("ppo", 0.0), ("reward_shaping", 0.5)])
def test_the_kl_holds_the_policy_at_the_known_optimum(name: str, price: float) -> None:
    kl = 0.5
    priced = {} if name == "ppo" else {"cost_weight": price}
    metrics = train(name, Bandit, kl_coefficient=kl, **priced)
    weights = np.exp((Bandit.REWARDS - price * Bandit.COSTS) / kl)  # π ∝ π_ref·exp((R - νC) / kl)
    best = weights / weights.sum()
    assert np.abs(metrics["probabilities"] - best).max() < 0.1  # measured: 0.06; the other price's optimum is 0.37 away
    assert metrics["kl"] == pytest.approx(best @ np.log(3 * best), abs=0.1)  # 0.03; and 0.2 away


CONSTRAINED = sorted(set(SAMPLING) - {"ppo", "reward_shaping", "rloo", "grpo"})
WINDOW = {"cost_window": 64, "multiplier_learning_rate": 0.05}


@pytest.mark.parametrize("env", [Tracking, Crossing])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_every_constrained_algorithm_keeps_the_limit_and_earns(name: str, env: Any) -> None:
    fields = importlib.import_module(f"algos.{name}").Config.model_fields
    config = {key: value for key, value in WINDOW.items() if key in fields}
    config |= {"multiplier_learning_rate": 0.15} if name == "grpo_lagrangian" else {}
    if env is Tracking and name in {"cup", "p3o"}:  # whose steps at a small spread lead to and fro
        config |= {"log_std": 0.0, "episodes": 3200}
    metrics = train(name, env, kl_coefficient=0.0, **config)
    # Without a constraint the cost is 4 in Tracking and 3.4 in Crossing, a wrong sign's 12 and 3.1. Measured: at most
    # 0.11 above the limit in Tracking, where three seeds have a standard deviation of 0.1, and 0.05 in Crossing.
    assert metrics["cost"] <= env.COST_LIMIT + 0.3
    # Keeping still earns Σ -s² = -2.7 in Tracking and 0.3 a step, 2.0, in Crossing, exchanged signals -21 and 1.8; the
    # optima are -1.28 and 5.1. Measured: at least -2.01 and 3.92.
    assert metrics["reward"] > (-2.3 if env is Tracking else 3.2)
