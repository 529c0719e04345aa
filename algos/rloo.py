"""RLOO: REINFORCE on whole responses, each judged against the others to its prompt; no critic.

Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
LLMs", arXiv 2402.14740: the response is one action, its reward less β·KL the return, and the mean of the other returns
in its group the baseline. As more than one step is made on a batch, the response's ratio is clipped as PPO's is.
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
    """Settings of RLOO; without critics there are none of theirs."""

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
        self.constraints = Constraints(None, setup.cost_limit, "rloo")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches."""
        from algos.core.groups import leave_one_out, response_loss
        from algos.core.objectives import shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        advantages = leave_one_out(episode_sums(rewards, rollout.mask), rollout.groups)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return response_loss(new, batch, advantages[index], config)

        return self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
