"""Six values a step and five are the same transitions, and six-tuple tasks train."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import algos
import textsafe_gym  # noqa: F401  registers the environments
from tests.helpers import cmdps
from textsafe_gym.adapters.safety_gymnasium import from_safety_gymnasium, to_safety_gymnasium
from textsafe_gym.errors import ConfigError
from textsafe_gym.models import make_actor
from textsafe_gym.rollouts import collect

EXACT = {"vocabulary": 4, "max_response_length": 3}
SMALL: dict[str, Any] = {"preset": "paper", "episodes": 16, "episodes_per_iteration": 8, "minibatch_size": 4}


class Crossing(cmdps.Crossing):
    """As a task of Safety-Gymnasium's kind: no limit of its own, six values, no cost in info."""

    def __init__(self) -> None:
        super().__init__()
        del self.cost_limit

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, info.pop("cost"), terminated, truncated, info


class Duck:
    """Six values from something that is not a `gymnasium.Env` at all."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(1, np.float32), {"began": True}

    def step(self, action: int) -> Any:
        self.steps += 1
        return np.ones(1, np.float32), action, np.int64(2 * action), self.steps == 3, False, {"steps": self.steps}


class OldVector:
    """The form of Safety-Gymnasium's own vector environments: the reset is in the last step, under older names."""

    def __init__(self, count: int = 3) -> None:
        self.metadata: dict[str, Any] = {"autoreset_mode": "SameStep"}
        self.envs = [Crossing() for _ in range(count)]
        self.num_envs = count
        self.single_observation_space, self.single_action_space = (
            self.envs[0].observation_space,
            self.envs[0].action_space,
        )
        self.observation_space, self.action_space = (
            gym.vector.utils.batch_space(space, count)
            for space in (self.single_observation_space, self.single_action_space)
        )

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        return np.stack([env.reset(seed=one)[0] for env, one in zip(self.envs, seeds, strict=True)]), {}

    def step(self, actions: Any) -> Any:
        rows = [list(env.step(action)) for env, action in zip(self.envs, actions, strict=True)]
        over = np.array([row[3] or row[4] for row in rows])
        info: dict[str, Any] = {}
        if over.any():
            last, said = (np.full(self.num_envs, None, dtype=object) for _ in range(2))
            for i in np.flatnonzero(over):
                last[i], said[i] = rows[i][0], {**rows[i][5], "last": i}
                rows[i][0], _ = self.envs[i].reset()
            info = {"final_observation": last, "_final_observation": over, "final_info": said, "_final_info": over}
        columns = [np.stack([row[k] for row in rows]) for k in range(5)]
        return *columns, info

    def close(self) -> None:
        for env in self.envs:
            env.close()


def walk(env: Any, seed: int, actions: list[Any]) -> list[Any]:
    """All that an environment says to these actions, reset where an episode ends."""
    said: list[Any] = [env.reset(seed=seed)]
    for action in actions:
        said.append(env.step(action))
        *_, terminated, truncated, _ = said[-1]
        if not isinstance(env, gym.vector.VectorEnv) and (terminated or truncated):
            said.append(env.reset())
    return said


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_the_cost_is_the_third_value_and_nothing_else_changes() -> None:
    five, six = cmdps.Crossing(), Crossing()
    adapted = from_safety_gymnasium(six)
    actions = [1, 0, 1, 1] * 8
    assert_same(walk(adapted, 5, actions), walk(five, 5, actions))
    assert sum(step[-1].get("cost", 0.0) for step in walk(adapted, 5, actions)) > 0
    check_env(from_safety_gymnasium(Crossing), skip_render_check=True)


@pytest.mark.parametrize("kind", ["class", "instance", "factory"])
def test_any_form_of_environment_and_its_limit(kind: str) -> None:
    given = {"class": Duck, "instance": Duck(), "factory": lambda: Duck()}[kind]
    adapted = from_safety_gymnasium(given, cost_limit=1.5)
    assert adapted.cost_limit == 1.5
    assert adapted.reset(seed=1)[1] == {"began": True}
    _, reward, terminated, truncated, info = adapted.step(1)
    assert (reward, terminated, truncated, info) == (1.0, False, False, {"steps": 1, "cost": 2.0})
    assert type(info["cost"]) is float
    adapted.close()
    limited = gym.wrappers.TimeLimit(from_safety_gymnasium(given), 2)
    limited.reset()
    assert [limited.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert from_safety_gymnasium(to_safety_gymnasium(cmdps.Crossing())).cost_limit == cmdps.Crossing.COST_LIMIT


def test_our_environment_in_six_values_and_back() -> None:
    actions = [1, 2, 0, 3, 3, 3, 0, 2]
    plain = gym.make("SafeRLHF-Exact-v0", **EXACT)
    six = to_safety_gymnasium(gym.make("SafeRLHF-Exact-v0", **EXACT))
    back = from_safety_gymnasium(to_safety_gymnasium(gym.make("SafeRLHF-Exact-v0", **EXACT)))
    expected = walk(plain, 3, actions)
    assert_same(walk(back, 3, actions), expected)
    six.reset(seed=3)
    paid = [step for step in expected if len(step) == 5][: actions.index(0) + 1]
    for action, (_, reward, terminated, truncated, info) in zip(actions, paid, strict=False):
        assert six.step(action)[1:] == (reward, info["cost"], terminated, truncated, info)
    assert paid[-1][-1]["cost"] != 0
    assert six.observation_space == plain.observation_space
    assert six.unwrapped.tokenizer is not None
    assert back.cost_limit == 0.0


@pytest.mark.parametrize("kind", ["native", "sync"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vectors_in_six_values_and_back(kind: str, mode: AutoresetMode) -> None:
    def make() -> Any:
        if kind == "native":
            return gym.make_vec("SafeRLHF-Exact-v0", num_envs=3, autoreset_mode=mode, **EXACT)
        return SyncVectorEnv([cmdps.Crossing] * 3, autoreset_mode=mode)

    rng = np.random.default_rng(0)
    plain, six, back = make(), to_safety_gymnasium(make()), from_safety_gymnasium(to_safety_gymnasium(make()))
    assert back.metadata["autoreset_mode"] is mode
    plain.reset(seed=4), six.reset(seed=4), back.reset(seed=4)
    resetting, ended = np.zeros(3, bool), 0
    for _ in range(30):
        actions = rng.integers(0, plain.single_action_space.n, 3)
        observation, *rest, info = plain.step(actions)
        six_observation, rewards, costs, *ends, _ = six.step(actions)
        back_observation, *back_rest, back_info = back.step(actions)
        over = rest[1] | rest[2]
        paid = np.where(resetting, 0.0, info.get("cost", 0.0))
        if mode is AutoresetMode.SAME_STEP and over.any():
            paid[over] = info["final_info"]["cost"][over]
            np.testing.assert_array_equal(back_info["final_info"]["cost"][over], paid[over])
        np.testing.assert_array_equal(costs, paid)
        np.testing.assert_array_equal(back_info["cost"], paid)
        assert_same([six_observation, rewards, *ends], [observation, *rest])
        assert_same([back_observation, *back_rest], [observation, *rest])
        resetting = over if mode is AutoresetMode.NEXT_STEP else resetting
        ended += over.sum()
    assert ended >= 6


@pytest.mark.parametrize("again", [False, True])
def test_a_vector_that_resets_in_the_last_step_makes_the_same_rollout(again: bool) -> None:
    single = SyncVectorEnv([partial(from_safety_gymnasium, Crossing)] * 3)
    torch.manual_seed(0)
    actor = make_actor(single)
    expected = collect(actor, single, seed=2)
    env = from_safety_gymnasium(OldVector())
    if again:
        env = from_safety_gymnasium(to_safety_gymnasium(env))
    rollout = collect(actor, env, seed=2)
    assert torch.equal(rollout.costs, expected.costs)
    assert torch.equal(rollout.actions * rollout.mask, expected.actions * expected.mask)
    assert rollout.costs.sum() > 0
    assert [info["last"] for info in rollout.infos] == [0, 1, 2]


def test_a_vector_that_resets_in_the_last_step_has_to_say_so() -> None:
    silent = OldVector()
    silent.metadata = {}
    env = from_safety_gymnasium(silent)
    with pytest.raises(ConfigError, match=r'without saying so; set its metadata\["autoreset_mode"\] = "SameStep"'):
        collect(make_actor(env), env, seed=0)


class Charged(cmdps.Crossing):
    """A reset whose info names a cost."""

    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0], {"cost": 7.0}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_reset_costs_nothing(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([Charged] * 2, autoreset_mode=mode)
    env.reset(seed=0)
    six = to_safety_gymnasium(env)  # of an environment that has begun
    for _ in range(20):
        _, _, costs, terminations, *_ = six.step(np.ones(2, int))
        assert set(costs.tolist()) <= {0.0, 1.0}
        if mode is AutoresetMode.DISABLED and terminations.any():
            six.reset(options={"reset_mask": terminations})


@pytest.mark.parametrize(("cost", "known"), [(np.array([2.0]), 2.0), (np.array(2), 2.0), (None, None), ([1, 2], None)])
def test_costs_of_odd_forms(cost: Any, known: float | None) -> None:
    class Odd(Duck):
        def step(self, action: int) -> Any:
            observation, reward, _, *rest = super().step(action)
            return observation, reward, cost, *rest

    env = from_safety_gymnasium(Odd)
    env.reset()
    if known is None:
        with pytest.raises(ConfigError, match=r"step returned reward 1, cost .*; give numbers"):
            env.step(1)
    else:
        assert env.step(1)[4]["cost"] == known


def test_our_algorithms_take_it_in_every_form() -> None:
    one = algos.make("ppo_lagrangian", from_safety_gymnasium(Crossing, cost_limit=0.5), **SMALL)
    assert one.cost_limit == 0.5
    assert one.learn()[-1]["cost"] > 0
    several = SyncVectorEnv([partial(from_safety_gymnasium, Crossing, cost_limit=0.5)] * 8)
    assert algos.make("ppo_lagrangian", several, **SMALL).cost_limit == 0.5
    gym.register("SixTupleCrossing-v0", entry_point=lambda: from_safety_gymnasium(Crossing, cost_limit=0.5))
    try:
        for env in ("SixTupleCrossing-v0", gym.make("SixTupleCrossing-v0")):
            trainer = algos.make("cpo", env, episodes=8, episodes_per_iteration=8)
            assert trainer.env.num_envs == 8
            assert trainer.cost_limit == 0.5
            assert len(trainer.learn()) == 1
    finally:
        del gym.registry["SixTupleCrossing-v0"]


def test_refusals_are_one_line() -> None:
    with pytest.raises(ConfigError, match="a int without reset; give an environment"):
        from_safety_gymnasium(3)
    five = from_safety_gymnasium(cmdps.Crossing())
    five.reset()
    with pytest.raises(ConfigError, match="step returned 5 values, not observation, reward, cost"):
        five.step(0)

    gym.register("SixTupleCrossing-v0", entry_point=Crossing)
    try:
        for env in (Crossing(), "SixTupleCrossing-v0"):
            with pytest.raises(ConfigError, match=r"step returns more than five values; .*from_safety_gymnasium"):
                algos.make("ppo_lagrangian", env, cost_limit=0.5, **SMALL).learn()
    finally:
        del gym.registry["SixTupleCrossing-v0"]

    for wrapped in (gym.wrappers.TimeLimit(Crossing(), 3), SyncVectorEnv([Crossing] * 2)):
        five = from_safety_gymnasium(wrapped)
        five.reset()
        with pytest.raises(
            ConfigError, match=r"Gymnasium's own (TimeLimit|SyncVectorEnv) takes five values; adapt the"
        ):
            five.step(five.action_space.sample())

    class NoCost(cmdps.Crossing):
        def step(self, action: int) -> Any:
            return *super().step(action)[:4], {}

    for env, action in ((NoCost(), 0), (SyncVectorEnv([NoCost] * 2), np.zeros(2, int))):
        six = to_safety_gymnasium(env)
        six.reset()
        with pytest.raises(ConfigError, match="gives no info"):
            six.step(action)
