"""OmniSafe's on-policy algorithms on our environments; importing this makes them known to `omnisafe`.

    from textsafe_gym.adapters import omnisafe

    agent = omnisafe.Agent("PPOLag", "SafeRLHF-v0", custom_cfgs={"cost_limit": -1.0, ...})
    agent.learn()
    agent.agent.policy.save("runs/mine")

OmniSafe (0.5) knows Box actions, networks on vectors and steps of a fixed number. What differs here: the actor is the
environment's own policy (for text a language model with a categorical distribution over tokens), the critics are its
critics, an action is a token's number, and `cost_limit` is one setting whatever the algorithm calls it.
"""

import copy
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textsafe_gym.adapters.omnisafe_files import BUDGETS, INSTALL, NORMALIZERS
from textsafe_gym.adapters.omnisafe_models import PolicyActorCritic
from textsafe_gym.adapters.omnisafe_rows import BoxRows, TokenRows
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.errors import ConfigError
from textsafe_gym.models import make_policy
from textsafe_gym.types import Policy, own_cost_limit


def _stub() -> None:
    """Puts a module in the place of safety_gymnasium, which OmniSafe imports and whose pins cannot be met."""

    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("safety_gymnasium is not installed, so its environments cannot be made")

    module = ModuleType("safety_gymnasium")
    module.make = module.register = absent  # type: ignore[attr-defined]
    module.vector = SimpleNamespace(make=absent)  # type: ignore[attr-defined]
    sys.modules["safety_gymnasium"] = module


try:
    import safety_gymnasium  # noqa: F401
except Exception:  # whatever old simulators raise on a new system
    _stub()
try:
    import omnisafe as library
    from omnisafe import Agent
    from omnisafe.adapter import online_adapter
    from omnisafe.adapter.online_adapter import OnlineAdapter
    from omnisafe.algorithms import algo_wrapper
    from omnisafe.algorithms.on_policy.base.natural_pg import NaturalPG
    from omnisafe.algorithms.on_policy.base.policy_gradient import PolicyGradient
    from omnisafe.envs.core import CMDP, env_register
    from omnisafe.utils.config import Config
except ImportError as error:
    raise ConfigError(f"OmniSafe cannot be imported ({error}); {INSTALL}") from None

__all__ = ["CMDP", "Agent", "GymnasiumCMDP", "env_register", "library", "register"]

# Pay comes at the end of a response and observations are token ids: nothing to discount or to normalise.
PLAIN = dict.fromkeys(NORMALIZERS, False)


def register(env_id: str) -> None:
    """Makes another Gymnasium environment with `info["cost"]` known to OmniSafe under its own id."""
    if env_id not in GymnasiumCMDP._support_envs:
        GymnasiumCMDP._support_envs.append(env_id)


given: ContextVar[tuple[gym.vector.VectorEnv, Policy] | None] = ContextVar("given", default=None)


class GymnasiumCMDP(CMDP):
    """A Gymnasium environment with `info["cost"]` as OmniSafe's vectorised CMDP, with six-tuple steps of tensors.

    Observations are rows of numbers (see `TokenRows` and `BoxRows`). A Discrete action is a Box of one number, the
    action's, between -1 and 1 by name only: so OmniSafe's rescaling changes nothing.

    Args:
        env_id: a Gymnasium id.
        num_envs: how many at once.
        device: of the tensors.
        policy: options of `textsafe_gym.models.make_policy`.
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
        policy: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._num_envs, self._device = num_envs, torch.device(device)
        self._seed: int | None = None
        self._metadata: dict[str, Any] = {}
        taken = given.get()
        self._own = taken is None
        if taken is None:
            env = _vectorised(env_id, num_envs, kwargs)
            taken = env, make_policy(env, **dict(policy or {}))
        self.env, self.policy = taken
        action = self.env.single_action_space
        self.discrete = isinstance(action, gym.spaces.Discrete)
        text = hasattr(self.env.unwrapped, "tokenizer")
        self.rows: Any = TokenRows(self.env.unwrapped) if text else BoxRows(self.env)
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
        return int(getattr(self.env.unwrapped, "max_response_length", None) or spec or 1000)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Starts an episode in each sub-environment."""
        seed, self._seed = self._seed if seed is None else seed, None
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._rows(observation), {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Observation, reward, cost, terminated, truncated, info; an episode that is over begins anew at once."""
        chosen = action.detach().cpu().numpy().reshape(self._num_envs, -1)
        space: Any = self.env.single_action_space
        if self.discrete:
            moves = chosen[:, 0].astype(np.int64) + int(space.start)
        else:
            moves = np.clip(chosen, space.low, space.high).astype(space.dtype)
        observation, reward, over, cut, found = self.env.step(moves)
        cost = np.array(found["cost"] if "cost" in found else np.zeros(self._num_envs), dtype=np.float32)
        info: dict[str, Any] = {}
        done = np.asarray(over) | np.asarray(cut)
        if done.any():
            last = found["final_info"]
            cost = np.where(done, np.asarray(last["cost"], np.float32), cost)
            ends = torch.zeros(self._num_envs, self.rows.columns, device=self._device)
            for i in np.flatnonzero(done).tolist():
                ends[i] = self.rows.one(found["final_obs"][i])
            info = {"final_observation": ends, "_final_observation": torch.as_tensor(done, device=self._device)}
            info = {name: self._alone(x) for name, x in info.items()}
        numbers = (torch.as_tensor(np.asarray(x, np.float32), device=self._device) for x in (reward, cost))
        flags = (torch.as_tensor(np.asarray(x, bool), device=self._device) for x in (over, cut))
        return self._rows(observation), *map(self._alone, (*numbers, *flags)), info  # type: ignore[return-value]

    def set_seed(self, seed: int) -> None:
        """Seeds the next reset."""
        self._seed = seed

    def render(self) -> Any:
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


def _vectorised(env_id: str, num_envs: int, kwargs: Mapping[str, Any]) -> gym.vector.VectorEnv:
    mode: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    try:
        if env_id in ENVIRONMENTS:
            return gym.make_vec(env_id, num_envs=num_envs, **mode, **kwargs)
        return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=mode, **kwargs)
    except gym.error.Error as error:
        raise ConfigError(f"env {env_id}: {' '.join(str(error).split())}") from None


def base_of(env: Any) -> GymnasiumCMDP | None:
    """The environment below OmniSafe's wrappers, if it is one of ours."""
    while not isinstance(env, GymnasiumCMDP) and hasattr(env, "_env"):
        env = env._env
    return env if isinstance(env, GymnasiumCMDP) else None


def _wrap() -> None:
    """Wraps four of OmniSafe's functions; for environments that are not ours nothing changes."""
    read, open_env, make_model = (
        algo_wrapper.get_default_kwargs_yaml,
        OnlineAdapter.__init__,
        PolicyGradient._init_model,
    )
    make_env = online_adapter.make
    opening: list[GymnasiumCMDP] = []

    def made(env_id: str, **kwargs: Any) -> Any:
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

    def with_cost_limit(algo: str, env_id: str, algo_type: str) -> Any:
        found = read(algo, env_id, algo_type)
        if algo_type == "on-policy" and env_id in GymnasiumCMDP._support_envs:
            found.recurisve_update({"cost_limit": None, "algo_cfgs": dict(PLAIN)})
            found.setdefault("env_cfgs", Config())
        return found

    def opened(self: Any, env_id: str, num_envs: int, seed: int, cfgs: Any) -> None:
        opening.clear()
        open_env(self, env_id, num_envs, seed, cfgs)
        opening.clear()
        env = base_of(self._env)
        if env is not None:
            _place_limit(cfgs, env)

    def modelled(self: Any) -> None:
        env = base_of(self._env)
        if env is None:
            make_model(self)
            return
        if self._cfgs.model_cfgs.exploration_noise_anneal and env.discrete:
            raise ConfigError("exploration_noise_anneal is for Gaussian actors; tokens have no such noise")
        self.policy = env.policy
        epochs, twice = self._cfgs.train_cfgs.epochs, isinstance(self, NaturalPG)
        self._actor_critic = PolicyActorCritic(env, self._cfgs.model_cfgs, epochs, twice)

    algo_wrapper.get_default_kwargs_yaml = with_cost_limit
    online_adapter.make = made
    OnlineAdapter.__init__, PolicyGradient._init_model = opened, modelled
    env_register(GymnasiumCMDP)


def _place_limit(cfgs: Any, env: GymnasiumCMDP) -> None:
    """Puts the one limit wherever the algorithm looks for it, unless the user has set it there by that name.

    Raises:
        ConfigError: there is none, or one that the algorithm cannot work with.
    """
    limit = cfgs.get("cost_limit")
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


_wrap()
