"""Environments with `info["cost"]` for Stable-Baselines3: a `VecEnv`, a features extractor for texts, costs in the log.

Stable-Baselines3 maximises the reward alone. The cost is counted next to it, in `info["episode"]["c"]`.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.envs.infos import InfoReader, autoreset_mode, info_row
from textsafe_gym.envs.making import make_vec
from textsafe_gym.errors import ConfigError
from textsafe_gym.protocols import Info

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.utils import safe_mean
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
except ModuleNotFoundError as error:
    raise ConfigError(
        f'Stable-Baselines3 cannot be imported ({error}); install it with: pip install "textsafe-gym[sb3]"'
    ) from None


def make_vec_env(env_id: str, n_envs: int = 16, **options: Any) -> "CostVecEnv":
    """A `CostVecEnv` of `n_envs` environments.

    Args:
        env_id: a Gymnasium id.
        n_envs: how many.
        **options: the environment's keyword arguments.
    """
    mode = AutoresetMode.SAME_STEP
    if env_id in ENVIRONMENTS:
        return CostVecEnv(gym.make_vec(env_id, num_envs=n_envs, autoreset_mode=mode, **options))
    return CostVecEnv(
        make_vec(env_id, n_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options)
    )


class CostVecEnv(VecEnv):
    """A vector environment as Stable-Baselines3 wants it.

    The observation after the end of an episode is the next one's first; `infos[i]` then has "terminal_observation",
    and "TimeLimit.truncated" if a limit from outside cut the episode. It also has "episode", as a `Monitor` would give
    it: "r", the sum of rewards, "l", the steps, "t", the seconds since the start, and next to these "c", the sum of
    costs, and "c_NAME" for each named cost. `reset_infos` has the info of each row's last reset.

    Args:
        env: gives `info["cost"]` at every step and resets in the step that ends an episode.

    Raises:
        ConfigError: it resets otherwise, or its actions do not count from 0.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        mode = autoreset_mode(env)
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"Stable-Baselines3 resets in the step that ends an episode, but the environment's autoreset_mode is "
                f"{mode.value}; make it with autoreset_mode='SameStep', or with make_vec_env"
            )
        start = getattr(env.single_action_space, "start", 0)
        if np.any(start):
            raise ConfigError(
                f"Stable-Baselines3 counts actions from 0, the environment from {start}; wrap it with "
                "gymnasium.wrappers.TransformAction"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._start = time.time()
        self._read = InfoReader(env)
        self._sums: list[dict[str, float]] = [{} for _ in range(self.num_envs)]

    def reset(self) -> VecEnvObs:
        """Starts an episode in every row; returns the observations."""
        options = self._options[0]
        if any(row != options for row in self._options):
            raise ConfigError("set_options: the rows share one vector environment; give all the same options")
        seeds = None if None in self._seeds else self._seeds
        observations, info = self.env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        self.reset_infos = [info_row(info, i) for i in range(self.num_envs)]
        self._sums = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return deepcopy(observations)  # Stable-Baselines3 keeps them past the next step, which may use them again

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions of the step to come."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, rewards float32, dones, and an info for each row.

        Raises:
            ConfigError: the environment's info has no cost for a row, or none that can be trusted.
        """
        observations, rewards, terminations, truncations, info = self.env.step(self._actions)
        dones = terminations | truncations
        infos = [self._info(info, i, bool(dones[i]), float(rewards[i])) for i in range(self.num_envs)]
        for i, own in enumerate(infos):
            own["TimeLimit.truncated"] = bool(truncations[i] and not terminations[i])
        return deepcopy(observations), rewards.astype(np.float32), dones, infos

    def _info(self, info: Info, i: int, done: bool, reward: float) -> Info:
        own = self._read(info["final_info"] if done else info, i)
        named = {f"c_{name}": cost for name, cost in own.get("costs", {}).items()}
        sums = self._sums[i]
        for key, value in {"r": reward, "l": 1, "c": own["cost"], **named}.items():
            sums[key] = sums.get(key, 0) + value
        if done:
            own["terminal_observation"] = deepcopy(info["final_obs"][i])
            own["episode"] = {**sums, "t": round(time.time() - self._start, 6)}
            begun = info_row(info, i)
            self.reset_infos[i] = {key: begun[key] for key in begun.keys() - {"final_obs", "final_info", *_COSTS}}
            self._sums[i] = {}
        return own

    def close(self) -> None:
        """Closes the Gymnasium environment `env`, rows and all."""
        self.env.close()

    def render(self, mode: str | None = None) -> Any:
        """What the environment shows; `mode` was decided when it was made."""
        return self.env.render()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """An attribute of each row's environment; one of the vector environment itself where it is all there is."""
        env: Any = self.env.unwrapped
        several = hasattr(env, "get_attr")
        values = env.get_attr(attr_name) if several else [getattr(env, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Not offered; set it on `env`."""
        raise NotImplementedError("the rows are one vector environment; reach it by .env")

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[object]:
        """Not offered; call it on `env`."""
        raise NotImplementedError("the rows are one vector environment; reach it by .env")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Whether a row's episodes are counted as by a `Monitor`, which they are; no other wrapper is known."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


class WindowExtractor(BaseFeaturesExtractor):
    """Reads a text environment's window: embeds each token, puts 0 where there is none, and joins all in order.

    Args:
        observation_space: with "input_ids" and "attention_mask".
        width: of a token's embedding; features are as many as window times width.

    Raises:
        ConfigError: the environment is not of texts, or its observations have been normalised.
    """

    def __init__(self, observation_space: gym.spaces.Dict, width: int = 16) -> None:
        ids = observation_space.get("input_ids") if isinstance(observation_space, gym.spaces.Dict) else None
        if not isinstance(ids, gym.spaces.Box):
            raise ConfigError(f"a WindowExtractor reads input_ids and attention_mask, not {observation_space}")
        super().__init__(observation_space, features_dim=ids.shape[0] * width)
        self.embedding = torch.nn.Embedding(int(ids.high.max()) + 1, width)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, window · width)."""
        ids, mask = observations["input_ids"], observations["attention_mask"]
        tokens = ids.long()  # Stable-Baselines3 makes floats of all it reads
        if bool((ids != tokens).any()):
            raise ConfigError("the token ids are not whole numbers; give VecNormalize norm_obs=False")
        return (self.embedding(tokens) * mask.unsqueeze(-1)).flatten(1)


class CostCallback(BaseCallback):
    """Logs `rollout/ep_cost_mean`, and for each named cost `rollout/ep_cost_NAME_mean`, next to `ep_rew_mean`.

    Raises:
        ConfigError: the episodes are not counted by a `CostVecEnv`.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        episodes: Sequence[Info] = list(self.model.ep_info_buffer or [])
        if episodes and "c" not in episodes[0]:
            raise ConfigError(
                "CostCallback finds no cost in the episodes; make the environment with make_vec_env or CostVecEnv, and "
                "put no Monitor over it"
            )
        keys = [key for key in (episodes[0] if episodes else {}) if key == "c" or key.startswith("c_")]
        for key in keys:
            self.logger.record(f"rollout/ep_cost{key[1:]}_mean", safe_mean([episode[key] for episode in episodes]))


_COSTS = ("cost", "costs")  # in a row's info of the step that reset it, they are what its last episode paid
