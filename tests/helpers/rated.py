"""A kind of data and a method on it, in one file of somebody else's: responses that are imitated by their rating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from algos.core.settings import OfflineConfig
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import read_rows
from textsafe_gym.offline import KINDS

if TYPE_CHECKING:
    from torch import Tensor

    from textsafe_gym.protocols import PromptTask, Reference, TextActor


@dataclass(frozen=True)
class Rated:
    unit: ClassVar[str] = "ratings"
    counted: ClassVar[str] = "rated responses"
    responses: ClassVar[int] = 1

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    rating: Tensor

    def __len__(self) -> int:
        return len(self.rating)

    def __getitem__(self, index: Tensor) -> Rated:
        seen = {name: x[index] for name, x in self.observations.items()}
        return Rated(seen, self.actions[index], self.mask[index], self.rating[index])

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        return self.observations, self.actions, self.mask

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    @classmethod
    def read(cls, source: str) -> list[tuple[str, str, float]]:
        rows = read_rows(Path(source))
        return [(row["prompt"], row["response"], row["rating"]) for row in rows]

    @classmethod
    def simulated(cls, task: PromptTask, count: int, seed: int) -> list[tuple[str, str, float]]:
        raise ConfigError("no environment simulates ratings")

    @classmethod
    def encode(
        cls,
        rows: Sequence[tuple[str, str, float]],
        actor: TextActor,
        max_prompt_length: int,
        max_response_length: int,
        reference: Reference,
    ) -> Rated:
        import torch

        prompts, responses, rating = (list(column) for column in zip(*rows, strict=True))
        said = actor.encode(prompts, responses, max_prompt_length, max_response_length)
        return cls(*said.inputs, torch.tensor(rating))


KINDS.register("rated", Rated)


class Method:
    """Imitation, each response by its rating."""

    Config = OfflineConfig
    source = "rated"
    critics = ()

    def __init__(self, setup: Any) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.optimizer = setup.agent, Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "rated")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rated: Rated, generator: Any) -> dict[str, float]:
        from textsafe_gym.types import episode_sums

        def losses(new: Any, batch: Rated, index: Tensor) -> Any:
            loss = -(batch.rating * episode_sums(new.log_probs, batch.mask)).mean()
            return loss, {"actor_loss": loss}

        return self.optimizer.train(rated, losses, generator)
