"""Vector environments made from ids, environments or vector environments, and their cost limits."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from textsafe_gym.data.prompts import Prompt
from textsafe_gym.errors import ConfigError, UnknownNameError
from textsafe_gym.models import task_of
from textsafe_gym.protocols import Info
from textsafe_gym.registry import did_you_mean

_PLAIN = (bool, int, float, str, type(None), Prompt)


class FloatCosts(gym.Wrapper):
    """Makes floats of whole costs.

    Gymnasium's vector environments give a column of `info` the type that its first row has: after a cost of 0, a cost
    of 0.5 would become 0.
    """

    def reset(self, **arguments: Any) -> tuple[object, Info]:
        """Starts an episode; costs in `info` come as floats."""
        observation, info = self.env.reset(**arguments)
        return observation, _in_floats(info)

    def step(self, action: object) -> tuple[object, float, bool, bool, Info]:
        """The environment's step, with the costs in `info` as floats."""
        *rest, info = self.env.step(action)
        return *rest, _in_floats(info)


def make_vec(env: str | gym.envs.registration.EnvSpec, num_envs: int, **options: Any) -> gym.vector.VectorEnv:
    """`gymnasium.make_vec`, where whole costs among fractions stay what they are."""
    vector = gym.make_vec(env, num_envs=num_envs, **options)
    if isinstance(vector, gym.vector.SyncVectorEnv):
        vector.envs = [FloatCosts(one) for one in vector.envs]
    return vector


def vectorised(env: object, episodes: int) -> gym.vector.VectorEnv:
    """A vector environment of so many sub-environments, where `env` is not a vector environment already.

    Args:
        env: an id; an environment, which is made again from its spec, wrappers included, unless it is not registered
            or its wrappers keep no record of their arguments: then it is the only sub-environment; or a vector
            environment, which is returned.
        episodes: sub-environments.

    Raises:
        UnknownNameError: no such environment.
        ConfigError: `env` is none of these, or was changed after it was made, which its spec does not know.
    """
    if isinstance(env, gym.vector.VectorEnv):
        return env
    try:
        if isinstance(env, str):
            return make_vec(env, episodes)
        if isinstance(env, gym.Env):
            # Gymnasium notes no arguments of a wrapper that is not a `gymnasium.utils.RecordConstructorArgs`.
            if env.spec is None or any(wrapper.kwargs is None for wrapper in env.spec.additional_wrappers):
                return gym.vector.SyncVectorEnv([lambda: env])
            # A vector form of its own has no place for wrappers.
            options = {"vectorization_mode": "sync"} if env.spec.additional_wrappers else {}
            vector = make_vec(env.spec, episodes, **options)
            _check_unchanged(env, vector)
            return vector
    except (gym.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise  # the module of "module:id" is there and lacks another
        raise UnknownNameError(f"cannot make the environment: {' '.join(str(error).split())}") from None
    raise ConfigError(f"env is a {type(env).__name__}; give an id, a gymnasium.Env or a gymnasium.vector.VectorEnv")


def _check_unchanged(env: gym.Env, made: gym.vector.VectorEnv) -> None:
    """Refuses an environment whose settings are no longer those that it is made with.

    A setting is a plain attribute that has the name of one of the constructor's arguments, and the cost limit.

    Raises:
        ConfigError: names the first that differs.
    """
    ours, theirs = env.unwrapped, task_of(made)
    own_limit = env.get_wrapper_attr("cost_limit") if env.has_wrapper_attr("cost_limit") else None
    settings = [("cost_limit", own_limit, own_cost_limit(made))]
    for one, other in ((ours, theirs), (getattr(ours, "task", None), getattr(theirs, "task", None))):
        known = inspect.signature(type(one)).parameters.keys() if hasattr(one, "__dict__") else ()
        both = [name for name in known if name in vars(one) and name in getattr(other, "__dict__", {})]
        settings += [(name, vars(one)[name], vars(other)[name]) for name in both if name != "render_mode"]
    for name, now, again in settings:
        if _plain(now) and _plain(again) and now != again:
            made.close()
            raise ConfigError(
                f"env: its {name} is {now!r:.60}, but it is made again for training, and then has {again!r:.60}; give "
                f"gymnasium.make {name}=..., or register a class of your own and give its id"
            )


def _plain(value: object) -> bool:
    return all(map(_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def own_cost_limit(env: gym.vector.VectorEnv) -> float | None:
    """A vector environment's own `cost_limit`, or else that of its first sub-environment or of a wrapper of it."""
    limit = getattr(env.unwrapped, "cost_limit", None)
    if limit is None and isinstance(env.unwrapped, gym.vector.SyncVectorEnv):
        first = env.unwrapped.envs[0]
        limit = first.get_wrapper_attr("cost_limit") if first.has_wrapper_attr("cost_limit") else None
    return None if limit is None else float(limit)


def check_cost_names(limited: Iterable[str], known: Collection[str]) -> None:
    """Refuses limits on costs that there are not.

    Args:
        limited: the names in `cost_limits`.
        known: the names of all costs that the environment has.

    Raises:
        ConfigError: names the first that is not known.
    """
    for name in sorted(set(limited).difference(known)):
        raise ConfigError(
            f"cost_limits: '{name}' is not a cost of the environment; its named costs: "
            f"{', '.join(known) or 'none'}; {did_you_mean(name, known)}".rstrip("; ")
        )


def _in_floats(info: Mapping[str, object]) -> Info:
    own = dict(info)
    for key in own.keys() & {"cost", "costs"}:
        value = own[key]
        own[key] = {name: _float(x) for name, x in value.items()} if isinstance(value, Mapping) else _float(value)
    return own


def _float(value: object) -> object:
    return float(value) if isinstance(value, int | np.integer | np.bool_) else value
