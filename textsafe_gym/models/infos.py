"""What Gymnasium's vector environments say beside observations and rewards: costs, other infos, and when they reset."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textsafe_gym.errors import ConfigError


class FloatCosts(gym.Wrapper[Any, Any, Any, Any]):
    """Makes floats of whole costs.

    Gymnasium's vector environments give a column of `info` the type that its first row has: beside a cost of 0, a cost
    of 0.5 would become 0.
    """

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        observation, info = self.env.reset(**arguments)
        return observation, _in_floats(info)

    def step(self, action: Any) -> Any:
        """The environment's step."""
        *rest, info = self.env.step(action)
        return *rest, _in_floats(info)


def make_vec(env: str | gym.envs.registration.EnvSpec, num_envs: int, **options: Any) -> gym.vector.VectorEnv:
    """`gymnasium.make_vec`, where whole costs among fractions stay what they are."""
    vector = gym.make_vec(env, num_envs=num_envs, **options)
    if isinstance(vector, gym.vector.SyncVectorEnv):
        vector.envs = [FloatCosts(one) for one in vector.envs]
    return vector


def autoreset_mode(env: Any) -> AutoresetMode:
    """When a vector environment resets a row that has ended; in the next step, unless its metadata says otherwise.

    Raises:
        ConfigError: they say something else.
    """
    said = getattr(env, "metadata", {}).get("autoreset_mode", AutoresetMode.NEXT_STEP)
    try:
        return AutoresetMode(said)
    except ValueError:
        names = ", ".join(mode.value for mode in AutoresetMode)
        raise ConfigError(f"metadata['autoreset_mode'] is {said!r:.60}; it must be one of {names}") from None


def of_six_values(error: Exception) -> bool:
    """Whether Python, or Gymnasium's own check, says that a step returned six values in the place of five."""
    return any(sign in str(error) for sign in ("too many values to unpack (expected 5", "elements returned: 6"))


class InfoReader:
    """Reads a row's info, checking its cost.

    Args:
        env: a vector environment.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        inner: Any = getattr(env.unwrapped, "envs", [env])[0].unwrapped
        self.name = env.spec.id if env.spec else type(inner).__name__
        self._together = env.num_envs > 1
        self._types: set[bool] = set()

    def __call__(self, info: Mapping[str, Any], i: int) -> dict[str, Any]:
        """Row i's own info, with "cost".

        Raises:
            ConfigError: there is no cost, it is no number, or whole numbers and fractions come in turn, of which the
                vector environment has cut some.
        """
        own = info_row(info, i)
        if "cost" not in own:
            raise ConfigError(f"{self.name} gives no info['cost']; a constrained environment has to, at every step")
        cost, named = own["cost"], own.get("costs", {})
        if not isinstance(cost, int | float | np.number | np.bool_):
            raise ConfigError(f"{self.name} gives info['cost'] = {cost!r:.60}, which is no number")
        if not isinstance(named, Mapping):
            raise ConfigError(f"{self.name} gives info['costs'] = {named!r:.60}; give a dict of named costs")
        self._types.add(isinstance(cost, float | np.floating))
        if self._together and len(self._types) > 1:
            raise ConfigError(
                f"{self.name} gives info['cost'] now as a whole number, now as a float, and Gymnasium's vector "
                "environments cut floats beside a whole number; give a float at every step"
            )
        return own


def info_row(info: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Sub-environment i's own info out of a vector environment's, in which `_key` says whose `key` is set."""
    own: dict[str, Any] = {}
    for key, value in info.items():
        whose = info.get(f"_{key}")
        if not key.startswith("_") and (whose is None or whose[i]):
            own[key] = info_row(value, i) if isinstance(value, Mapping) else value[i]
    return own


def _in_floats(info: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(info)
    for key in own.keys() & {"cost", "costs"}:
        value = own[key]
        own[key] = {name: _float(x) for name, x in value.items()} if isinstance(value, Mapping) else _float(value)
    return own


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int | np.integer | np.bool_) else value
