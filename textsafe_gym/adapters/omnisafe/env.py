"""A Gymnasium environment as OmniSafe's vectorised CMDP."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textsafe_gym.adapters.omnisafe.library import CMDP
from textsafe_gym.adapters.omnisafe.rows import BoxRows, TokenRows
from textsafe_gym.config import Values
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.envs.making import make_vec, own_cost_limit
from textsafe_gym.errors import ConfigError
from textsafe_gym.models import make_actor, make_critics, reads_tokens
from textsafe_gym.models.files import one_line
from textsafe_gym.protocols import Info, TextTask
from textsafe_gym.types import Agent

given: ContextVar[tuple[gym.vector.VectorEnv, Agent] | None] = ContextVar("given", default=None)


class GymnasiumCMDP(CMDP):
    """A Gymnasium environment with `info["cost"]` as OmniSafe's vectorised CMDP, with six-tuple steps of tensors.

    Observations are rows of numbers (see `TokenRows` and `BoxRows`). A Discrete action is a Box of one number, the
    action's, between -1 and 1 by name only: so OmniSafe's rescaling changes nothing.

    Args:
        env_id: a Gymnasium id.
        num_envs: how many at once.
        device: of the tensors.
        policy: options of `textsafe_gym.models.make_actor`, and `make_critics`.
        **kwargs: of the environment.

    Raises:
        TextsafeError: an argument is wrong.
    """

    need_auto_reset_wrapper = False
    need_time_limit_wrapper = False
    _support_envs = list(ENVIRONMENTS)  # noqa: RUF012 (OmniSafe's own form)

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        policy: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        self._num_envs, self._device = num_envs, torch.device(device)
        self._seed: int | None = None
        self._metadata: dict[str, object] = {}
        taken = given.get()
        self._own = taken is None
        if taken is None:
            env = _vectorised(env_id, num_envs, kwargs)
            taken = env, _agent(env, policy or {})
        self.env, self.agent = taken
        action = self.env.single_action_space
        self.discrete = isinstance(action, gym.spaces.Discrete)
        self.rows = TokenRows(self.env.unwrapped) if reads_tokens(self.env) else BoxRows(self.env)
        self._observation_space = gym.spaces.Box(-np.inf, np.inf, (self.rows.columns,), np.float32)
        self._action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32) if self.discrete else action

    @property
    def cost_limit(self) -> float | None:
        """The environment's own limit on the mean episode cost."""
        return own_cost_limit(self.env)

    @property
    def longest(self) -> int:
        """Steps of the longest episode, where it is known, else 1000."""
        spec = self.env.spec.max_episode_steps if self.env.spec else None
        task = self.env.unwrapped
        return task.max_response_length if isinstance(task, TextTask) else spec or 1000

    def reset(self, seed: int | None = None, options: Info | None = None) -> tuple[Tensor, Info]:
        """Starts an episode in each sub-environment."""
        seed, self._seed = self._seed if seed is None else seed, None
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._rows(observation), {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Info]:
        """Observation, reward, cost, terminated, truncated, info; an episode that is over begins anew at once."""
        chosen = action.detach().cpu().numpy().reshape(self._num_envs, -1)
        space = self.env.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            moves = chosen[:, 0].astype(np.int64) + int(space.start)
        else:
            assert isinstance(space, gym.spaces.Box)
            moves = np.clip(chosen, space.low, space.high).astype(space.dtype)
        observation, reward, over, cut, found = self.env.step(moves)
        info: Info = {}
        done = np.asarray(over) | np.asarray(cut)
        cost = _costs(found, ~done, self.env)
        if done.any():
            cost = np.where(done, _costs(found["final_info"], done, self.env), cost)
            ends = torch.zeros(self._num_envs, self.rows.columns, device=self._device)
            for i in np.flatnonzero(done).tolist():
                ends[i] = self.rows.one(found["final_obs"][i])
            info = {"final_observation": ends, "_final_observation": torch.as_tensor(done, device=self._device)}
            info = {name: self._alone(x) for name, x in info.items()}
        numbers = (torch.as_tensor(np.array(x, np.float32), device=self._device) for x in (reward, cost))
        flags = (torch.as_tensor(np.array(x, bool), device=self._device) for x in (over, cut))
        return self._rows(observation), *map(self._alone, (*numbers, *flags)), info  # type: ignore[return-value]

    def set_seed(self, seed: int) -> None:
        """Seeds the next reset."""
        self._seed = seed

    def render(self) -> object:
        """As the environment does."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment, unless it was given."""
        if self._own:
            self.env.close()

    def _rows(self, observation: Any) -> Tensor:
        return self._alone(self.rows.flat(observation).to(self._device))

    def _alone(self, x: Tensor) -> Tensor:
        """OmniSafe gives a single environment's tensors their leading dimension itself."""
        return x[0] if self._num_envs == 1 else x


def _costs(info: Mapping[str, object], rows: np.ndarray, env: gym.vector.VectorEnv) -> np.ndarray:
    """(n,) what those rows, (n,) bool, have paid; the others mean nothing."""
    if "cost" in info:
        return np.array(info["cost"], np.float32)
    if rows.any():
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise ConfigError(f"{name} gives no info['cost']; a constrained environment has to, at every step")
    return np.zeros(len(rows), np.float32)


def _agent(env: gym.vector.VectorEnv, options: object) -> Agent:
    if not isinstance(options, Mapping):
        raise ConfigError(f"env_cfgs.policy: expected options by name, got {options!r:.60}")
    of_critics = {name: options[name] for name in ("critics", "reward_critic", "cost_critic") if name in options}
    try:
        actor = make_actor(env, **{name: x for name, x in options.items() if name not in of_critics})
        return Agent(actor, make_critics(actor, env, ("reward", "cost"), **of_critics), actor.reference())
    except TypeError as error:  # an option that there is not
        raise ConfigError(f"env_cfgs.policy: {one_line(error)}") from error


def _vectorised(env_id: str, num_envs: int, kwargs: Values) -> gym.vector.VectorEnv:
    mode = AutoresetMode.SAME_STEP
    ours, spec = {vector for _, vector in ENVIRONMENTS.values()}, gym.registry.get(env_id)
    try:
        if spec is not None and spec.vector_entry_point in ours:  # under whatever id
            return gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=mode, **kwargs)
        return make_vec(env_id, num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **kwargs)
    except gym.error.Error as error:
        raise ConfigError(f"env {env_id}: {' '.join(str(error).split())}") from None


def base_of(env: Any) -> GymnasiumCMDP | None:
    """The environment below OmniSafe's wrappers, if it is one of ours."""
    while not isinstance(env, GymnasiumCMDP) and hasattr(env, "_env"):
        env = env._env
    return env if isinstance(env, GymnasiumCMDP) else None
