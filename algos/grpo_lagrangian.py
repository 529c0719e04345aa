"""GRPO-Lagrangian: GRPO on reward - λ·cost, without critics.

Source: GRPO (Shao et al., arXiv 2402.03300) on both signals, and a multiplier. The advantages of reward and cost, each
centred in its group, are mixed to (A_R - λ·A_C) / (1 + λ), and the mixture is divided by its group's standard
deviation.

Why not divide first: rewards in standard deviations have lost their unit, so that λ is no longer reward per cost.
Worse, at the optimum R - β·KL - λ·C is the same for all answers to a prompt, hence σ_R = λ·σ_C: of signals that are
divided by their own σ, each limit's optimum is stationary at the same λ = 1, and nothing holds the prompts to one
common weight. GDPO (arXiv 2601.05242) and Constrained GRPO (arXiv 2602.05863) argue for it; `normalise="each"` does
it, and `textsafe study dual` compares the two. The KL to the reference is in the reward, for the reason given in
`algos.grpo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from algos.core.settings import ClipConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, ClipConfig, MultiplierConfig):
    """Settings of GRPO-Lagrangian; without critics there are none of theirs."""

    normalise: Literal["mixture", "each"] = Field(
        "mixture", description="what is divided by its group's standard deviation: both mixed, or each before that"
    )
    group_size: int = Field(4, ge=2, description="episodes that begin in the same state, as answers to one prompt")


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ()

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "grpo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        from algos.core.constraints import weighted_cost
        from algos.core.groups import group_centred, group_normalised
        from algos.core.objectives import actor_loss, mix_advantages, shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        returns = [episode_sums(signal, rollout.mask) for signal in (rewards, costs)]
        each = config.normalise == "each"
        reward, cost = ((group_normalised if each else group_centred)(own, rollout.groups) for own in returns)
        mixed = mix_advantages(reward, cost, multiplier)
        advantages = mixed if each else group_normalised(mixed, rollout.groups)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            spread = advantages[index, None].expand_as(new.log_probs)
            return actor_loss(new, batch, spread, config)

        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **self.multipliers.metrics, **measured.metrics}
