"""What a trainer learns from: rollouts that it collects, or data that are there already."""

import math
from contextlib import nullcontext
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from algos.core.settings import OfflineConfig, TrainingConfig
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.parallel.engine import Engine
from textsafe_gym.parallel.process_group import ProcessGroup
from textsafe_gym.protocols import OfflineData
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Agent, Rollout, group_numbers


class Source(Protocol):
    """Batches for an algorithm's updates.

    Attributes:
        iterations: planned in all.
    """

    iterations: int

    def draw(self, iteration: int) -> Any:
        """The batch of an iteration, from 0; it follows from the run's seed and the iteration alone."""
        ...

    def metrics(self, batch: Any) -> dict[str, float]:
        """What a batch is like."""
        ...

    def spent(self, iterations: int) -> dict[str, int]:
        """The budget used after so many iterations: `episodes` collected, and the rows of data read by their `unit`."""
        ...


class Rollouts:
    """Episodes of the present policy.

    Args:
        agent: acts, and records its critics' values and its reference's log-probs.
        env: a vector environment; each rollout plays one episode in every sub-environment.
        config: budget, batches and seed.
        processes: that collect together.
        engine: makes the actor whole where processes share it.

    Raises:
        ConfigError: the sub-environments do not divide the episodes of an iteration, or groups do not fill them.
    """

    def __init__(
        self,
        agent: Agent,
        env: gym.vector.VectorEnv,
        config: TrainingConfig,
        processes: ProcessGroup,
        engine: Engine,
    ) -> None:
        group_numbers(env.num_envs, config.group_size)
        at_once = env.num_envs * processes.world_size
        if config.episodes_per_iteration % at_once:
            several = f" in {processes.world_size} processes" if processes.world_size > 1 else ""
            raise ConfigError(
                f"episodes_per_iteration = {config.episodes_per_iteration} is not a multiple of the environment's "
                f"num_envs = {env.num_envs}{several}; set episodes_per_iteration={at_once} or make the "
                "environment anew"
            )
        self.agent, self.env, self.config, self.processes, self.engine = agent, env, config, processes, engine
        self.iterations = planned(config)

    def draw(self, iteration: int) -> Rollout:
        """The episodes of all processes, the same in each.

        Raises:
            RunError: rewards, costs, log-probs or values are not finite.
        """
        processes = self.processes
        parts = self.config.episodes_per_iteration // (self.env.num_envs * processes.world_size)
        # Others that wait in a pass for this process would not hear of its error; they notice its end.
        shared_errors = nullcontext() if processes.streams_layers else processes.together("a rollout")
        with self.engine.generating(), shared_errors:
            mine = [self.play(seed) for seed in seeds_of(self.config.seed, iteration, parts)[0]]
        rollouts = [part for parts in zip(*processes.all_gather(mine), strict=True) for part in parts]
        rollout = Rollout.concatenate(rollouts)
        check_finite(rollout)
        return rollout

    def play(self, seed: int) -> Rollout:
        """This process's part of one rollout; see `textsafe_gym.rollouts.collect`."""
        agent, share = self.agent, (self.processes.rank, self.processes.world_size)
        return collect(
            agent.actor,
            self.env,
            seed,
            critics=agent.critics,
            reference=agent.reference,
            group_size=self.config.group_size,
            share=share,
        )

    def metrics(self, batch: Rollout) -> dict[str, float]:
        """Means over the episodes."""
        return {
            "reward": batch.episode_rewards.mean().item(),
            "cost": batch.episode_costs.mean().item(),
            "kl": batch.episode_kl.mean().item(),
            "response_length": int(batch.mask.sum()) / len(batch),
        }

    def spent(self, iterations: int) -> dict[str, int]:
        """The "episodes", those that so many iterations play; see `Source.spent`."""
        return {"episodes": iterations * self.config.episodes_per_iteration}


class Dataset:
    """Data that are there already in random order, each row once in every epoch.

    Args:
        data: all of them.
        config: epochs, rows an iteration, seed.
    """

    def __init__(self, data: OfflineData, config: OfflineConfig) -> None:
        self.data, self.config = data, config
        self.iterations = planned(config, len(data))

    def draw(self, iteration: int) -> OfflineData:
        """Those of an iteration; the last one of all may be smaller."""
        count, size = len(self.data), self.config.rows_per_iteration
        wanted = range(iteration * size, min((iteration + 1) * size, self.config.epochs * count))
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in wanted}}
        return self.data[torch.tensor([orders[place // count][place % count] for place in wanted])]

    def metrics(self, batch: OfflineData) -> dict[str, float]:
        """Nothing besides what the algorithm reports."""
        return {}

    def spent(self, iterations: int) -> dict[str, int]:
        """See `Source.spent`; of what is read again in a later epoch nothing more is spent."""
        read = min(iterations * self.config.rows_per_iteration, len(self.data))
        return {"episodes": 0, self.data.unit: read}

    def _order(self, epoch: int) -> list[int]:
        seed = int(np.random.SeedSequence([self.config.seed, epoch], spawn_key=(2,)).generate_state(1)[0])
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed)).tolist()


def planned(config: TrainingConfig | OfflineConfig, rows: int = 0) -> int:
    """Iterations in all, of rollouts or of so many `rows` that are there."""
    if isinstance(config, OfflineConfig):
        return math.ceil(config.epochs * rows / config.rows_per_iteration)
    return math.ceil(config.episodes / config.episodes_per_iteration)


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
        x = vars(rollout)[name]
        if x is not None and not torch.isfinite(x[rollout.mask]).all():
            raise RunError(f"the rollout's {name} are not finite; look at the environment, or lower learning_rate")
