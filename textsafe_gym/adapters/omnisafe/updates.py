"""OmniSafe's updates on rollouts that were made elsewhere."""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textsafe_gym.adapters.omnisafe.agent import PLAIN
from textsafe_gym.adapters.omnisafe.env import GymnasiumCMDP, base_of, given
from textsafe_gym.adapters.omnisafe.files import BUDGETS
from textsafe_gym.adapters.omnisafe.library import PolicyGradient, env_register, library
from textsafe_gym.adapters.omnisafe.rows import Rows
from textsafe_gym.adapters.omnisafe.state import restore, state_of
from textsafe_gym.errors import ConfigError
from textsafe_gym.protocols import Info, State
from textsafe_gym.types import Agent, Rollout


class Record:
    """A rollout that OmniSafe walks through step by step: both the environment's answers and the actor's.

    Args:
        rows: of the environment.
        rollout: whole episodes.
        rewards, costs: (B, T), what is to be learned from.
    """

    def __init__(self, rows: Rows, rollout: Rollout, rewards: Tensor, costs: Tensor) -> None:
        mask = rollout.mask
        self.obs = rows.of(rollout).cpu()
        actions = rollout.actions[mask].float()
        self.actions = (actions if actions.ndim > 1 else actions[:, None]).cpu()
        names = ("reward_values", "cost_values", "log_probs")
        self.values_r, self.values_c, self.log_probs = (vars(rollout)[name][mask].cpu() for name in names)
        self.rewards, self.costs = rewards[mask].cpu(), costs[mask].cpu()
        ends = rollout.lengths.cumsum(0).cpu() - 1
        self.last = torch.zeros(len(self.obs), dtype=torch.bool)
        self.last[ends] = True
        # V after the last step, where a limit from outside cut the episode; 0 where the MDP ended it.
        found = (rollout.final_reward_values, rollout.final_cost_values)
        finals = [torch.zeros(len(rollout)) if x is None else x.cpu() for x in found]
        self.finals = {int(end): (r, c) for end, r, c in zip(ends, *finals, strict=True) if r != 0 or c != 0}
        self.at = 0

    def __len__(self) -> int:
        return len(self.obs)

    def step(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The actor's side; `obs` is the record's own."""
        if obs.ndim == 1:  # one observation instead of a row for each environment: an episode that was cut short
            value_r, value_c = self.finals[self.at - 1]
            return self.actions[0], value_r, value_c, self.log_probs[0]
        now = slice(self.at, self.at + 1)
        return self.actions[now], self.values_r[now], self.values_c[now], self.log_probs[now]


class _Replayed(GymnasiumCMDP):
    """The environment's side of a `Record`."""

    _support_envs = ["textsafe-replay"]  # noqa: RUF012 (OmniSafe's own form)
    record: Record

    def reset(self, seed: int | None = None, options: Info | None = None) -> tuple[Tensor, Info]:
        return self.record.obs[self.record.at % len(self.record)], {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Info]:
        record, now = self.record, self.record.at
        record.at += 1
        cut = torch.tensor(now in record.finals)
        following = record.obs[record.at % len(record)]
        info = {"final_observation": following}
        return following, record.rewards[now], record.costs[now], record.last[now] & ~cut, cut, info


env_register(_Replayed)


class Updater:
    """One of OmniSafe's algorithms that learns from rollouts made elsewhere.

    Args:
        name: of one of OmniSafe's on-policy algorithms.
        settings: by section, over the defaults that OmniSafe's YAML files have.
        env: what the rollouts are made in.
        agent: what they are made with.
        cost_limit: for the algorithms that have one.
        seed: of OmniSafe's own draws.
        episodes: in each rollout; OmniSafe's window of costs spans them.
        updates: planned; the learning rate falls over them.
        log_dir: where OmniSafe writes its files.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, object],
        env: gym.vector.VectorEnv,
        agent: Agent,
        *,
        cost_limit: float | None,
        seed: int,
        episodes: int,
        updates: int,
        log_dir: str,
    ) -> None:
        with redirect_stdout(io.StringIO()):
            cfgs = library.utils.config.get_default_kwargs_yaml(name, "", "on-policy")
        cfgs.recurisve_update(dict(settings))
        cfgs.recurisve_update(
            {
                "algo": name,
                "env_id": _Replayed._support_envs[0],
                "exp_name": name,
                "seed": seed,
                "cost_limit": cost_limit,
                "train_cfgs": {"vector_env_nums": 1, "parallel": 1, "epochs": updates, "device": "cpu"},
                "algo_cfgs": {**PLAIN, "steps_per_epoch": 1},
                "model_cfgs": {"exploration_noise_anneal": False},
                "logger_cfgs": {"use_wandb": False, "use_tensorboard": False, "log_dir": log_dir},
            }
        )
        token = given.set((env, agent))
        try:
            with _undisturbed(), _unsaved(), redirect_stdout(io.StringIO()):
                library.utils.config.check_all_configs(cfgs, "on-policy")
                self.algorithm: Any = library.algorithms.registry.get(name)(env_id=cfgs.env_id, cfgs=cfgs)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"omnisafe:{name}: {error}") from None
        finally:
            given.reset(token)
        self.env = base_of(self.algorithm._env._env)
        logger = self.algorithm._logger
        for key in ("EpRet", "EpCost", "EpLen"):
            logger._data[f"Metrics/{key}"] = type(logger._data[f"Metrics/{key}"])(maxlen=episodes)

    def update(self, rollout: Rollout, rewards: Tensor, costs: Tensor, seed: int) -> dict[str, float]:
        """One update; returns what OmniSafe logged of it, under its own names.

        Args:
            rollout: whole episodes.
            rewards: (B, T), what is to be learned from.
            costs: (B, T), likewise.
            seed: of OmniSafe's draws.
        """
        algorithm, env = self.algorithm, self.env
        assert isinstance(env, _Replayed)
        env.record = record = Record(env.rows, rollout, rewards, costs)
        with _undisturbed(), redirect_stdout(io.StringIO()):
            torch.manual_seed(seed)
            algorithm._steps_per_epoch = len(record)
            PolicyGradient._init(algorithm)  # a buffer of this size
            _spread(algorithm._buf, algorithm._cfgs.algo_cfgs.get("fvp_sample_freq", 1))
            algorithm._env.rollout(len(record), agent=record, buffer=algorithm._buf, logger=algorithm._logger)
            algorithm._update()
        if hasattr(algorithm._actor_critic, "actor_scheduler"):
            algorithm._actor_critic.actor_scheduler.step()
        logged = {key: list(values) for key, values in algorithm._logger._data.items() if len(values)}
        for key in logged:
            if not key.startswith("Metrics/Ep"):
                algorithm._logger._data[key] = []
        means = {key: float(np.mean(values)) for key, values in logged.items()}
        # Each Fisher-vector product logs the KL of the policy to itself there, before the step's own.
        return means | {key: float(logged[key][-1]) for key in logged.keys() & {"Train/KL"}}

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit from the next update on.

        Args:
            limit: on the mean episode cost.
            name: of a cost; OmniSafe bounds the sum of all.

        Raises:
            ConfigError: the algorithm has no such limit, or reads it but once, or the new one is not finite.
        """
        algo = f"omnisafe:{self.algorithm._cfgs.algo}"
        if name:
            raise ConfigError(f"{algo} bounds the sum of all costs; there is no limit on a cost '{name}'")
        if any(key in self.algorithm._cfgs.algo_cfgs for key in BUDGETS):
            raise ConfigError(f"{algo} begins with its cost limit as a budget, which cannot be changed during training")
        if not self._limits():
            raise ConfigError(f"{algo} keeps no cost limit; take an algorithm with a constraint")
        if not math.isfinite(limit):
            raise ConfigError(f"cost_limit = {limit!r}: expected a finite number")
        self._place(float(limit))

    def state_dict(self) -> State:
        """All that the next update depends on besides the policy: tensors and JSON values."""
        limits = [getattr(holder, key) for holder, key in self._limits()]
        return state_of(self._remembering()) | {"limit": limits[0] if limits else None}

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`."""
        restore(self._remembering(), state)
        self._place(state["limit"])

    def _limits(self) -> list[tuple[object, str]]:
        """Where the algorithm looks for its limit at each update: objects, and attributes of theirs."""
        algorithm = self.algorithm
        holders = (algorithm._cfgs.algo_cfgs, getattr(algorithm, "_lagrange", None), algorithm._env)
        return [(holder, key) for holder in holders for key in ("cost_limit", "_cost_limit") if hasattr(holder, key)]

    def _place(self, limit: float | None) -> None:
        for holder, key in self._limits():
            setattr(holder, key, limit)

    def _remembering(self) -> dict[str, object]:
        algorithm = self.algorithm
        windows = {key: x for key, x in algorithm._logger._data.items() if key.startswith("Metrics/Ep")}
        found = {"algorithm": algorithm, "env": algorithm._env, "models": algorithm._actor_critic, "windows": windows}
        for name, owner in (("_lagrange", algorithm), ("_controller", algorithm._env)):
            if hasattr(owner, name):
                found[name.strip("_")] = getattr(owner, name)
        return found


def _spread(buffer: Any, every: int) -> None:
    """Orders what a buffer gives so that each `every`-th step, from the first, is of the same few episodes.

    OmniSafe estimates the Fisher matrix from these steps. A language model reads an episode as a whole, so that some
    steps of each would cost as much as all of them. No other part of an update depends on the order.
    """
    order = torch.empty(buffer.buffers[0].max_size, dtype=torch.long)
    picked = torch.zeros_like(order, dtype=torch.bool)
    picked[::every] = True
    count = int(picked.sum())
    order[picked], order[~picked] = torch.arange(count), torch.arange(count, len(order))
    as_stored = buffer.get
    buffer.get = lambda: {name: x[order] for name, x in as_stored().items()}


@contextmanager
def _unsaved() -> Iterator[None]:
    """Keeps OmniSafe from writing the starting policy, which may be large, to a file that nobody reads."""
    logger = library.common.logger.Logger
    save, logger.torch_save = logger.torch_save, lambda _: None
    try:
        yield
    finally:
        logger.torch_save = save


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps what OmniSafe sets for the whole process to itself: torch's draws, determinism and cuDNN."""
    strict, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled
    benchmark = torch.backends.cudnn.benchmark
    numbers = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark = cudnn, benchmark
            np.random.set_state(numbers)
