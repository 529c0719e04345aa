"""Pairs of responses to the same prompt, of which one was preferred; what DPO learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textsafe_gym.data.readers import Preference, read_preferences
from textsafe_gym.errors import ConfigError
from textsafe_gym.offline import warn_of_cuts
from textsafe_gym.protocols import PreferenceTask, PromptTask, Reference, TextActor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preferences:
    """N pairs of responses to the same prompt, of which the first was preferred; shapes as in a `Rollout`.

    Attributes:
        observations: named tensors (2, N, ...), the preferred responses before the others.
        actions: (2, N, T) int64.
        mask: (2, N, T) bool.
        reference_log_probs: (2, N), log-probability of each whole response under the frozen reference.
        probability: (N,), that the first is preferred: 1 for a label, between 0 and 1 where it is known.
    """

    unit: ClassVar[str] = "pairs"
    counted: ClassVar[str] = "labelled pairs"
    responses: ClassVar[int] = 2

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    reference_log_probs: Tensor
    probability: Tensor

    def __len__(self) -> int:
        return int(self.mask.shape[1])

    def __getitem__(self, index: Tensor) -> Preferences:
        """The pairs of an int64 index of shape (n,)."""
        observations = {name: x[:, index] for name, x in self.observations.items()}
        actions, mask, reference = (x[:, index] for x in (self.actions, self.mask, self.reference_log_probs))
        return Preferences(observations, actions, mask, reference, self.probability[index])

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """What an actor evaluates, 2N rows: observations, actions, mask; the preferred responses come first."""
        observations = {name: x.flatten(0, 1) for name, x in self.observations.items()}
        return observations, self.actions.flatten(0, 1), self.mask.flatten(0, 1)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: steps in the longer response of each pair."""
        return self.mask.sum(-1).amax(0)

    @classmethod
    def read(cls, source: str) -> list[Preference]:
        """Pairs in the shapes of `textsafe_gym.data.readers.read_preferences`."""
        return read_preferences(source)

    @classmethod
    def simulated(cls, task: PromptTask, count: int, seed: int) -> Sequence[Preference]:
        """So many pairs as `PreferenceTask.preferences` gives them; a `ConfigError` where the task is none."""
        if not isinstance(task, PreferenceTask):
            raise ConfigError("this environment simulates no preferences")
        return task.preferences(count, seed)

    @classmethod
    def encode(
        cls,
        rows: Sequence[Preference],
        actor: TextActor,
        max_prompt_length: int,
        max_response_length: int,
        reference: Reference,
    ) -> Preferences:
        """The pairs in the actor's form; a warning says how many were too long. See `Kind.encode`."""
        import torch

        prompts, budgets = [row.prompt for row in rows], (max_prompt_length, max_response_length)
        sides = [row.better for row in rows] + [row.worse for row in rows]
        both = actor.encode(prompts * 2, sides, *budgets)
        warn_of_cuts(both.cut.unflatten(0, (2, -1)).any(0), cls.counted, *budgets)
        log_probs = reference.log_probs(*both.inputs).sum(1).cpu()
        actions, mask, reference_log_probs = (x.unflatten(0, (2, -1)) for x in (both.actions, both.mask, log_probs))
        observations = {name: x.unflatten(0, (2, -1)) for name, x in both.observations.items()}
        probability = torch.tensor([row.probability for row in rows], dtype=torch.float32)
        return cls(observations, actions, mask, reference_log_probs, probability)
