"""Single responses, each labelled good or bad by itself; what KTO (arXiv 2402.01306) learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textsafe_gym.data import readers
from textsafe_gym.errors import ConfigError
from textsafe_gym.offline import warn_of_cuts
from textsafe_gym.protocols import PreferenceTask, PromptTask, Reference, TextActor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """N responses in the shapes of a `Rollout`, each good or bad.

    Attributes:
        observations: named tensors with leading dimension N.
        actions: (N, T) int64.
        mask: (N, T) bool.
        reference_log_probs: (N,), log-probability of each whole response under the frozen reference.
        good: (N,) bool, the label: true for a desirable response.
    """

    unit: ClassVar[str] = "labels"
    counted: ClassVar[str] = "labelled responses"
    responses: ClassVar[int] = 1

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    reference_log_probs: Tensor
    good: Tensor

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> Labelled:
        """The responses of an int64 index of shape (n,)."""
        observations = {name: x[index] for name, x in self.observations.items()}
        actions, mask, reference, good = (
            x[index] for x in (self.actions, self.mask, self.reference_log_probs, self.good)
        )
        return Labelled(observations, actions, mask, reference, good)

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """What an actor evaluates: observations, actions, mask."""
        return self.observations, self.actions, self.mask

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: steps in each response."""
        return self.mask.sum(1)

    @classmethod
    def read(cls, source: str) -> list[readers.Labelled]:
        """Labelled responses, or pairs taken apart; see `textsafe_gym.data.readers.read_labelled`."""
        return readers.read_labelled(source)

    @classmethod
    def simulated(cls, task: PromptTask, count: int, seed: int) -> Sequence[readers.Labelled]:
        """Those of half as many of the task's own pairs: which of the two is preferred is drawn anew, and it is good.

        Raises:
            ConfigError: the task has none.
        """
        import numpy as np

        if not isinstance(task, PreferenceTask):
            raise ConfigError("this environment simulates no labelled responses")
        pairs = task.preferences((count + 1) // 2, seed)
        kept = np.random.default_rng([seed, 41]).random(len(pairs)) < [pair.probability for pair in pairs]
        labelled = [readers.apart(pair, bool(first)) for pair, first in zip(pairs, kept, strict=True)]
        return [row for two in labelled for row in two][:count]

    @classmethod
    def encode(
        cls,
        rows: Sequence[readers.Labelled],
        actor: TextActor,
        max_prompt_length: int,
        max_response_length: int,
        reference: Reference,
    ) -> Labelled:
        """The responses in the actor's form; a warning says how many were too long. See `Kind.encode`."""
        import torch

        budgets = max_prompt_length, max_response_length
        said = actor.encode([row.prompt for row in rows], [row.response for row in rows], *budgets)
        warn_of_cuts(said.cut, cls.counted, *budgets)
        log_probs = reference.log_probs(*said.inputs).sum(1).cpu()
        return cls(*said.inputs, log_probs, torch.tensor([row.label for row in rows]))
