"""DPO: max E[R] - β·KL from labelled pairs alone; it samples nothing, fits no reward model and bounds no cost.

The optimum of that problem is π ∝ π_ref·exp(R/β), so that R is β·log(π/π_ref) up to a constant of the prompt, and the
Bradley-Terry model of the labels, P(first preferred) = σ(R(first) - R(second)), becomes a likelihood of π itself.
Source: Rafailov et al., arXiv 2305.18290, equation 7; with a probability p in place of a label, its expectation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import OfflineConfig

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.offline.preferences import Preferences


class Config(OfflineConfig):
    """Settings of DPO; `kl_coefficient` is part of its loss, so that it cannot be 0."""

    kl_coefficient: float = Field(
        0.1, gt=0, description="β: weight of the KL to the reference in the problem that is solved; the paper's"
    )

    @property
    def problem(self) -> str:
        """Without a limit; see `StepConfig.problem`."""
        return "weighted"


class Algorithm:
    """An actor and its optimiser; see `algos.core.loop.Setup`."""

    source = "preferences"
    critics = ()

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "dpo")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, preferences: Preferences, generator: torch.Generator) -> dict[str, float]:
        """One pass over an iteration's pairs; metrics are means over its minibatches, each before its step."""
        from torch.nn.functional import logsigmoid

        from algos.core.preferences import preference_losses

        losses = preference_losses(lambda margin: -logsigmoid(margin), self.config.kl_coefficient)
        return self.optimizer.train(preferences, losses, generator)
