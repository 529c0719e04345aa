import json
import logging
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import algos
from algos.core.settings import ActorConfig, TrustRegionConfig
from tests.helpers.algorithms import SAMPLING
from tests.helpers.clock import timeless
from tests.helpers.cmdps import Bandit, Crossing, Rare, Tracking, vector
from tests.helpers.rounding import MLP, assert_same_updates, same_tensors
from textsafe_gym.errors import ConfigError, RunError, TextsafeError, UnknownNameError
from textsafe_gym.models import make_actor
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Rollout

NAMES = SAMPLING
WITHOUT_CRITICS = {"rloo", "grpo", "rloo_lagrangian", "grpo_lagrangian"}
SMALL: dict[str, Any] = {
    "preset": "paper",
    "episodes": 32,
    "episodes_per_iteration": 8,
    "minibatch_size": 4,
    "epochs": 2,
    "learning_rate": 1e-2,
}


def tensors_of(trainer: Any) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in trainer.algorithm.agent.state_dict().items()}


def parts_that_moved(before: Mapping[str, Tensor], trainer: Any) -> set[str]:
    """ "actor", "reward_critic", "cost_critic", "reference"."""
    names = [key for key, x in tensors_of(trainer).items() if not torch.equal(x, before[key])]
    return {key.split(".")[1] if key.startswith("critics.") else key.split(".")[0] for key in names}


def test_available_reads_the_folder_without_torch() -> None:
    assert {"ppo", "cpo", "ppo_lagrangian"} <= set(algos.available())
    assert algos.available()["ppo"].startswith("PPO: max reward")
    code = "import algos, sys; algos.available(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_metrics(name: str) -> None:
    first, again, other = (algos.make(name, vector(Crossing, 8), seed=seed, **SMALL).learn() for seed in (3, 3, 4))
    assert timeless(first) == timeless(again)
    assert timeless(first) != timeless(other)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_have_the_agreed_names(name: str) -> None:
    row = algos.make(name, vector(Crossing, 8), **SMALL).learn(8)[0]
    agreed = {"iteration", "episodes", "reward", "cost", "cost_violation", "kl", "entropy", "response_length"}
    agreed |= {"tokens_per_second", "learning_rate"}
    if name not in WITHOUT_CRITICS:
        agreed.add("reward_critic_loss")
    if name not in {"cpo", "pcpo", "trpo_lagrangian"}:
        agreed.add("actor_loss")
    if name == "ppo_lagrangian":
        agreed |= {"multiplier", "cost_critic_loss"}
    assert agreed <= row.keys()
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    assert abs(row["kl"]) <= 8 * MLP  # the policy still is its reference: rounding alone, in each of 8 steps
    assert 4 <= row["response_length"] <= 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_a_loaded_run_continues_bit_for_bit(name: str, env: Any, tmp_path: Path) -> None:
    windowed = name not in {"ppo", "reward_shaping", "rloo", "grpo"}
    # Longer than the 16 episodes after the resumption, so that a window that was lost is still short at the end.
    config = {**SMALL, "cost_window": 24} if windowed else SMALL
    whole = algos.make(name, vector(env, 8), **config)
    rows = whole.learn()
    part = algos.make(name, vector(env, 8), **config)
    early = part.learn(16)
    part.save(tmp_path / "half")
    resumed = algos.load(tmp_path / "half", vector(env, 8))
    late = resumed.learn()
    assert timeless(early + late) == timeless(rows)
    final, reached = tensors_of(whole), tensors_of(resumed)
    assert final.keys() == reached.keys()
    assert all(torch.equal(final[key], reached[key]) for key in final)
    assert resumed.algorithm.constraints.state_dict() == whole.algorithm.constraints.state_dict()
    assert resumed.algorithm.optimizer.state_dict().keys() == whole.algorithm.optimizer.state_dict().keys()


def test_saving_twice_replaces_and_the_policy_loads_alone(tmp_path: Path) -> None:
    trainer = algos.make("ppo_lagrangian", vector(Crossing, 8), **SMALL)
    target = tmp_path / "deep" / "checkpoint"
    trainer.learn(on_iteration=lambda row: trainer.save(target))
    assert sorted(path.name for path in target.iterdir()) == ["policy", "state.json", "state.safetensors"]
    assert [path.name for path in target.parent.iterdir()] == ["checkpoint"]
    state = json.loads((target / "state.json").read_text())
    assert (state["name"], state["iteration"], state["config"]["seed"]) == ("ppo_lagrangian", 4, 0)
    assert len(state["constraints.costs."]) == 32
    actor = make_actor(vector(Crossing, 1), model=target / "policy")
    x = torch.rand(5, 3)
    assert same_tensors(actor, trainer.actor)
    torch.testing.assert_close(actor.network(x), trainer.actor.network(x), atol=MLP, rtol=0)  # type: ignore[attr-defined]


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    trainer = algos.make("ppo", vector(Crossing, 8), **SMALL)
    trainer.learn(8)
    trainer.save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
    assert algos.load(tmp_path / "checkpoint", vector(Crossing, 8)).iteration == 1


def test_a_checkpoint_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    env = vector(Crossing, 8)
    with pytest.raises(RunError, match="holds no checkpoint"):
        algos.load(tmp_path / "nothing", env)
    trainer = algos.make("ppo", env, **SMALL)
    trainer.save(tmp_path / "good")
    damage = [("state.json", "{"), ("state.safetensors", "short"), ("state.json", "{}")]
    for number, (name, content) in enumerate(damage):
        bad = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", bad)
        (bad / name).write_text(content)
        with pytest.raises(RunError, match=r"damaged|not a checkpoint") as caught:
            algos.load(bad, env)
        assert "\n" not in str(caught.value)
    with pytest.raises(TextsafeError, match=r"does not fit"):
        algos.load(tmp_path / "good", vector(Tracking, 8))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        trainer.save(tmp_path / "file" / "checkpoint")


def test_a_policy_of_the_callers_has_to_be_given_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = make_actor(vector(Crossing, 8))
    initial = {name: x.clone() for name, x in policy.state_dict().items()}
    trainer = algos.make("ppo", vector(Crossing, 8), policy, **SMALL)
    trainer.learn(8)
    trainer.save(tmp_path / "checkpoint")
    with pytest.raises(RunError, match="policy of the caller's"):
        algos.load(tmp_path / "checkpoint", vector(Crossing, 8))
    policy.load_state_dict(initial)
    assert len(algos.load(tmp_path / "checkpoint", vector(Crossing, 8), policy).learn()) == 3


def test_the_ratio_is_one_on_the_first_minibatch() -> None:
    trainer = algos.make("ppo_lagrangian", vector(Tracking, 8), **SMALL)
    trainer.learn(16)
    evaluate = trainer.actor.evaluate
    batch = trainer.source.play(7)
    deviations = []

    def spy(observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, critics: Any) -> Any:
        new = evaluate(observations, actions, mask, critics)
        index = [int((batch.actions == row).flatten(1).all(1).nonzero()[0]) for row in actions]
        deviations.append((new.log_probs - batch.log_probs[index]).exp().sub(1).abs()[mask].max().item())
        return new

    trainer.actor.evaluate = spy  # type: ignore[method-assign]
    trainer.algorithm.update(batch, torch.Generator().manual_seed(0))
    assert len(deviations) == 4  # 2 epochs of 2 minibatches
    assert deviations[0] < MLP
    assert min(deviations[1:]) > 1e-4


def test_a_slack_limit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="algos"):
        rows = algos.make("ppo_lagrangian", vector(Bandit, 8), cost_limit=0.9, **SMALL).learn()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the cost limit 0.9 is slack" in caplog.text
    assert {row["limit_slack"] for row in rows} == {1.0}
    assert rows[-1]["multiplier"] < 1.0
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="algos"):
        rows = algos.make("ppo_lagrangian", vector(Bandit, 8), cost_limit=-0.9, **SMALL).learn()
    assert not caplog.records
    assert {row["limit_slack"] for row in rows} == {0.0}
    assert rows[-1]["multiplier"] > 1.0


def test_a_name_that_never_occurs_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    limits = {"harm": 0.5, "harn": 0.5}
    trainer = algos.make("ppo_lagrangian", vector(Rare, 8), cost_limits=limits, **SMALL)
    trainer.learn(episodes=8)
    assert [("'harn'" in text, "whole run" in text) for text in caplog.messages] == [(True, False)]
    rows = trainer.learn()
    assert all(row["window_cost_harm"] > 0 and row["multiplier_harn"] < 1 for row in rows)
    assert caplog.messages[1:] == [
        "cost_limits: none of the run's 32 episodes had a cost 'harn': its limit bounded nothing, and a cost_violation "
        "of 0 says nothing of it"
    ]


def test_a_cost_that_was_never_seen_is_not_slack(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {**SMALL, "cost_window": 8}
    rows = algos.make("ppo_lagrangian", vector(Rare, 8), cost_limits={"harn": 0.5}, **settings).learn()
    assert {row["limit_slack"] for row in rows} == {0.0}
    assert not any("slack" in text for text in caplog.messages)
    caplog.clear()
    rows = algos.make("ppo_lagrangian", vector(Rare, 8), cost_limits={"harn": 0.5, "harm": 9.0}, **settings).learn()
    assert {row["limit_slack"] for row in rows} == {1.0}
    assert any("the cost limit 9 is slack" in text for text in caplog.messages)


def test_a_limit_on_a_cost_that_is_not_there_is_refused() -> None:
    def score(prompts: list[str], responses: list[str]) -> list[float]:
        return [0.0 for _ in responses]

    cases: list[tuple[Any, str]] = [
        (gym.make("SafeRLHF-v0", cost_model={"ab": score, "b": score}), "named costs: ab, b; did you mean 'ab'?"),
        ("SafeRLHF-Exact-v0", "named costs: none"),
    ]
    for env, known in cases:
        message = f"cost_limits: 'abc' is not a cost of the environment; its {known}"
        with pytest.raises(ConfigError, match=re.escape(message)):
            algos.make("ppo_lagrangian", env, cost_limits={"abc": 0.1, "b": 0.1}, **SMALL)


@pytest.mark.parametrize("poison", ["log_probs", "rewards", "costs", "reward_values"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_stops_the_run_and_changes_no_parameter(name: str, poison: str) -> None:
    trainer = algos.make(name, vector(Crossing, 8), **SMALL)
    if poison == "reward_values" and "reward" not in trainer.algorithm.critics:
        assert trainer.source.play(0).reward_values is None
        return
    before, play = tensors_of(trainer), trainer.source.play

    def poisoned(seed: int) -> Any:
        rollout = play(seed)
        getattr(rollout, poison)[0, 0] = float("nan")
        return rollout

    trainer.source.play = poisoned  # type: ignore[method-assign]
    with pytest.raises(RunError, match=f"iteration 1: the rollout's {poison} are not finite") as caught:
        trainer.learn()
    assert "\n" not in str(caught.value)
    after = tensors_of(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_infinite_loss_or_gradient_changes_no_parameter() -> None:
    trainer = algos.make("ppo", vector(Crossing, 8), **SMALL)
    optimizer = trainer.algorithm.optimizer
    rollout = trainer.source.play(0)
    before = tensors_of(trainer)
    parameter = trainer.actor.trained_parameters()[0]
    gradient_step = partial(optimizer.train, rollout, generator=torch.Generator())
    with pytest.raises(RunError, match="the loss is nan"):
        gradient_step(lambda *_: (parameter.sum() * float("nan"), {}))
    with pytest.raises(RunError, match="gradient of 'actor'"):
        gradient_step(lambda *_: ((parameter.sum() * 0).sqrt(), {}))  # 0 has the square root 0 with slope ∞
    after = tensors_of(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    gradient_step(lambda new, *_: (new.log_probs.mean(), {}))  # and nothing of them is left for the next step
    assert all(bool(x.isfinite().all()) for x in tensors_of(trainer).values())


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_give_the_same_update_as_one_big_batch(name: str) -> None:
    x = torch.rand(64, 6, 3, generator=torch.Generator().manual_seed(0))
    shown = Demonstrations({"observation": x}, torch.ones(64, 6, dtype=torch.int64), torch.ones(64, 6).bool())
    # P3O's penalty couples the episodes of a minibatch; at this limit it is on in some parts alone, off in others
    some = {**SMALL, "episodes": 24, "episodes_per_iteration": 24, "minibatch_size": 8, "learning_rate": 1e-3}
    some |= {"cost_limit": 1.6} if name not in ("ppo", "rloo", "grpo", "reward_shaping") else {}
    whole = algos.make(name, vector(Crossing, 8), demonstrations=shown, **some)
    parts = algos.make(name, vector(Crossing, 8), demonstrations=shown, micro_batch_size=3, **some)
    sizes = []
    evaluate = parts.actor.evaluate
    parts.actor.evaluate = lambda *args: sizes.append(len(args[2])) or evaluate(*args)  # type: ignore[method-assign]
    rows = whole.learn()[0], parts.learn()[0]
    assert set(sizes) - {8} <= {2, 3}  # 8 at once in the rollout; parts of unequal size
    ours, theirs = tensors_of(whole), tensors_of(parts)
    start = tensors_of(algos.make(name, vector(Crossing, 8), **some))
    assert max((ours[key] - start[key]).abs().sum() for key in ours) > 1e-3
    # A gradient is a sum over 12 episodes and 64 demonstrations of up to 8 steps, forth and back.
    gradient_error = MLP * math.sqrt(2 * 76 * 8)
    assert_same_updates(theirs, ours, start, gradient_error)
    for key in timeless(rows[0]):
        assert rows[1][key] == pytest.approx(rows[0][key], rel=MLP, abs=MLP), key


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_are_imitated(name: str) -> None:
    steps = 6
    x = torch.rand(64, steps, 3, generator=torch.Generator().manual_seed(0))
    shown = Demonstrations({"observation": x}, torch.ones(64, steps, dtype=torch.int64), torch.ones(64, steps).bool())
    trainer = algos.make(name, vector(Crossing, 8), demonstrations=shown, **SMALL)
    rows = trainer.learn()
    assert rows[-1]["ptx_loss"] < 0.2 < rows[0]["ptx_loss"] < math.log(2) + 0.2  # the policy begins as a fair coin
    assert "ptx_loss" not in algos.make(name, vector(Crossing, 8), **SMALL).learn(8)[0]
    off = algos.make(name, vector(Crossing, 8), demonstrations=shown, ptx_coefficient=0, **SMALL)
    assert "ptx_loss" not in off.learn(8)[0]


def test_critics_that_are_separate_have_their_own_rate() -> None:
    trainer = algos.make("ppo_lagrangian", vector(Crossing, 8), critic_learning_rate=0.0, weight_decay=0.0, **SMALL)
    before = tensors_of(trainer)
    trainer.learn()
    assert parts_that_moved(before, trainer) == {"actor"}


@pytest.mark.parametrize("name", NAMES)
def test_every_critic_that_is_there_learns(name: str) -> None:
    trainer = algos.make(name, vector(Crossing, 8), weight_decay=0.0, **SMALL)  # or that alone would move them
    before = tensors_of(trainer)
    trainer.learn(8)
    critics = {"reward_critic"} if name in {"ppo", "reward_shaping"} else {"reward_critic", "cost_critic"}
    assert parts_that_moved(before, trainer) == {"actor"} | (set() if name in WITHOUT_CRITICS else critics)


class Renamed(Crossing):
    """Registered, so that it can be made anew in numbers."""


def test_any_form_of_environment_will_do() -> None:
    gym.register("Crossing-v0", entry_point=Renamed)
    try:
        by_id = algos.make("ppo", "Crossing-v0", **SMALL)
        by_env = algos.make("ppo", gym.make("Crossing-v0"), **SMALL)
        assert by_id.source.env.num_envs == by_env.source.env.num_envs == 8
        limits = [trainer.algorithm.constraints.cost_limit for trainer in (by_id, by_env)]
        assert limits == [Crossing.COST_LIMIT] * 2
        assert timeless(by_id.learn(8)) == timeless(by_env.learn(8))
    finally:
        gym.registry.pop("Crossing-v0")
    one_by_one = algos.make("ppo_lagrangian", Crossing(), **SMALL)
    assert one_by_one.source.env.num_envs == 1
    assert one_by_one.learn()[-1]["episodes"] == 32
    assert one_by_one.algorithm.constraints.cost_limit == Crossing.COST_LIMIT


def test_episodes_of_unlike_length_are_padded_together() -> None:
    actor = make_actor(vector(Crossing, 1))
    parts = [collect(actor, vector(Crossing, 1), seed) for seed in range(6)]
    lengths = [int(part.mask.sum()) for part in parts]
    assert len(set(lengths)) > 1
    joined = Rollout.concatenate(parts)
    assert joined.mask.sum(1).tolist() == lengths
    assert joined.observations["observation"].shape == (6, max(lengths), 3)
    torch.testing.assert_close(joined.episode_rewards, torch.cat([part.episode_rewards for part in parts]))


class Limitless(gym.Env):
    observation_space = Crossing().observation_space
    action_space = Crossing().action_space


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ppo_lagrangain", {}, "unknown algorithm 'ppo_lagrangain'; did you mean 'ppo_lagrangian'"),
        ("ppo", {"learning_rate": math.inf}, "ppo: learning_rate = inf: input should be a finite number"),
        (
            "ppo_lagrangian",
            {"cost_limit": math.nan},
            "ppo_lagrangian: cost_limit = nan: input should be a finite number",
        ),
        ("ppo", {"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("ppo", {"cost_weight": 1}, "unknown key 'cost_weight'"),
        ("ppo", {"learning_rate": -1}, "learning_rate = -1.*greater than or equal to 0"),
        ("ppo", {"learning_rate": float("nan")}, "learning_rate = nan"),
        ("ppo", {"gamma": 1.5, "epochs": 0}, "gamma = 1.5.*; epochs = 0|epochs = 0.*; gamma = 1.5"),
        ("ppo", {"episodes_per_iteration": 6}, "not a multiple of the environment's num_envs = 4"),
        ("ppo", {"minibatch_size": 0}, "minibatch_size = 0.*greater than 0"),
        ("ppo_lagrangian", {"multiplier_init": 0}, "would stay 0 under multiplier_update 'log'.*another"),
        ("ppo_lagrangian", {"multiplier_init": 9}, "multiplier_init = 9.0 exceeds multiplier_max = 5.0"),
        ("ppo_lagrangian", {"multiplier_update": "sgd"}, "multiplier_update = 'sgd'.*'log', 'projected'.* or 'fixed'$"),
        ("cup", {"multiplier_update": "projcted"}, "'nu_pi' or 'fixed'; did you mean 'projected'?"),
        ("ppo_lagrangian", {}, "needs a cost limit.*set cost_limit"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_a_line(name: str, config: dict[str, Any], message: str) -> None:
    env = gym.vector.SyncVectorEnv([Limitless if message.startswith("needs") else Crossing] * 4)
    with pytest.raises((ConfigError, UnknownNameError), match=message) as caught:
        algos.make(name, env, **config)
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="make the trainer with episodes=33"):
        algos.make("ppo", vector(Crossing, 8), **SMALL).learn(33)
    with pytest.raises(UnknownNameError, match="cannot make the environment"):
        algos.make("ppo", "Crosing-v7")
    with pytest.raises(ConfigError, match="env is a int"):
        algos.make("ppo", 3)  # type: ignore[arg-type]


def test_every_setting_is_described() -> None:
    for name in algos.available():
        config = __import__(f"algos.{name}", fromlist=["Config"]).Config
        assert config.model_config["extra"] == "forbid"
        assert all(field.description for field in config.model_fields.values()), name


def test_costs_drive_the_multiplier_before_the_actor_moves() -> None:
    trainer = algos.make("ppo_lagrangian", vector(Crossing, 8), multiplier_learning_rate=0.5, **SMALL)
    row = trainer.learn(8)[0]
    cost = np.mean(list(trainer.algorithm.constraints.windows[""]))
    assert row["cost"] == pytest.approx(cost)
    assert row["window_cost"] == pytest.approx(cost)
    assert row["multiplier"] == pytest.approx(min(math.exp(0.5 * (cost - Crossing.COST_LIMIT)), 5.0))


def test_ipos_penalty_is_the_slope_of_its_barrier() -> None:
    for limit in (50.0, 8.5, -1.0):
        config = {**SMALL, "cost_limit": limit, "barrier_t": 4.0, "penalty_max": 0.75}
        row = algos.make("ipo", vector(Crossing, 8), **config).learn(8)[0]
        room = limit - row["window_cost"]
        assert row["penalty"] == pytest.approx(min(1 / (4.0 * room), 0.75) if room > 0 else 0.75)


def test_the_window_holds_the_last_episodes() -> None:
    trainer = algos.make("ppo_lagrangian", vector(Bandit, 8), cost_window=12, **SMALL)
    rows = trainer.learn()
    window = list(trainer.algorithm.constraints.windows[""])
    assert len(window) == 12
    assert rows[-1]["cost"] == pytest.approx(np.mean(window[-8:]))
    assert rows[-1]["window_cost"] == pytest.approx(np.mean(window))


@pytest.mark.parametrize("name", ["ppo", "focops"])
def test_target_kl_ends_an_iterations_steps(name: str) -> None:
    """At a rate that leaves the old policy at once, one step is made of the eight; without a target, all."""
    fast = {**SMALL, "episodes": 8, "minibatch_size": 2, "learning_rate": 1.0, "max_grad_norm": 100.0}
    free = algos.make(name, vector(Crossing, 8), **fast)
    held = algos.make(name, vector(Crossing, 8), target_kl=1e-3, **fast)
    assert "steps" not in free.learn()[0]
    engine, norms = held.algorithm.optimizer.engine, []
    step = engine.step
    engine.step = lambda norm: norms.append(step(norm)) or norms[-1]  # type: ignore[method-assign]
    row = held.learn()[0]
    assert row["steps"] == len(norms) == 1
    assert row["approximate_kl"] > 1.5e-3 / 2  # the mean of 0, before the step, and of what stopped the next one
    assert row["actor_grad_norm"] == norms[0]["actor"]
    loose = algos.make(name, vector(Crossing, 8), target_kl=1e6, **fast)
    assert loose.learn()[0]["steps"] == 8
    for one, other in zip(tensors_of(free).values(), tensors_of(loose).values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["ppo", "focops"])
def test_entropy_is_kept_up_by_its_coefficient(name: str) -> None:
    rates = {**SMALL, "episodes": 160, "learning_rate": 3e-2}
    plain, kept = (
        algos.make(name, vector(Bandit, 8), entropy_coefficient=weight, **rates).learn()[-1]["entropy"]
        for weight in (0.0, 10.0)
    )
    assert kept > plain + 0.1


@pytest.mark.parametrize("name", SAMPLING)
def test_every_method_that_steps_down_a_loss_has_them(name: str) -> None:
    settings = algos.config_class(name)
    assert issubclass(settings, ActorConfig) != issubclass(settings, TrustRegionConfig)
    if issubclass(settings, ActorConfig):
        env = vector(Crossing, 8)
        plain, kept = (
            algos.make(name, env, **{**SMALL, "target_kl": 1e6, "entropy_coefficient": weight}) for weight in (0.0, 1.0)
        )
        assert "steps" in plain.learn(8)[0]
        kept.learn(8)
        assert not same_tensors(tensors_of(plain), tensors_of(kept))
