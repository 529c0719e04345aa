"""Environments whose `step` returns six values, the cost among them, as Safety-Gymnasium's do; in both directions.

Safety-Gymnasium itself is not needed: what counts is that `step` returns (observation, reward, cost, terminated,
truncated, info).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textsafe_gym.envs.infos import autoreset_mode, of_six_values
from textsafe_gym.errors import ConfigError
from textsafe_gym.protocols import Info

SixTuple = tuple[Any, Any, Any, Any, Any, Info]


def from_safety_gymnasium(env: object, cost_limit: float | None = None) -> "FiveTupleEnv | FiveTupleVectorEnv":
    """A Gymnasium environment, with the cost in `info["cost"]`, out of one whose `step` returns six values.

    Args:
        env: an environment, a vector environment, or a class or function that makes one.
        cost_limit: the limit on the mean episode cost; by default the environment's own, if it has one.

    Raises:
        ConfigError: it is not an environment.
    """
    made = env() if callable(env) and (isinstance(env, type) or not hasattr(env, "step")) else env
    for name in ("reset", "step", "observation_space", "action_space"):
        if not hasattr(made, name):
            raise ConfigError(f"env is a {type(made).__name__} without {name}; give an environment or what makes one")
    if hasattr(made, "num_envs"):
        return FiveTupleVectorEnv(made, cost_limit)
    return FiveTupleEnv(made, cost_limit)


def to_safety_gymnasium(env: gym.Env | gym.vector.VectorEnv) -> "SixTupleEnv | SixTupleVectorEnv":
    """A view of a Gymnasium environment, single or vector, whose `step` returns six values.

    Args:
        env: gives `info["cost"]` at every step.
    """
    return SixTupleVectorEnv(env) if isinstance(env, gym.vector.VectorEnv) else SixTupleEnv(env)


class FiveTupleEnv(gym.Env):
    """See `from_safety_gymnasium`. A base environment of its own: Gymnasium's wrappers do not know what is inside.

    Attributes:
        env: the environment of six values.
        cost_limit: on the mean episode cost, or None.
    """

    def __init__(self, env: Any, cost_limit: float | None = None) -> None:
        self.env = env
        self.cost_limit = _limit(env) if cost_limit is None else cost_limit
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata = getattr(env, "metadata", {})
        self.render_mode = getattr(env, "render_mode", None)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[object, Info]:
        """Starts an episode with the task's own `reset`, which takes seed and options."""
        super().reset(seed=seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: object) -> tuple[object, float, bool, bool, Info]:
        """Observation, reward, terminated, truncated, and `info` with "cost".

        Raises:
            ConfigError: the environment returned something other than six values, or pays something other than numbers.
        """
        observation, reward, cost, terminated, truncated, info = _six(self.env, action)
        try:
            reward, cost = (float(np.asarray(number).item()) for number in (reward, cost))
        except (TypeError, ValueError):
            raise ConfigError(f"step returned reward {reward!r:.40}, cost {cost!r:.40}; give numbers") from None
        return observation, reward, bool(terminated), bool(truncated), {**info, "cost": cost}

    def render(self) -> Any:
        """What the environment shows."""
        return self.env.render()

    def close(self) -> None:
        """Closes the task, if it has a `close`."""
        if hasattr(self.env, "close"):
            self.env.close()


class FiveTupleVectorEnv(gym.vector.VectorEnv):
    """See `from_safety_gymnasium`.

    An environment that resets in the step that ends an episode has to say so, as Gymnasium's own do, by
    `metadata["autoreset_mode"]`; "final_observation", the older name, becomes "final_obs", and "final_info", an array
    of dicts in the older form, one dict of arrays.

    Attributes:
        env: the vector environment of six values.
        cost_limit: on the mean episode cost, or None.
    """

    def __init__(self, env: Any, cost_limit: float | None = None) -> None:
        self.env = env
        self.cost_limit = _limit(env) if cost_limit is None else cost_limit
        self.num_envs = env.num_envs
        for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
            setattr(self, name, getattr(env, name))
        self.metadata = {**getattr(env, "metadata", {}), "autoreset_mode": autoreset_mode(env)}
        self.render_mode = getattr(env, "render_mode", None)

    def reset(self, *, seed: object = None, options: Info | None = None) -> tuple[object, Info]:
        """Starts an episode in every row."""
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: object) -> tuple[Any, Any, Any, Any, Info]:
        """Observations, rewards, terminations, truncations, and `info` with "cost", float64 of shape (num_envs,).

        Raises:
            ConfigError: the environment returned something other than six values, or resets in another step than it
                says.
        """
        observations, rewards, costs, terminations, truncations, given = _six(self.env, actions)
        over = np.asarray(terminations) | np.asarray(truncations)
        info = {_NEW_NAMES.get(name, name): value for name, value in given.items()}
        costs = np.asarray(costs, dtype=np.float64)
        info["cost"], info["_cost"] = costs, np.ones(self.num_envs, dtype=bool)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            if over.any():
                info["final_info"] = {**self._columns(info.get("final_info", {})), "cost": costs, "_cost": over}
                info["_final_info"] = over
        elif "final_obs" in info:
            raise ConfigError(
                "the vector environment resets in the step that ends an episode without saying so; set its "
                'metadata["autoreset_mode"] = "SameStep"'
            )
        return observations, rewards, terminations, truncations, info

    def _columns(self, infos: Mapping[str, object] | Sequence[Info | None]) -> Info:
        if isinstance(infos, Mapping):
            return dict(infos)
        columns: Info = {}
        for i, own in enumerate(infos):
            if own is not None:
                columns = self._add_info(columns, own, i)
        return columns

    def render(self) -> Any:
        """What the environment shows."""
        return self.env.render()

    def close_extras(self, **options: object) -> None:
        """Closes the vector environment that is adapted; Gymnasium's `close` calls this once."""
        self.env.close(**options)


class SixTupleEnv(gym.Wrapper):
    """What `to_safety_gymnasium` makes of a single environment: `step` returns the cost as its third value."""

    def step(self, action: object) -> SixTuple:  # type: ignore[override]
        """Observation, reward, cost, terminated, truncated, info.

        Raises:
            ConfigError: the environment's info has no cost.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise ConfigError(_NO_COST.format(self.unwrapped))
        return observation, reward, info["cost"], terminated, truncated, info


class SixTupleVectorEnv(gym.vector.VectorWrapper):
    """See `to_safety_gymnasium`; costs are float64 of shape (num_envs,), of the step just made in every autoreset mode.

    A step that does nothing but reset a row costs 0 there, as its reward is 0.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        super().__init__(env)
        self._resetting = np.zeros(env.num_envs, dtype=bool)

    def reset(self, **arguments: Any) -> tuple[object, Info]:
        """Starts an episode in every row, or in those of `options["reset_mask"]`."""
        self._resetting[:] = False
        return self.env.reset(**arguments)

    def step(self, actions: object) -> SixTuple:  # type: ignore[override]
        """Observations, rewards, costs, terminations, truncations, info.

        Raises:
            ConfigError: the environment's info has no cost for a row.
        """
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        costs, known = np.zeros(self.num_envs), self._resetting.copy()
        for part in (info, info.get("final_info", {})):
            if "cost" in part:
                rows = part.get("_cost", np.ones(self.num_envs, dtype=bool))
                costs[rows] = part["cost"][rows]
                known |= rows
        if not known.all():
            raise ConfigError(_NO_COST.format(self.unwrapped))
        costs[self._resetting] = 0.0  # whatever the info of a reset says
        if autoreset_mode(self.env) is AutoresetMode.NEXT_STEP:
            self._resetting = terminations | truncations
        return observations, rewards, costs, terminations, truncations, info


_NEW_NAMES = {"final_observation": "final_obs", "_final_observation": "_final_obs"}
_NO_COST = "{} gives no info['cost']; a constrained environment has to, at every step"


def _six(env: Any, action: object) -> SixTuple:
    try:
        returned = env.step(action)
    except (gym.error.Error, ValueError) as error:
        if not of_six_values(error):
            raise
        raise ConfigError(
            f"Gymnasium's own {type(env).__name__} takes five values; adapt the environment inside it, its "
            ".unwrapped or its class, and wrap what comes of that"
        ) from None
    if not isinstance(returned, tuple) or len(returned) != 6:
        count = len(returned) if isinstance(returned, tuple) else "no tuple of"
        raise ConfigError(
            f"step returned {count} values, not observation, reward, cost, terminated, truncated, info; "
            "an environment of five values needs no adapter"
        )
    if not isinstance(returned[5], Mapping):
        raise ConfigError(f"step returned a {type(returned[5]).__name__} as its sixth value; info is a dict")
    return returned


def _limit(env: Any) -> float | None:
    """The environment's own limit, through any wrappers."""
    if hasattr(env, "has_wrapper_attr"):
        return env.get_wrapper_attr("cost_limit") if env.has_wrapper_attr("cost_limit") else None
    return getattr(env, "cost_limit", None)
