"""The processes that train one policy together: what is asked of them, and the one that trains alone."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from textsafe_gym.parallel.engine import Engine, SingleProcessEngine
from textsafe_gym.protocols import Actor
from textsafe_gym.types import Agent

Thing = TypeVar("Thing")


class ProcessGroup(Protocol):
    """The processes that train one policy together."""

    rank: int
    world_size: int
    streams_layers: bool
    """Whether a policy's layers are gathered for each pass, which all processes have to make together."""

    def check(self, actor: Actor) -> None:
        """Refuses an actor that these processes cannot train.

        Raises:
            ConfigError: see above.
        """
        ...

    def engine(self, agent: Agent, rates: Mapping[str, float], weight_decay: float) -> Engine:
        """Steps an agent's parameter groups with AdamW at the given rates."""
        ...

    def all_gather(self, mine: Thing) -> list[Thing]:
        """What every process has, by rank."""
        ...

    def all_reduce(self, row: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name."""
        ...

    def barrier(self, where: str) -> None:
        """Waits for the other processes.

        Raises:
            RunError: one did not come; the message names it.
        """
        ...

    def guard(self, where: str) -> AbstractContextManager[None]:
        """Makes an exchange that failed in the block an error that names the process that is lost."""
        ...

    def together(self, where: str) -> AbstractContextManager[None]:
        """Raises in every process what one raises in the block, which must not exchange anything itself."""
        ...


class SingleProcess:
    """A `ProcessGroup` of one process: nothing is exchanged."""

    rank, world_size, streams_layers = 0, 1, False

    def check(self, actor: Actor) -> None:
        """Any actor will do."""

    def engine(self, agent: Agent, rates: Mapping[str, float], weight_decay: float) -> "SingleProcessEngine":
        """Steps an agent's parameter groups at the given rates."""
        return SingleProcessEngine(agent, rates, weight_decay)

    def all_gather(self, mine: Thing) -> list[Thing]:
        """What every process has, by rank."""
        return [mine]

    def all_reduce(self, row: dict[str, float]) -> dict[str, float]:
        """Sums over the processes."""
        return row

    def barrier(self, where: str) -> None:
        """Waits for the others; there are none."""

    def guard(self, where: str) -> AbstractContextManager[None]:
        """Names a process that is lost in the block."""
        return nullcontext()

    def together(self, where: str) -> AbstractContextManager[None]:
        """Fails in every process where it fails in one."""
        return nullcontext()
