"""The algorithms on Gymnasium environments that are none of ours: spaces, wrappers, vectors, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import algos
from tests.helpers import cmdps
from tests.helpers.rounding import FLOAT32, same_tensors
from textsafe_gym.cli.main import main
from textsafe_gym.envs.exact import ExactEnv
from textsafe_gym.envs.text import SafeRLHFEnv
from textsafe_gym.errors import ConfigError, ModelError, UnknownNameError
from textsafe_gym.experiments.play import evaluate_policy
from textsafe_gym.models import load_policy, make_actor, make_critics
from textsafe_gym.rollouts import _say_that_tokens_are_stepped, collect

SMALL: dict[str, Any] = {"preset": "paper", "episodes": 8, "episodes_per_iteration": 4, "minibatch_size": 2}
OBSERVATIONS = {
    "discrete": spaces.Discrete(4, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (2, 2), np.float32), b=spaces.Discrete(3)),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 255, (2,), np.uint8))),
}


class Shown(gym.Env):
    """Three steps of observations that the seed draws from a space; moving (1) costs 1."""

    def __init__(self, kind: str = "dict", truncates: bool = False) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[kind], spaces.Discrete(2)
        self.truncates, self.cost_limit = truncates, 0.5

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.seen = self.observation_space.sample()
        over = self.steps == 3
        info = {"cost": float(action), "flat": spaces.flatten(self.observation_space, self.seen).astype(np.float32)}
        return self.seen, 1.0, over and not self.truncates, over and self.truncates, info


class Priced(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Gives an environment without costs one that is always the same."""

    def __init__(self, env: gym.Env, cost: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, cost=cost)
        super().__init__(env)
        self.cost = cost

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return *rest, {**info, **self.cost}


class Dearer(gym.Wrapper):
    """A wrapper whose arguments Gymnasium does not record."""

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return *rest, {**info, "cost": 10.0 + info["cost"]}


@pytest.fixture
def registered() -> Any:
    gym.register("AnyCrossing-v0", entry_point=cmdps.Crossing)
    yield "AnyCrossing-v0"
    del gym.registry["AnyCrossing-v0"]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", list(OBSERVATIONS))
def test_observations_are_flattened_as_gymnasium_does(kind: str, mode: AutoresetMode, tmp_path: Path) -> None:
    env = SyncVectorEnv([lambda: Shown(kind, truncates=True)] * 3, autoreset_mode=mode)
    torch.manual_seed(0)
    actor = make_actor(env, hidden=[4])
    critics: Any = make_critics(actor, env, ("reward",))
    torch.nn.init.normal_(critics.reward_critic[-1].weight)
    rollout = collect(actor, env, 1, critics=critics)
    alone = Shown(kind)
    first, _ = alone.reset(seed=int(np.random.SeedSequence([1, 0]).generate_state(3)[0]))
    seen = rollout.observations["observation"]
    assert seen[0, 0].tolist() == spaces.flatten(alone.observation_space, first).astype(np.float32).tolist()
    last = torch.as_tensor(np.stack([info["flat"] for info in rollout.infos]))
    assert seen.shape[2] == last.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(rollout.final_reward_values, critics.values(last)["reward"])
    actor.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert same_tensors(actor, loaded)
    assert torch.equal(collect(loaded, env, 1).actions, rollout.actions)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_environment_may_use_its_arrays_again(mode: AutoresetMode) -> None:
    made = [SyncVectorEnv([lambda: Shown("dict", truncates=True)] * 3, autoreset_mode=mode) for _ in range(2)]
    torch.manual_seed(0)
    actor = make_actor(made[0], hidden=[4])
    plain, reused = (collect(actor, env, 1) for env in (made[0], cmdps.Reusing(made[1])))
    for name in ("actions", "mask", "rewards", "costs"):
        assert torch.equal(getattr(plain, name), getattr(reused, name)), name
    assert torch.equal(plain.observations["observation"], reused.observations["observation"])
    assert [info["flat"].tolist() for info in plain.infos] == [info["flat"].tolist() for info in reused.infos]
    crossings = [cmdps.vector(cmdps.Crossing, 3), cmdps.Reusing(cmdps.vector(cmdps.Crossing, 3))]
    actor = make_actor(crossings[0], hidden=[4])
    plain, reused = (collect(actor, env, 1) for env in crossings)
    assert len(set(plain.rewards[plain.mask].tolist())) > 1
    assert torch.equal(plain.rewards, reused.rewards)


class Twofold(SafeRLHFEnv):
    """Pays twice as much."""

    def step(self, action: int) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, 2 * reward, *rest


class TwofoldExact(ExactEnv):
    step: Any = Twofold.step


def test_a_subclass_given_as_an_object_is_what_is_trained_in() -> None:
    for kind, base in ((Twofold, "SafeRLHF-v0"), (TwofoldExact, "SafeRLHF-Exact-v0")):
        mine = kind()
        for env in (mine, gym.wrappers.TimeLimit(mine, 50)):
            trainer = algos.make("ppo", env, **SMALL)
            assert trainer.source.env.envs[0].unwrapped is mine
        assert algos.make("ppo", gym.make(base), **SMALL).source.env.num_envs == 4


def test_an_object_that_was_changed_is_not_made_again_without_a_word(registered: str) -> None:
    def limit(env: Any) -> None:
        env.unwrapped.task.cost_limit = 5.0

    def prompts(env: Any) -> None:
        env.unwrapped.task.prompts = env.unwrapped.task.prompts[:2]

    def coefficient(env: Any) -> None:
        env.unwrapped.kl_coefficient = 0.3

    def own_limit(env: Any) -> None:
        env.unwrapped.cost_limit = 0.7

    cases = {
        "cost_limit is 5.0": ("SafeRLHF-v0", limit),
        r"prompts is \[Prompt": ("SafeRLHF-v0", prompts),
        "kl_coefficient is 0.3": ("SafeRLHF-Exact-v0", coefficient),
        "cost_limit is 0.7, but it is made again for training, and then has 0.5; give": (registered, own_limit),
    }
    for message, (env_id, change) in cases.items():
        env = gym.make(env_id)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        algos.make("ppo", env, **SMALL)  # having been played with is no change
        change(env)
        with pytest.raises(ConfigError, match=f"env: its {message}"):
            algos.make("ppo", env, **SMALL)


def test_a_text_environment_in_other_processes_is_refused_with_what_to_do() -> None:
    several = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vectorization_mode="async")
    try:
        with pytest.raises(
            ModelError, match=r"in processes of its own is out of reach; leave vectorization_mode='async"
        ):
            algos.make("ppo", several, **SMALL)
    finally:
        several.close()
    several = gym.make_vec("SafeRLHF-Exact-v0", num_envs=2, vectorization_mode="sync")
    assert algos.make("ppo_lagrangian", several, **SMALL).cost_limit == 0


def test_ids_instances_wrappers_and_vectors(registered: str) -> None:
    made = gym.make(registered)
    again = {"id": registered, "instance": made, "wrapped": gym.wrappers.TimeLimit(made, 2)}
    for name, env in again.items():
        trainer = algos.make("ppo_lagrangian", env, **SMALL)
        assert (trainer.source.env.num_envs, trainer.algorithm.constraints.cost_limit) == (4, 0.5), name
    assert trainer.learn()[-1]["response_length"] == 2
    for env in (Dearer(gym.make(registered)), Dearer(cmdps.Crossing())):
        trainer = algos.make("ppo_lagrangian", env, **SMALL)
        assert (trainer.source.env.num_envs, trainer.algorithm.constraints.cost_limit) == (1, 0.5)
        assert trainer.learn()[-1]["cost"] >= 40
    several = AsyncVectorEnv([cmdps.Crossing] * 2)
    try:
        with pytest.raises(ConfigError, match="needs a cost limit and the environment has none; set cost_limit"):
            algos.make("ppo_lagrangian", several, **SMALL)
        rows = algos.make("ppo_lagrangian", several, cost_limit=0.5, **SMALL).learn()
    finally:
        several.close()
    one_process = algos.make("ppo_lagrangian", SyncVectorEnv([cmdps.Crossing] * 2), **SMALL).learn()
    assert [row["cost"] for row in rows] == [row["cost"] for row in one_process]


def test_an_mlp_reads_no_texts(tmp_path: Path) -> None:
    make_actor(SyncVectorEnv([cmdps.Crossing])).save(tmp_path / "policy")
    with pytest.raises(ModelError, match="is a multilayer perceptron, which reads no texts; name its environment"):
        make_actor(gym.make_vec("SafeRLHF-Exact-v0"), tmp_path / "policy")


def test_whole_costs_next_to_fractions() -> None:
    gym.register("Halves-v0", entry_point=cmdps.Halves)
    try:
        trainers = [algos.make("ppo", env, **SMALL) for env in ("Halves-v0", gym.make("Halves-v0"))]
    finally:
        del gym.registry["Halves-v0"]
    for trainer in trainers:
        rollout = trainer.source.play(0)
        expected = 0.5 * rollout.actions * rollout.mask
        assert set(expected[rollout.mask].tolist()) == {0.0, 0.5}
        assert torch.equal(rollout.costs, expected)
        assert torch.equal(rollout.named_costs["b"], 2 * expected)
    # In a vector environment of the caller's it is too late to tell which of the numbers were cut.
    own = SyncVectorEnv([cmdps.Halves] * 4)
    with pytest.raises(ConfigError, match=r"Halves gives info\['cost'\] now as a whole number, .*; give a float"):
        collect(make_actor(own), own, 0)
    assert collect(make_actor(own), SyncVectorEnv([cmdps.Halves]), 0).costs.sum() > 0


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"cost": None}, r"Crossing gives info\['cost'\] = None, which is not a number"),
        ({"cost": np.ones(1)}, r"Crossing gives info\['cost'\] = array\(\[1.\]\), which is not a number"),
        ({"costs": [1.0, 2.0]}, r"Crossing gives info\['costs'\] = \[1.0, 2.0\]; give a dict of named costs"),
    ],
)
def test_costs_that_are_none(cost: dict[str, Any], message: str) -> None:
    env = SyncVectorEnv([lambda: Priced(cmdps.Crossing(), cost)] * 2)
    with pytest.raises(ConfigError, match=message):
        collect(make_actor(env), env, 0)


def test_observations_that_are_no_numbers_are_not_the_policys_fault() -> None:
    def spoil(observation: Any) -> Any:
        return np.full_like(observation, np.nan)

    made = cmdps.Crossing()
    env = SyncVectorEnv([lambda: gym.wrappers.TransformObservation(made, spoil, made.observation_space)])
    with pytest.raises(ModelError, match="the environment's observations are not finite"):
        collect(make_actor(env), env, 0)


def test_named_costs_of_an_evaluated_episode_are_sums() -> None:
    env = SyncVectorEnv([lambda: Priced(cmdps.Crossing(), {"cost": 3.0, "costs": {"a": 1.0, "b": 2.0}})] * 2)
    for row in evaluate_policy(make_actor(env), env, seed=0, identity={}):
        steps = row["response_length"]
        assert steps >= 4
        assert (row["cost"], row["costs"]) == (3.0 * steps, {"a": 1.0 * steps, "b": 2.0 * steps})


def test_wrappers_of_an_environment_with_a_vector_form_of_its_own() -> None:
    assert gym.spec("CartPole-v1").vector_entry_point is not None
    trainer = algos.make("ppo_lagrangian", Priced(gym.make("CartPole-v1"), {"cost": 1.0}), cost_limit=5.0, **SMALL)
    assert trainer.source.env.num_envs == 4
    row = trainer.learn()[-1]
    assert row["cost"] == row["response_length"] == row["reward"] > 5


def test_a_mode_by_its_name() -> None:
    env = SyncVectorEnv([lambda: gym.wrappers.TimeLimit(cmdps.Crossing(), 2)] * 2, autoreset_mode="SameStep")
    torch.manual_seed(0)
    actor = make_actor(env)
    critics: Any = make_critics(actor, env, ("reward",))
    torch.nn.init.normal_(critics.reward_critic[-1].weight)
    expected = collect(actor, env, 0, critics=critics).final_reward_values
    assert expected is not None
    env.metadata = {**env.metadata, "autoreset_mode": "SameStep"}
    assert torch.equal(collect(actor, env, 0, critics=critics).final_reward_values, expected)  # type: ignore[arg-type]
    env.metadata["autoreset_mode"] = "same"
    with pytest.raises(ConfigError, match="is 'same'; it must be one of NextStep, SameStep, Disabled"):
        collect(actor, env, 0)


def test_texts_are_not_played_past_a_wrapper(caplog: pytest.LogCaptureFixture) -> None:
    """What a wrapper makes of a step counts: wrapped texts are stepped, and a line says so and what it costs."""
    name, small = "SafeRLHF-Exact-v0", {**SMALL, "episodes_per_iteration": 2, "ptx_coefficient": 0.0}
    plain = algos.make("ppo", gym.make_vec(name, num_envs=2), **small).learn()[0]["reward"]
    recorded = gym.wrappers.TransformReward(gym.make(name), lambda reward: 10 * reward)
    vector = gym.wrappers.vector.TransformReward(gym.make_vec(name, num_envs=2), lambda reward: 10 * reward)
    assert plain != 0
    for env in (recorded, vector):
        caplog.clear()
        _say_that_tokens_are_stepped.cache_clear()
        trainer = algos.make("ppo", env, **small)
        episodes = trainer.source.play(0)
        for i, info in enumerate(episodes.infos):
            own = trainer.source.env.unwrapped
            task = own.task if hasattr(own, "task") else own.envs[0].unwrapped.task
            score = task.score("reward", [info["prompt"]], [info["response"]])[0]
            assert episodes.episode_rewards[i].item() == pytest.approx(10 * score, rel=FLOAT32)
        trainer.learn()
        assert len(caplog.records) == 1
        assert "responses are played token by token through" in caplog.text
    dearer = algos.make("ppo", Dearer(gym.make(name)), **{**small, "episodes": 2, "episodes_per_iteration": 1})
    assert dearer.learn()[-1]["cost"] >= 9


def test_refusals_of_environments() -> None:
    with pytest.raises(UnknownNameError, match="No module named 'no_such_module'"):
        algos.make("ppo", "no_such_module:Task-v0", **SMALL)
    with pytest.raises(ConfigError, match=r"CartPole-v1 takes no list of seeds: .*; make it with vectorization_mode='"):
        algos.make("ppo", "CartPole-v1", **SMALL).learn()
    with pytest.raises(ConfigError, match=r"CartPole-v1 gives no info\['cost'\]"):
        algos.make("ppo", gym.make_vec("CartPole-v1", 4, "sync"), **SMALL).learn()


def test_command_line_on_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "import gymnasium as gym\nfrom tests.helpers import cmdps\n"
        "from textsafe_gym.adapters.safety_gymnasium import from_safety_gymnasium, to_safety_gymnasium\n"
        "class Task(cmdps.Crossing):\n"
        "    def step(self, action):\n"
        "        *rest, info = super().step(action)\n"
        "        return *rest[:2], info.pop('cost'), *rest[2:], info\n"
        "def make(cost_limit=0.5, **_):\n"
        "    return from_safety_gymnasium(Task, cost_limit)\n"
        "gym.register('Task-v0', entry_point=make, max_episode_steps=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ["--episodes", "8", "--set", "episodes_per_iteration=4", "--set", "minibatch_size=2", "--json"]
    request = ["train", "ppo_lagrangian", "--env", "my_tasks:Task-v0", "--set", "env.cost_limit=0.75", *small]
    try:
        done = CliRunner().invoke(main, [*request, "--out", str(tmp_path / "run")])
        assert done.exit_code == 0, done.output
        assert '"cost_limit": 0.75' in done.output
    finally:
        gym.registry.pop("Task-v0", None)
        sys.modules.pop("my_tasks", None)
    for env, message in {
        "CartPole-v1": "takes no list of seeds",
        "Pendulum-v1": "Pendulum-v1 gives no info['cost']",
        "no_such_module:Task-v0": "unknown environment 'no_such_module:Task-v0'",
        "Task-v0": "; one of your own module is module:id",
    }.items():
        asked = ["train", "ppo", "--env", env, "--out", str(tmp_path / "refused"), *small]
        refused = CliRunner().invoke(main, asked)
        assert refused.exit_code == 2, refused.output
        assert message in refused.output
        assert len(refused.output.strip().splitlines()) == 1
        assert not (tmp_path / "refused").exists()
