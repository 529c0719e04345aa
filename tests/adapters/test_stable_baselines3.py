"""Stable-Baselines3 sees the same transitions as we do, in its own form, and learns from them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env as their_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

import textsafe_gym  # noqa: F401  registers the environments
from tests.helpers import cmdps
from tests.helpers.rounding import FLOAT32
from textsafe_gym.adapters.stable_baselines3 import CostCallback, CostVecEnv, WindowExtractor, make_vec_env
from textsafe_gym.errors import ConfigError

FAST = {"n_steps": 64, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0, "gae_lambda": 1.0}
WINDOW = {"features_extractor_class": WindowExtractor}


def sync(task: Any, count: int) -> SyncVectorEnv:
    return SyncVectorEnv([task] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def test_an_environment_may_use_its_arrays_again() -> None:
    kept = []
    for env in (sync(cmdps.Crossing, 3), cmdps.Reusing(sync(cmdps.Crossing, 3))):
        ours = CostVecEnv(env)
        ours.seed(7)
        kept.append([ours.reset(), *(ours.step(np.full(3, t % 2)) for t in range(12))])
    for plainly, again in zip(*kept, strict=True):
        for x, y in zip(plainly, again, strict=True):
            np.testing.assert_equal(_untimed(y), _untimed(x))


def _untimed(value: Any) -> Any:
    if isinstance(value, list):
        return [_untimed(one) for one in value]
    if isinstance(value, dict):
        return {key: _untimed(x) for key, x in value.items() if key != "t"}
    return round(value, 5) if isinstance(value, float) else value  # rewards of one are float32


@pytest.mark.parametrize("kind", ["exact", "truncated", "box"])
def test_the_same_steps_as_their_own_vector_environment(kind: str) -> None:
    """DummyVecEnv, with the single environments, is what Stable-Baselines3 makes itself."""
    makers: dict[str, Any] = {
        "exact": lambda: gym.make("SafeRLHF-Exact-v0"),
        "truncated": lambda: gym.wrappers.TimeLimit(cmdps.Crossing(), 5),
        "box": cmdps.Tracking,
    }
    native = kind == "exact"
    ours = make_vec_env("SafeRLHF-Exact-v0", 3) if native else CostVecEnv(sync(makers[kind], 3))
    theirs = DummyVecEnv([makers[kind]] * 3)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    ours.seed(7), theirs.seed(7)
    assert plain(ours.reset()) == plain(theirs.reset())
    rng, returns, cut = np.random.default_rng(1), np.zeros((3, 3)), 0
    for _ in range(40):
        actions = rng.integers(0, ours.action_space.n, 3) if kind != "box" else rng.uniform(-1, 1, (3, 1))
        observations, rewards, dones, infos = ours.step(actions)
        expected = theirs.step(actions)
        assert plain(observations) == plain(expected[0])
        assert rewards.dtype == expected[1].dtype
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        costs = np.array([info["cost"] for info in expected[3]])
        returns += np.stack([rewards, costs, np.ones(3)], 1)
        for i, info in enumerate(infos):
            episode = info.pop("episode", None)
            assert plain(info) == plain(expected[3][i])
            assert (episode is not None) == dones[i]
            if episode is not None:
                assert [episode[key] for key in "rcl"] == pytest.approx(returns[i].tolist(), rel=FLOAT32)
                assert episode["t"] >= 0
                assert "final_obs" not in ours.reset_infos[i]
                assert ours.reset_infos[i].get("prompt") == theirs.reset_infos[i].get("prompt")
                returns[i] = 0
                cut += info["TimeLimit.truncated"]
    assert (cut > 5) == (kind == "truncated")
    ours.close()


def test_named_costs_and_options(task_options: dict[str, Any]) -> None:
    cost = task_options["cost_model"]
    named = {"a": cost, "b": lambda prompts, responses: np.ones(len(prompts))}
    env = make_vec_env("SafeRLHF-v0", 2, **{**task_options, "cost_model": named})
    env.set_options({"prompt": "fix a bike"})
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == ["fix a bike"] * 2
    _, _, dones, infos = env.step(np.array([1, 4]))
    assert dones.tolist() == [True, False]
    episode = infos[0]["episode"]
    assert episode["c_b"] == 1.0
    assert episode["c"] == pytest.approx(episode["c_a"] + 1.0)
    assert env.get_attr("cost_limit", [1]) == [0.0]
    env.set_options([{"prompt": "please"}, {}])
    with pytest.raises(ConfigError, match="give all the same options"):
        env.reset()
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, device="cpu", policy_kwargs=WINDOW)
    env.set_options()
    logged: dict[str, float] = {}

    class Keep(CostCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            logged.update(self.logger.name_to_value)

    model.learn(32, callback=Keep())
    episodes = list(model.ep_info_buffer)
    assert logged["rollout/ep_cost_mean"] == pytest.approx(np.mean([episode["c"] for episode in episodes]))
    assert logged["rollout/ep_cost_b_mean"] == 1.0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("policy_kwargs", [WINDOW, {}], ids=["window", "out of the box"])
def test_ppo_learns(policy_kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = make_vec_env("SafeRLHF-Exact-v0", 16)
    model = PPO("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **FAST)
    before, _ = evaluate_policy(model, env, 200, deterministic=False)
    model.learn(20_000)
    after, _ = evaluate_policy(model, env, 200, deterministic=False)
    best = gym.make("SafeRLHF-Exact-v0").unwrapped.solve(cost_limit=1e9, kl_coefficient=0.0)
    assert before < 0.5
    assert after > 0.75 * best.reward
    assert np.mean([episode["c"] for episode in model.ep_info_buffer]) > 1.0  # that it pays to be harmful
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=VecMonitor(env))
    assert evaluate_policy(again, env, 50)[0] == pytest.approx(evaluate_policy(model, env, 50)[0], abs=0.5)


@pytest.mark.parametrize("kind", [A2C, DQN])
def test_other_algorithms_wrappers_and_callbacks(kind: Any, tmp_path: Path) -> None:
    def make() -> VecFrameStack:
        return VecFrameStack(make_vec_env("SafeRLHF-Exact-v0", 4), 2)

    env, other = (VecNormalize(make(), norm_obs=False) for _ in range(2))
    settings = {"buffer_size": 1000, "learning_starts": 20} if kind is DQN else {}
    model = kind("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs=WINDOW, **settings)
    model.learn(200, callback=[CostCallback(), EvalCallback(other, n_eval_episodes=5, eval_freq=20, verbose=0)])
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics"))
    again = VecNormalize.load(str(tmp_path / "statistics"), make())
    assert again.ret_rms.mean == env.ret_rms.mean != 0
    model = kind.load(tmp_path / "model", env=again).learn(200, reset_num_timesteps=False)
    assert model.num_timesteps >= 400
    assert all(np.isfinite(episode["c"]) for episode in model.ep_info_buffer)


def test_their_own_make_vec_env() -> None:
    """A cost that comes in the last step is all the episode's."""
    task = {"env_kwargs": {"render_mode": None}, "monitor_kwargs": {"info_keywords": ("cost",)}}
    env = their_make_vec_env("SafeRLHF-Exact-v0", 2, **task)
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, device="cpu", policy_kwargs=WINDOW).learn(32)
    known = np.array([(row.reward, row.cost) for row in gym.make("SafeRLHF-Exact-v0").unwrapped.enumerate()])
    paid = np.array([(episode["r"], episode["cost"]) for episode in model.ep_info_buffer])
    # Monitor rounds a return to six decimals; rounding both to four parts numbers at the edge between two.
    assert (np.abs(paid[:, None] - known).max(-1).min(-1) < 1e-5).all()
    assert len(paid) > 1
    with pytest.raises(ConfigError, match="CostCallback finds no cost in the episodes; make the environment with"):
        model.learn(32, callback=CostCallback())


def test_whole_costs_next_to_fractions() -> None:
    gym.register("Halves-v0", entry_point=cmdps.Halves)
    try:
        env = make_vec_env("Halves-v0", 2)
    finally:
        del gym.registry["Halves-v0"]
    env.reset()
    assert [info["cost"] for info in env.step(np.array([0, 1]))[3]] == [0.0, 0.5]


def test_single_environments_pass_their_check() -> None:
    check_env(gym.make("SafeRLHF-Exact-v0"), warn=False)


def test_the_extractor_sees_tokens_and_no_padding() -> None:
    env = make_vec_env("SafeRLHF-Exact-v0", 2)
    extractor = WindowExtractor(env.observation_space, width=3)
    observation = {name: torch.as_tensor(x).float() for name, x in env.reset().items()}
    features = extractor(observation)
    assert features.shape == (2, extractor.features_dim) == (2, 18)
    torch.testing.assert_close(features[0, 3:6], extractor.embedding.weight[int(observation["input_ids"][0, 1])])
    assert features[:, 6:].abs().sum() == 0


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="autoreset_mode is NextStep; make it with autoreset_mode='SameStep'"):
        CostVecEnv(gym.make_vec("SafeRLHF-Exact-v0", num_envs=2))
    env = make_vec_env("CartPole-v1", 2)
    env.reset()
    with pytest.raises(ConfigError, match=r"CartPole-v1 gives no info\['cost'\]"):
        env.step(np.zeros(2, int))
    later = gym.wrappers.TransformAction(cmdps.Crossing(), lambda a: a - 5, gym.spaces.Discrete(2, start=5))
    with pytest.raises(ConfigError, match="counts actions from 0, the environment from 5; wrap it with"):
        CostVecEnv(sync(lambda: later, 1))
    normalised = VecNormalize(make_vec_env("SafeRLHF-Exact-v0", 2))
    model = PPO("MultiInputPolicy", normalised, n_steps=8, batch_size=8, device="cpu", policy_kwargs=WINDOW)
    with pytest.raises(ConfigError, match="token ids are not whole numbers; give VecNormalize norm_obs=False"):
        model.learn(8)
    with pytest.raises(ConfigError, match="reads input_ids and attention_mask, not Box"):
        WindowExtractor(gym.spaces.Box(0, 1, (2,)))


def test_without_the_library_it_is_one_line() -> None:
    program = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "from textsafe_gym.errors import ConfigError\n"
        "try:\n    import textsafe_gym.adapters.stable_baselines3\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith('pip install "textsafe-gym[sb3]"')
    assert len(said.splitlines()) == 1
