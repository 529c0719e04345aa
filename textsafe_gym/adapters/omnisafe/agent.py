"""OmniSafe's on-policy algorithms on our environments; importing this makes them known to `omnisafe`.

    from textsafe_gym.adapters import omnisafe

    agent = omnisafe.Agent("PPOLag", "SafeRLHF-v0", custom_cfgs={"cost_limit": -1.0, ...})
    agent.learn()
    agent.agent.policy.save("runs/mine")

OmniSafe (0.5) knows Box actions, networks on vectors and steps of a fixed number. What differs here: the actor is
the environment's own policy (for text a language model with a categorical distribution over tokens), the critics are
its critics, an action is a token's number, and `cost_limit` is one setting whatever the algorithm calls it.
"""

import copy
import math
from typing import Any

from textsafe_gym.adapters.omnisafe.env import GymnasiumCMDP, base_of
from textsafe_gym.adapters.omnisafe.evaluation import Evaluator
from textsafe_gym.adapters.omnisafe.files import BUDGETS, NORMALIZERS
from textsafe_gym.adapters.omnisafe.library import (
    CMDP,
    Agent,
    Config,
    NaturalPG,
    OnlineAdapter,
    PolicyGradient,
    algo_wrapper,
    env_register,
    library,
    online_adapter,
)
from textsafe_gym.adapters.omnisafe.models import PolicyActorCritic
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import json_line
from textsafe_gym.protocols import TextTask

__all__ = ["CMDP", "Agent", "Evaluator", "GymnasiumCMDP", "env_register", "library", "register"]

# Pay comes at the end of a response and observations are token ids: nothing to discount or to normalise.
PLAIN = dict.fromkeys(NORMALIZERS, False)


def register(env_id: str) -> None:
    """Makes another Gymnasium environment with `info["cost"]` known to OmniSafe under its own id."""
    if env_id not in GymnasiumCMDP._support_envs:
        GymnasiumCMDP._support_envs.append(env_id)


def _wrap() -> None:
    """Wraps four of OmniSafe's functions and its evaluator; for environments that are not ours nothing changes."""
    read, open_env, make_model = (
        algo_wrapper.get_default_kwargs_yaml,
        OnlineAdapter.__init__,
        PolicyGradient._init_model,
    )
    make_env = online_adapter.make
    opening: list[GymnasiumCMDP] = []

    def made(env_id: str, **kwargs: object) -> object:
        # OmniSafe makes a second environment to evaluate in, which on-policy algorithms never step: the first one by
        # another name, so that no model is loaded twice.
        if opening:
            second = copy.copy(opening[0])
            second._num_envs = 1
            return second
        env = make_env(env_id, **kwargs)
        if isinstance(env, GymnasiumCMDP):
            opening.append(env)
        return env

    def with_cost_limit(algo: str, env_id: str, algo_type: str) -> Config:
        found = read(algo, env_id, algo_type)
        if env_id in GymnasiumCMDP._support_envs:
            if algo_type != "on-policy":
                raise ConfigError(f"{algo} is {algo_type}; on {env_id} only OmniSafe's on-policy algorithms learn")
            found.recurisve_update({"cost_limit": None, "algo_cfgs": dict(PLAIN)})
            found.setdefault("env_cfgs", Config())
        return found

    def opened(self: Any, env_id: str, num_envs: int, seed: int, cfgs: Config) -> None:
        opening.clear()
        if env_id in GymnasiumCMDP._support_envs:
            _check_saving(cfgs, env_id)
        open_env(self, env_id, num_envs, seed, cfgs)
        opening.clear()
        env = base_of(self._env)
        if env is not None:
            _place_limit(cfgs, env)
        if env is not None and env_id in GymnasiumCMDP._support_envs:
            _check_steps(cfgs.algo_cfgs.steps_per_epoch, env)

    def modelled(self: Any) -> None:
        env = base_of(self._env)
        if env is None:
            make_model(self)
            return
        if self._cfgs.model_cfgs.exploration_noise_anneal and env.discrete:
            raise ConfigError("exploration_noise_anneal is for Gaussian actors; tokens have no such noise")
        self.policy = env.agent.actor
        epochs, twice = self._cfgs.train_cfgs.epochs, isinstance(self, NaturalPG)
        self._actor_critic = PolicyActorCritic(env, self._cfgs.model_cfgs, epochs, twice)

    algo_wrapper.get_default_kwargs_yaml = with_cost_limit
    algo_wrapper.Evaluator = library.Evaluator = Evaluator
    online_adapter.make = made
    OnlineAdapter.__init__, PolicyGradient._init_model = opened, modelled
    env_register(GymnasiumCMDP)


def _place_limit(cfgs: Config, env: GymnasiumCMDP) -> None:
    """Puts the one limit wherever the algorithm looks for it, unless the user has set it there by that name.

    Raises:
        ConfigError: there is none, or one that the algorithm cannot work with.
    """
    limit = cfgs.get("cost_limit")
    if limit is not None and not (isinstance(limit, int | float) and math.isfinite(limit)):
        raise ConfigError(f"cost_limit = {limit!r:.60}: expected a finite number")
    limit = env.cost_limit if limit is None else float(limit)
    by_hand = cfgs.get("exp_increment_cfgs", {})
    for section in ("lagrange_cfgs", "algo_cfgs"):
        for key in ("cost_limit", *BUDGETS):
            if key not in cfgs.get(section, {}) or key in (by_hand.get(section) or {}):
                continue
            if limit is None:
                raise ConfigError(f"{cfgs.algo} needs a cost_limit, and the environment has none; set cost_limit")
            if key in BUDGETS and limit <= 0:
                raise ConfigError(
                    f"{cfgs.algo} spends the cost limit as a budget, so that it must be above 0, not {limit:g}"
                )
            cfgs[section][key] = limit
    if "max_ep_len" in cfgs.algo_cfgs and "max_ep_len" not in (by_hand.get("algo_cfgs") or {}):
        cfgs.algo_cfgs.max_ep_len = env.longest


def _check_saving(cfgs: Config, env_id: str) -> None:
    """Refuses what a saved policy could not be played with again.

    Raises:
        ConfigError: observations are normalised, or the environment's arguments cannot be written.
    """
    if cfgs.algo_cfgs.obs_normalize:
        raise ConfigError(f"obs_normalize: policies on {env_id} are saved without a normaliser; leave it false")
    try:
        json_line(cfgs.env_cfgs.todict())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"env_cfgs: {error}, and OmniSafe writes them to a file; register the environment with such arguments "
            "under an id of its own"
        ) from None


def _check_steps(steps: int, env: GymnasiumCMDP) -> None:
    """Refuses epochs that cut responses off: these would never be paid, nor count.

    Raises:
        ConfigError: the longest response does not fit.
    """
    task = env.env.unwrapped
    longest = task.max_response_length * env.env.num_envs if isinstance(task, TextTask) else 0
    if steps < longest:
        raise ConfigError(
            f"steps_per_epoch = {steps} is too short for the longest response in each of {env.env.num_envs} "
            f"environments; set steps_per_epoch={longest} or more, or fewer vector_env_nums"
        )


_wrap()
