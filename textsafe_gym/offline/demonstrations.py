"""Prompts with a response to imitate, for a method that learns from them alone, and for the PTX term of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textsafe_gym.data.readers import read_demonstrations
from textsafe_gym.errors import ConfigError
from textsafe_gym.offline import warn_of_cuts
from textsafe_gym.protocols import PromptTask, Reference, TextActor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Demonstrations:
    """N supervised episodes in the shapes of a `Rollout`, for the PTX term or for a method that imitates them.

    Attributes:
        observations: named tensors with leading dimension N.
        actions: (N, T) int64 or (N, T, A) float.
        mask: (N, T) bool.
        reference_log_probs: (N,), log-probability of each whole response under the frozen reference; None where none
            was asked, as for the PTX term.
    """

    unit: ClassVar[str] = "demonstrations"
    counted: ClassVar[str] = "demonstrations"
    responses: ClassVar[int] = 1

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    reference_log_probs: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> Demonstrations:
        """The episodes of an int64 index of shape (b,)."""
        observations = {name: x[index] for name, x in self.observations.items()}
        reference = None if self.reference_log_probs is None else self.reference_log_probs[index]
        return Demonstrations(observations, self.actions[index], self.mask[index], reference)

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """What an actor evaluates: observations, actions, mask."""
        return self.observations, self.actions, self.mask

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: steps in each episode."""
        return self.mask.sum(1)

    @classmethod
    def read(cls, source: str) -> list[tuple[str, str]]:
        """(prompt, response) as `textsafe_gym.data.readers.read_demonstrations` reads them; of pairs the preferred."""
        return read_demonstrations(source)

    @classmethod
    def simulated(cls, task: PromptTask, count: int, seed: int) -> Sequence[tuple[str, str]]:
        """Refused by a `ConfigError`: what an environment's own judge prefers is not a demonstration."""
        raise ConfigError("no environment simulates demonstrations")

    @classmethod
    def encode(
        cls,
        rows: Sequence[tuple[str, str]],
        actor: TextActor,
        max_prompt_length: int,
        max_response_length: int,
        reference: Reference | None = None,
    ) -> Demonstrations:
        """The episodes in the actor's form; a warning says how many were too long. See `Kind.encode`."""
        budgets = max_prompt_length, max_response_length
        shown = actor.encode([prompt for prompt, _ in rows], [response for _, response in rows], *budgets)
        warn_of_cuts(shown.cut, cls.counted, *budgets)
        log_probs = None if reference is None else reference.log_probs(*shown.inputs).sum(1).cpu()
        return cls(*shown.inputs, log_probs)
