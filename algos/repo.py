"""RePO: every prompt has to keep the limit by itself; a safe prompt cannot make up for a harmful one.

Source: Peng et al., "Enhancing Safety in Reinforcement Learning with Human Feedback via Rectified Policy Optimization",
arXiv 2410.19933: the penalty is λ·E_x[(E_y[C(x, y)] - limit)⁺], rectified for each prompt before the mean over prompts
is taken, and λ is driven by that mean. The problem is max E[R] - β·KL subject to E_y[C | x] <= limit for every x.

What differs: E_y[C | x] is the mean over a group of answers to one prompt, without the answer that is judged; the KL to
the reference is in the reward alone. As the rectified violation is never negative, λ never falls, and it grows with the
sampling noise of the group means even where every prompt keeps its limit: small groups make it too careful.
"""

import torch
from pydantic import Field

from algos.core.constraints import ConstraintConfig, Constraints, MultiplierConfig, Multipliers
from algos.core.objectives import (
    ClipConfig,
    CriticConfig,
    clipped_losses,
    estimate,
    mix_advantages,
    others_mean,
    shaped_rewards,
)
from algos.core.optim import Optimizer, Setup, TrainingConfig
from textsafe_gym.types import Rollout, episode_sums


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig, MultiplierConfig):
    """Settings of RePO."""

    group_size: int = Field(8, ge=2, description="episodes that begin in the same state, as answers to one prompt")


class Algorithm:
    """One policy, its optimiser, the constraints and their multipliers; see `algos.core.optim.Setup`."""

    def __init__(self, setup: Setup[Config]) -> None:
        self.policy, self.config = setup.policy, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "repo", several=False)
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning. Metrics beside PPO-Lagrangian's: `rectified_violation`, the mean over prompts that
        drives λ, and `violating`, the share of prompts that are penalised."""
        config = self.config
        costs = self.constraints.observe(rollout)[0]
        ((name, limit),) = self.constraints.limits.items()
        excess = others_mean(episode_sums(costs, rollout.mask), rollout.groups) - limit
        rectified = excess.clamp(min=0).mean().item()
        multiplier = float(self.multipliers.update({name: rectified}).sum())
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        violating = (excess > 0)[:, None]
        advantages = mix_advantages(estimates.reward, estimates.cost * violating, multiplier)
        losses = clipped_losses(advantages, estimates, config.clip_range_ratio, config)
        learned = self.optimizer.descend(rollout, losses, generator)
        judged = {"rectified_violation": rectified, "violating": violating.float().mean().item()}
        return {**learned, **self.multipliers.metrics, **self.constraints.metrics, **judged}
