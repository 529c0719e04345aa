"""PPO: max reward, whatever it costs; the cost is reported and nothing more.

Source: Schulman et al., arXiv 1707.06347, in the form that RLHF uses it: whole responses, one critic, and the KL to the
reference taken off the reward (as the single-signal algorithms of arXiv 2310.12773's official implementation do).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from algos.core.settings import ClipConfig, CriticConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig):
    """Settings of PPO; the defaults are the official script's."""

    @property
    def problem(self) -> str:
        """Without a limit; see `StepConfig.problem`."""
        return "weighted"


class Algorithm:
    """An agent without a cost critic, and its optimiser; the limit is not used. See `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward",)

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "ppo")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches."""
        from algos.core.objectives import actor_loss, critic_loss, estimate_one, shaped_rewards

        config = self.config
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        advantages, returns, metrics = estimate_one(rollout, rewards, "reward", config)

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            actor, reports = actor_loss(new, batch, advantages[index], config)
            critic = critic_loss(new.reward_values, batch.reward_values, returns[index], batch.mask, config)
            return actor + config.value_coefficient * critic, {**reports, "reward_critic_loss": critic}

        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **metrics}
