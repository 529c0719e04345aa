"""GRPO: PPO without a critic, rewards in standard deviations from the mean of their prompt.

Source: Shao et al., "DeepSeekMath", arXiv 2402.03300, eqs. 19-21. Dividing by a group's standard deviation weighs
prompts whose answers hardly differ as much as those that differ most.

What differs: the KL to the reference is in the reward. GRPO's term in the loss, r - log r - 1 with r = π_ref/π,
estimates the KL's value well, but its gradient is that of KL(π_ref‖π): training would end at another optimum than that
of E[R] - β·KL(π‖π_ref).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, ClipConfig):
    """Settings of GRPO; without critics there are none of theirs."""

    group_size: int = Field(4, ge=2, description="episodes that begin in the same state, as answers to one prompt")

    @property
    def problem(self) -> str:
        """Without a limit; see `StepConfig.problem`."""
        return "weighted"


class Algorithm:
    """An actor and its optimiser; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ()

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "grpo")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches."""
        from algos.core.groups import group_normalised
        from algos.core.objectives import actor_loss, shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        advantages = group_normalised(episode_sums(rewards, rollout.mask), rollout.groups)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            spread = advantages[index, None].expand_as(new.log_probs)
            return actor_loss(new, batch, spread, config)

        return self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
