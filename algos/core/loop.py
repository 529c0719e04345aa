"""The training loop: draw a batch, update, report, until the budget is used."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import gymnasium as gym
import torch

from algos.core.checkpoint import save_checkpoint, split_off
from algos.core.settings import StepConfig
from algos.core.sources import Source, seeds_of
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.files import json_line
from textsafe_gym.parallel.engine import Engine
from textsafe_gym.parallel.process_group import ProcessGroup, SingleProcess
from textsafe_gym.protocols import Actor, OfflineData, State
from textsafe_gym.types import Agent


class Stateful(Protocol):
    """A part of an algorithm that remembers something from one update to the next."""

    def state_dict(self) -> State:
        """Tensors and JSON values."""
        ...

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`."""
        ...


class Stepper(Protocol):
    """What the loop needs of an algorithm's optimiser.

    Attributes:
        processes: those that train together.
        engine: steps the agent; makes it whole for checkpoints and rollouts.
    """

    processes: ProcessGroup
    engine: Engine


class Limits(Protocol):
    """What the loop needs of an algorithm's constraints, which may be none; see `algos.core.constraints.Constraints`.

    Attributes:
        cost_limit: the limit on the mean of all costs, bounded or not; None where something else is bounded.
        unseen: the named costs with a limit that no episode has had so far.
    """

    cost_limit: float | None
    unseen: set[str]

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes a limit, or refuses by a `ConfigError`; see `Trainer.set_cost_limit`."""
        ...

    def violation(self, measured: Mapping[str, float]) -> dict[str, float]:
        """`cost_violation`, from a batch's own metrics, where they have a cost and there is a limit on its mean."""
        ...


OwnConfig = TypeVar("OwnConfig", bound=StepConfig)


@dataclass(frozen=True)
class Setup(Generic[OwnConfig]):
    """What every algorithm is made from.

    Attributes:
        agent: the actor, the critics that the algorithm has declared, and the reference.
        config: settings.
        cost_limit: the largest allowed mean episode cost; none: there is no limit, which a constrained method refuses.
        iterations: how many updates are planned; the learning rate is scheduled over them.
        demonstrations: for the PTX term; without them there is none.
        processes: the processes that train together.
        env: what the actor plays in, for an algorithm that has to know its spaces.
    """

    agent: Agent
    config: OwnConfig
    cost_limit: float | None
    iterations: int
    demonstrations: OfflineData | None = None
    processes: ProcessGroup = field(default_factory=SingleProcess)
    env: gym.vector.VectorEnv | None = None


class Algorithm(Protocol):
    """What the loop needs of an algorithm; each is made from an `Setup`.

    Attributes:
        source: "rollouts", what `update` is given are the present policy's; or the name of one of
            `textsafe_gym.offline.KINDS`, for data that were there already.
        critics: "reward", "cost", both or none: those that the agent is to have.
        agent: the one being trained.
        optimizer: what steps it, an `algos.core.optim.Optimizer` unless the algorithm brings its own.
        constraints: what is bounded.
        parts: by name, all besides the agent that the next update depends on; a checkpoint holds their state.
    """

    source: ClassVar[str]
    critics: ClassVar[tuple[str, ...]]
    agent: Agent
    optimizer: Stepper
    constraints: Limits
    parts: Mapping[str, Stateful]

    def update(self, batch: Any, generator: torch.Generator) -> dict[str, float]:
        """Learns from one iteration's batch and returns metrics; `generator` draws all that is random in it."""
        ...


class Trainer:
    """An algorithm at work on a source of batches.

    All randomness of iteration i follows from (seed, i), so that a run continued from a checkpoint repeats the
    uninterrupted one bit for bit.

    Args:
        name: the algorithm's, for checkpoints.
        algorithm: holds the agent.
        source: gives the batches.
        env: what the policy plays in.
        config: the algorithm's.
        own_policy: the starting policy is the environment's default, which `algos.load` can make again.
        preset: which the settings began with.
    """

    def __init__(
        self,
        name: str,
        algorithm: Algorithm,
        source: Source,
        env: gym.vector.VectorEnv,
        config: StepConfig,
        own_policy: bool,
        preset: str,
    ) -> None:
        self.name = name
        self.algorithm = algorithm
        self.source = source
        self.env = env
        self.config = config
        self.own_policy = own_policy
        self.preset = preset
        self.processes = algorithm.optimizer.processes
        self.iteration = 0

    @property
    def actor(self) -> Actor:
        """The policy being trained."""
        return self.algorithm.agent.actor

    @property
    def episodes(self) -> int:
        """Episodes collected so far."""
        return self.source.spent(self.iteration)["episodes"]

    def learn(
        self, episodes: int | None = None, on_iteration: Callable[[dict[str, float]], object] | None = None
    ) -> list[dict[str, float]]:
        """Trains until the budget is used, or until at least `episodes` have been collected in all.

        Args:
            episodes: those of earlier calls and runs included; by default and at most the config's.
            on_iteration: called with the metrics of each iteration after it; `save` and `set_cost_limit` may be called
                there.

        Returns:
            The metrics of this call's iterations: of rollouts the means over the iteration under the names `reward`,
            `cost`, `cost_violation` (by how much the mean cost is above the limit), `kl` (an episode's sum, to the
            reference, in nats), `response_length` (steps) and `tokens_per_second` (steps); the algorithm's own,
            `entropy` (a step's, in nats) among them; `iteration`, `episodes`, of data that was there
            already also the rows read, under their `unit`; `seconds_rollout` and `seconds_update`.

        Raises:
            ConfigError: `episodes` is more than the config's, or the algorithm samples none.
            TextsafeError: training cannot go on; the message says why.
        """
        planned = self.source.spent(self.source.iterations)["episodes"]
        if episodes is not None and not planned:
            raise ConfigError(f"learn(episodes={episodes}): {self.name} samples no episodes; leave episodes out")
        if episodes is not None and episodes > planned:
            raise ConfigError(
                f"learn(episodes={episodes}) is more than the {planned} that the learning rate is scheduled over; make "
                f"the trainer with episodes={episodes}"
            )
        rows = []
        while self.iteration < self.source.iterations and (episodes is None or self.episodes < episodes):
            row = self._iterate()
            rows.append(row)
            if on_iteration is not None:
                on_iteration(row)
        unseen = self.algorithm.constraints.unseen
        if rows and unseen and self.iteration == self.source.iterations:
            names = ", ".join(f"'{name}'" for name in sorted(unseen))
            logging.getLogger("algos").warning(
                "cost_limits: none of the run's %d episodes had a cost %s: its limit bounded nothing, and a "
                "cost_violation of 0 says nothing of it",
                self.episodes,
                names,
            )
        return rows

    @property
    def cost_limit(self) -> float | None:
        """The limit on the mean of all costs, bounded or not; None where there is none or something else is bounded."""
        return self.algorithm.constraints.cost_limit

    def set_cost_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit from the next iteration on; a checkpoint keeps it.

        Args:
            limit: the new one; of what is bounded, such as a probability.
            name: of the cost, where costs have limits of their own (`cost_limits`).

        Raises:
            ConfigError: the algorithm has no limit, or none of that name, or the new one cannot be kept.
        """
        self.algorithm.constraints.set_limit(limit, name)

    def save(self, directory: str | Path) -> None:
        """Writes a checkpoint from which `algos.load` continues; the policy alone lies in its `policy/`.

        `textsafe evaluate` and `pareto` take the folder; where the environment was made of objects, `evaluate` has to
        be given it.

        Raises:
            RunError: the folder cannot be written.
        """
        state: State = {}
        for part, stateful in self.algorithm.parts.items():
            state |= {f"{part}.{name}": x for name, x in stateful.state_dict().items()}
        state |= {
            "name": self.name,
            "config": self.config.model_dump(),
            "iteration": self.iteration,
            "own_policy": self.own_policy,
            "preset": self.preset,
            "env": _description(self.env),
        }
        with self.algorithm.optimizer.engine.gathered_policy():
            if self.processes.rank == 0:
                state |= {f"agent.{name}": x for name, x in self.algorithm.agent.state_dict().items()}
                save_checkpoint(Path(directory), self.actor, state)
        self.processes.barrier("the end of saving")

    def restore(self, state: State) -> None:
        """Takes over what `save` wrote.

        Raises:
            RunError: it does not fit this agent or algorithm.
        """
        try:
            with self.algorithm.optimizer.engine.gathered_policy(writing=True):
                self.algorithm.agent.load_state_dict(split_off(state, "agent."))
            for part, stateful in self.algorithm.parts.items():
                stateful.load_state_dict(split_off(state, f"{part}."))
            self.iteration = int(state["iteration"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint does not fit: {' '.join(str(error).split())[:200]}") from None

    def _iterate(self) -> dict[str, float]:
        update_seed = seeds_of(self.config.seed, self.iteration, 0)[1]
        this = f"iteration {self.iteration + 1}"
        self.processes.barrier(f"the start of {this}")
        start = time.perf_counter()
        with self.processes.guard(this):
            try:
                batch = self.source.draw(self.iteration)
                drawn = time.perf_counter()
                learned = self.algorithm.update(batch, torch.Generator().manual_seed(update_seed))
            except RunError as error:
                raise RunError(f"{this}: {error}") from None
        end = time.perf_counter()
        self.iteration += 1
        measured = self.source.metrics(batch)
        return {
            "iteration": self.iteration,
            **self.source.spent(self.iteration),
            **measured,
            **self.algorithm.constraints.violation(measured),
            **learned,
            "tokens_per_second": int(batch.mask.sum()) / (end - start),
            "seconds_rollout": drawn - start,
            "seconds_update": end - drawn,
        }


def _description(env: gym.vector.VectorEnv) -> dict[str, object] | None:
    """Id and keyword arguments that make an environment again; None where JSON or a registered id cannot say it."""
    spec = env.spec
    if spec is None or env.unwrapped is not env or spec.additional_wrappers:
        return None
    own = {name: x for name, x in spec.kwargs.items() if name not in ("num_envs", "vectorization_mode")}
    kwargs = {name: str(x) if isinstance(x, Path) else x for name, x in own.items()}
    try:
        json_line(kwargs)
    except (TypeError, ValueError):
        return None
    return {"id": spec.id, "kwargs": kwargs}
