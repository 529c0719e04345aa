"""Data that are there before a run, for methods that sample nothing: a kind of them is one file of this folder.

A module here is a kind under its own name, which an algorithm declares as its `source`; its class has that name in
CamelCase, as `preferences.Preferences` has. One of another package is added by `KINDS.register(name, its class)`.
Importing a kind loads no torch, so that settings and tables know all kinds at once.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from textsafe_gym.protocols import OfflineData, PromptTask, Reference, TextActor
from textsafe_gym.registry import Lazy, Registry

if TYPE_CHECKING:
    from torch import Tensor


class Kind(OfflineData, Protocol):
    """How a kind of data comes from texts; what algorithms see of it is `OfflineData`."""

    @classmethod
    def read(cls, source: str) -> Sequence[Any]:
        """The rows of a file or of "hub:NAME[:SPLIT]".

        Raises:
            DataError: a row is malformed or of another kind; the message names file and line.
        """
        ...

    @classmethod
    def simulated(cls, task: PromptTask, count: int, seed: int) -> Sequence[Any]:
        """So many rows of the environment's own, the same for the same seed.

        Raises:
            ConfigError: it has none.
        """
        ...

    @classmethod
    def encode(
        cls,
        rows: Sequence[Any],
        actor: TextActor,
        max_prompt_length: int,
        max_response_length: int,
        reference: Reference,
    ) -> Self:
        """Such rows in the actor's form, with what the reference says of them.

        Args:
            rows: as `read` and `simulated` give them.
            actor: encodes the texts.
            max_prompt_length: budget in tokens.
            max_response_length: budget in tokens.
            reference: of this actor; asked once, before training.

        Raises:
            ModelError: a prompt has no tokens.
        """
        ...


def _of_this_folder() -> list[tuple[str, Lazy, str]]:
    names = [path.stem for path in sorted(Path(__file__).parent.glob("[!_]*.py"))]
    return [(name, Lazy(f"textsafe_gym.offline.{name}:{name.title().replace('_', '')}"), "") for name in names]


KINDS: Registry[type[Kind]] = Registry("kind of data", _of_this_folder())


def warn_of_cuts(cut: "Tensor", what: str, max_prompt_length: int, max_response_length: int) -> None:
    """Says how many rows of the bool (N,) `cut` hold; `what` they are, and the budgets that cut them."""
    if cut.any():
        logging.getLogger(__name__).warning(
            "%d of %d %s are too long and were cut: a prompt to its last %d tokens, a response to its first %d",
            int(cut.sum()), len(cut), what, max_prompt_length, max_response_length,
        )  # fmt: skip
