"""The training loop: collect whole episodes, update, report, until the budget is used."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from algos.core.checkpoint import save_checkpoint, split_off
from algos.core.optim import TrainingConfig
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.parallel.engine import Engine
from textsafe_gym.parallel.process_group import ProcessGroup
from textsafe_gym.types import Policy, Rollout, group_numbers


class Stateful(Protocol):
    """A part of an algorithm that remembers something from one update to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A part of an algorithm that keeps a cost limit."""

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes it, or refuses by a `ConfigError`; see `Trainer.set_cost_limit`."""
        ...


class Stepper(Protocol):
    """What the loop needs of an algorithm's optimiser.

    Attributes:
        processes: the processes that train together.
        engine: steps the policy; makes it whole for checkpoints and rollouts.
    """

    processes: ProcessGroup
    engine: Engine


class Algorithm(Protocol):
    """What the loop needs of an algorithm; each is made from an `algos.core.optim.Setup`.

    Attributes:
        policy: the one being trained.
        optimizer: what steps it, an `algos.core.optim.Optimizer` unless the algorithm brings its own.
        parts: by name, all beside the policy that the next update depends on; a checkpoint holds their state.
    """

    policy: Policy
    optimizer: Stepper
    parts: Mapping[str, Stateful]

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """Learns from one iteration's episodes and returns metrics; `generator` draws all that is random in it."""
        ...


class Trainer:
    """An algorithm at work on an environment.

    All randomness of iteration i follows from (seed, i), so that a run continued from a checkpoint repeats the
    uninterrupted one bit for bit.

    Args:
        name: the algorithm's, for checkpoints.
        algorithm: holds the policy.
        env: a vector environment; each rollout plays one episode in every sub-environment.
        config: the algorithm's.
        cost_limit: for the metric `cost_violation`; none: there is no such metric.
        own_policy: the policy is the environment's default, which `algos.load` can make again.

    Raises:
        ConfigError: the sub-environments do not divide the episodes of an iteration, or groups do not fill them.
    """

    def __init__(
        self,
        name: str,
        algorithm: Algorithm,
        env: gym.vector.VectorEnv,
        config: TrainingConfig,
        cost_limit: float | None,
        own_policy: bool,
    ) -> None:
        group_numbers(env.num_envs, config.group_size)
        self.processes = algorithm.optimizer.processes
        together = env.num_envs * self.processes.world_size
        if config.episodes_per_iteration % together:
            processes = f" in {self.processes.world_size} processes" if self.processes.world_size > 1 else ""
            raise ConfigError(
                f"episodes_per_iteration = {config.episodes_per_iteration} is no multiple of the environment's "
                f"num_envs = {env.num_envs}{processes}; set episodes_per_iteration={together} or make the "
                "environment anew"
            )
        self.name = name
        self.algorithm = algorithm
        self.env = env
        self.config = config
        self.cost_limit = cost_limit
        self.own_policy = own_policy
        self.iteration = 0

    @property
    def policy(self) -> Policy:
        """The policy being trained."""
        return self.algorithm.policy

    @property
    def episodes(self) -> int:
        """Episodes generated so far."""
        return self.iteration * self.config.episodes_per_iteration

    def learn(
        self, episodes: int | None = None, on_iteration: Callable[[dict[str, float]], object] | None = None
    ) -> list[dict[str, float]]:
        """Trains until at least `episodes` have been generated in all, those of earlier calls and runs included.

        Args:
            episodes: by default and at most the config's.
            on_iteration: called with the metrics of each iteration after it; `save` and `set_cost_limit` may be called
                there.

        Returns:
            The metrics of this call's iterations: means over the iteration, under the names `reward`, `cost`,
            `cost_violation` (by how much the mean cost is above the limit), `kl` (an episode's sum, to the reference,
            in nats), `entropy` (a step's, in nats), `response_length` (steps), `tokens_per_second` (steps), the
            algorithm's own, `iteration`, `episodes`, `seconds_rollout` and `seconds_update`.

        Raises:
            ConfigError: `episodes` is more than the config's.
            TextsafeError: training cannot go on; the message says why.
        """
        wanted = self.config.episodes if episodes is None else episodes
        if wanted > self.config.episodes:
            raise ConfigError(
                f"learn(episodes={wanted}) is more than the {self.config.episodes} that the learning rate is scheduled "
                f"over; make the trainer with episodes={wanted}"
            )
        rows = []
        while self.episodes < wanted:
            row = self._iterate()
            rows.append(row)
            if on_iteration is not None:
                on_iteration(row)
        return rows

    def set_cost_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit from the next iteration on; a checkpoint keeps it.

        Args:
            limit: the new one; of what is bounded, such as a probability.
            name: of the cost, where costs have limits of their own (`cost_limits`).

        Raises:
            ConfigError: the algorithm has no limit, or none of that name, or the new one cannot be kept.
        """
        limited = [part for part in self.algorithm.parts.values() if isinstance(part, Limited)]
        if not limited:
            raise ConfigError(f"{self.name} keeps no cost limit; take an algorithm with a constraint")
        limited[0].set_limit(limit, name)
        if not name:
            self.cost_limit = float(limit)

    def save(self, directory: str | Path) -> None:
        """Writes a checkpoint from which `algos.load` continues; the policy alone lies in its `policy/`.

        `textsafe evaluate` takes the folder; where the environment was made of objects, it has to be named there.

        Raises:
            RunError: the folder cannot be written.
        """
        state: dict[str, Any] = {}
        for part, stateful in self.algorithm.parts.items():
            state |= {f"{part}.{name}": x for name, x in stateful.state_dict().items()}
        state |= {
            "name": self.name,
            "config": self.config.model_dump(),
            "iteration": self.iteration,
            "cost_limit": self.cost_limit,
            "own_policy": self.own_policy,
            "env": _description(self.env),
        }
        with self.algorithm.optimizer.engine.gathered():
            if self.processes.rank == 0:
                state |= {f"policy.{name}": x for name, x in self.policy.state_dict().items()}
                save_checkpoint(Path(directory), self.policy, state)
        self.processes.barrier("the end of saving")

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `save` wrote.

        Raises:
            RunError: it does not fit this policy or algorithm.
        """
        try:
            with self.algorithm.optimizer.engine.gathered(writing=True):
                self.policy.load_state_dict(split_off(state, "policy."))
            for part, stateful in self.algorithm.parts.items():
                stateful.load_state_dict(split_off(state, f"{part}."))
            self.iteration = int(state["iteration"])
            self.cost_limit = state["cost_limit"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint does not fit: {' '.join(str(error).split())[:200]}") from None

    def _iterate(self) -> dict[str, float]:
        parts = self.config.episodes_per_iteration // (self.env.num_envs * self.processes.world_size)
        seeds, update_seed = seeds_of(self.config.seed, self.iteration, parts)
        this = f"iteration {self.iteration + 1}"
        self.processes.barrier(f"the start of {this}")
        start = time.perf_counter()
        with self.processes.guard(this):
            rollout = self._collect(seeds)
            collected = time.perf_counter()
            try:
                check_finite(rollout)
                learned = self.algorithm.update(rollout, torch.Generator().manual_seed(update_seed))
            except RunError as error:
                raise RunError(f"{this}: {error}") from None
        end = time.perf_counter()
        self.iteration += 1
        steps = int(rollout.mask.sum())
        cost = rollout.episode_costs.mean().item()
        kl = ((rollout.log_probs - rollout.reference_log_probs).masked_fill(~rollout.mask, 0.0)).sum(1).mean().item()
        return {
            "iteration": self.iteration,
            "episodes": self.episodes,
            "reward": rollout.episode_rewards.mean().item(),
            "cost": cost,
            **({} if self.cost_limit is None else {"cost_violation": max(cost - self.cost_limit, 0.0)}),
            "kl": kl,
            "response_length": steps / len(rollout),
            **learned,
            "tokens_per_second": steps / (end - start),
            "seconds_rollout": collected - start,
            "seconds_update": end - collected,
        }

    def _collect(self, seeds: Sequence[int]) -> Rollout:
        """A rollout for each seed, with the episodes of all processes, the same in each."""
        processes, group_size = self.processes, self.config.group_size
        # Others that wait in a pass for this process would not hear of its error; they notice its end.
        together = nullcontext() if processes.streams_layers else processes.together("a rollout")
        with self.algorithm.optimizer.engine.generating(), together:
            mine = [
                self.policy.rollout(self.env, seed, group_size, (processes.rank, processes.world_size))
                for seed in seeds
            ]
        return concatenate([part for parts in zip(*processes.all_gather(mine), strict=True) for part in parts])


def _description(env: gym.vector.VectorEnv) -> dict[str, Any] | None:
    """Id and keyword arguments that make an environment again; None where JSON or a registered id cannot say it."""
    spec = env.spec
    if spec is None or env.unwrapped is not env or spec.additional_wrappers:
        return None
    own = {name: x for name, x in spec.kwargs.items() if name not in ("num_envs", "vectorization_mode")}
    kwargs = {name: str(x) if isinstance(x, Path) else x for name, x in own.items()}
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return {"id": spec.id, "kwargs": kwargs}


def seeds_of(seed: int, iteration: int, parts: int) -> tuple[list[int], int]:
    """Seeds of an iteration's rollouts and of its update."""
    rollouts = np.random.SeedSequence([seed, iteration]).generate_state(parts).tolist()
    return rollouts, int(np.random.SeedSequence([seed, iteration], spawn_key=(1,)).generate_state(1)[0])


def check_finite(rollout: Rollout) -> None:
    """Refuses what would poison the update, before any of its steps.

    Raises:
        RunError: rewards, costs, log-probs or values are not finite; the message names which.
    """
    for name in ("rewards", "costs", "log_probs", "reference_log_probs", "reward_values", "cost_values"):
        if not torch.isfinite(getattr(rollout, name)[rollout.mask]).all():
            raise RunError(f"the rollout's {name} are not finite; look at the environment, or lower learning_rate")


def plan(config: TrainingConfig) -> int:
    """Iterations in all."""
    return math.ceil(config.episodes / config.episodes_per_iteration)


def concatenate(parts: Sequence[Rollout]) -> Rollout:
    """One rollout of all parts' episodes; shorter parts are padded on the right in every tensor that is (B, T, ...)."""
    longest = max(part.mask.shape[1] for part in parts)
    return Rollout.concatenate([_padded(part, longest) for part in parts])


def _padded(part: Rollout, longest: int) -> Rollout:
    steps = part.mask.shape[1]
    if steps == longest:
        return part

    def pad(x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != steps:
            return x
        return torch.cat([x, x.new_zeros(x.shape[0], longest - steps, *x.shape[2:])], dim=1)

    values: dict[str, Any] = {field.name: getattr(part, field.name) for field in fields(part)}
    values = {name: pad(x) if isinstance(x, Tensor) else x for name, x in values.items()}
    for several in ("observations", "named_costs"):
        values[several] = {name: pad(x) for name, x in getattr(part, several).items()}
    return Rollout(**values)
