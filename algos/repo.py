"""RePO: every prompt has to keep the limit by itself; a safe prompt cannot make up for a harmful one.

Source: Peng et al., "Enhancing Safety in Reinforcement Learning with Human Feedback via Rectified Policy Optimization",
arXiv 2410.19933: the penalty is λ·E_x[(E_y[C(x, y)] - limit)⁺], rectified for each prompt before the mean over prompts
is taken, and λ is driven by that mean. The problem is max E[R] - β·KL subject to E_y[C | x] <= limit for every x.

What differs: E_y[C | x] is the mean over a group of answers to one prompt, without the answer that is judged; the KL to
the reference is in the reward alone. As the rectified violation is never negative, λ never falls, and it grows with the
sampling noise of the group means even where every prompt keeps its limit: small groups make it too careful.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, MultiplierConfig, TrainingConfig

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, MultiplierConfig):
    """Settings of RePO; a group has to be large enough to estimate one prompt's mean cost."""

    group_size: int = Field(8, ge=2, description="episodes that begin in the same state, as answers to one prompt")

    @property
    def problem(self) -> str | None:
        """Every prompt has to keep the limit; see `StepConfig.problem`."""
        return "per_prompt" if super().problem == "mean" else None


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "repo", several=False)
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning. Metrics besides PPO-Lagrangian's: `rectified_violation`, the mean over prompts that
        drives λ, and `violating`, the share of prompts that are penalised."""
        from algos.core.groups import others_mean
        from algos.core.objectives import clipped_losses, estimate, mix_advantages, shaped_rewards
        from textsafe_gym.types import episode_sums

        config = self.config
        measured = self.constraints.measure(rollout)
        costs = measured.signals[0]
        ((name, limit),) = self.constraints.limits.items()
        excess = others_mean(episode_sums(costs, rollout.mask), rollout.groups) - limit
        rectified = excess.clamp(min=0).mean().item()
        multiplier = float(self.multipliers.update({name: rectified}).sum())
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        violating = (excess > 0)[:, None]
        advantages = mix_advantages(estimates.reward, estimates.cost * violating, multiplier)
        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        judged = {"rectified_violation": rectified, "violating": violating.float().mean().item()}
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics, **judged}
