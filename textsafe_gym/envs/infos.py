"""What Gymnasium's vector environments say next to observations and rewards: costs, infos, and when they reset."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textsafe_gym.errors import ConfigError
from textsafe_gym.models import task_of
from textsafe_gym.protocols import Info


def autoreset_mode(env: object) -> AutoresetMode:
    """When a vector environment resets a row that has ended; in the next step, unless its metadata says otherwise.

    Raises:
        ConfigError: they say something else.
    """
    mode = getattr(env, "metadata", {}).get("autoreset_mode", AutoresetMode.NEXT_STEP)
    try:
        return AutoresetMode(mode)
    except ValueError:
        names = ", ".join(known.value for known in AutoresetMode)
        raise ConfigError(f"metadata['autoreset_mode'] is {mode!r:.60}; it must be one of {names}") from None


def of_six_values(error: Exception) -> bool:
    """Whether Python, or Gymnasium's own check, says that a step returned six values in the place of five."""
    return any(sign in str(error) for sign in ("too many values to unpack (expected 5", "elements returned: 6"))


class InfoReader:
    """Reads a row's info, checking its cost.

    Args:
        env: a vector environment.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        self.name = env.spec.id if env.spec else type(task_of(env)).__name__
        self._together = env.num_envs > 1
        self._types: set[bool] = set()

    def __call__(self, info: Info, i: int) -> Info:
        """Row i's own info, with "cost".

        Raises:
            ConfigError: there is no cost, it is not a number, or whole numbers and fractions come in turn, of which the
                vector environment has cut some.
        """
        own = info_row(info, i)
        if "cost" not in own:
            raise ConfigError(f"{self.name} gives no info['cost']; a constrained environment has to, at every step")
        cost, named = own["cost"], own.get("costs", {})
        if not isinstance(cost, int | float | np.number | np.bool_):
            raise ConfigError(f"{self.name} gives info['cost'] = {cost!r:.60}, which is not a number")
        if not isinstance(named, Mapping):
            raise ConfigError(f"{self.name} gives info['costs'] = {named!r:.60}; give a dict of named costs")
        self._types.add(isinstance(cost, float | np.floating))
        if self._together and len(self._types) > 1:
            raise ConfigError(
                f"{self.name} gives info['cost'] now as a whole number, now as a float, and Gymnasium's vector "
                "environments cut floats after a whole number; give a float at every step"
            )
        return own


def info_row(info: Mapping[str, Any], i: int) -> Info:
    """A copy of sub-environment i's own info in a vector environment's, where `_key` says whose `key` is set."""
    own: Info = {}
    for key, value in info.items():
        whose = info.get(f"_{key}")
        if not key.startswith("_") and (whose is None or whose[i]):
            own[key] = info_row(value, i) if isinstance(value, Mapping) else _kept(value[i])
    return own


def _kept(value: Any) -> Any:
    """A copy of an array, or of those in a dict, since an environment may use them again."""
    if isinstance(value, Mapping):
        return {name: _kept(x) for name, x in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
