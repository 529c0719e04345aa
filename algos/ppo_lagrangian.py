"""PPO-Lagrangian: max reward subject to mean cost <= limit, as the Safe RLHF paper ships it.

Source: Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: two critics, the KL to the reference
in reward *and* cost, advantages mixed by a multiplier λ that the window of recent episode costs drives, PTX steps on
demonstrations. λ moves once an iteration, before the actor does.

The paper states max E[R] - β·KL subject to E[C] + β·KL <= limit. Its implementation leaves the KL out of the window
that drives λ, and thereby ends where E[C] = limit and the KL weighs β·(1 + λ). `limit_includes_kl` puts the KL there
too, so that the stated problem is the one that is solved; E[C] then ends β·KL below the limit.
"""

from typing import Literal

import torch
from pydantic import Field

from algos.core.constraints import ConstraintConfig, Constraints, MultiplierConfig, Multipliers, price
from algos.core.objectives import ClipConfig, CriticConfig, clipped_losses, estimate, mix_advantages, shape_with_kl
from algos.core.optim import Optimizer, Setup, TrainingConfig
from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig, MultiplierConfig):
    """Settings of PPO-Lagrangian; the defaults are the official script's."""

    multiplier_update: Literal["log", "projected", "adam", "pid", "nu_pi", "fixed"] = Field(
        "log", description="log: Safe RLHF's; projected, adam: gradient ascent, λ may be 0; pid; nu_pi; fixed"
    )
    multiplier_init: float = Field(1.0, ge=0, description="λ before the first update")
    kl_coefficient: float = Field(0.01, ge=0, description="weight of the KL, taken off the reward and put on the cost")
    limit_includes_kl: bool = Field(False, description="whether a limit on the mean bounds the cost with its KL")


class Algorithm:
    """One policy, its optimiser, the constraints and their multipliers; see `algos.core.optim.Setup`."""

    def __init__(self, setup: Setup[Config]) -> None:
        self.policy, self.config = setup.policy, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "ppo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        config, kl, clip = self.config, self.config.kl_coefficient, self.config.clip_range_score
        old, reference = rollout.log_probs, rollout.reference_log_probs

        # The multiplier, on what the environment paid.
        included = config.limit_includes_kl and config.constraint == "mean"
        signals = self.constraints.observe(rollout, kl * (old - reference) if included else None)
        paid, multiplier = price(signals, self.multipliers.update(self.constraints.excess))

        # What to learn from.
        rewards = shape_with_kl(rollout.rewards, old, reference, -kl, clip)
        costs = shape_with_kl(paid, old, reference, 0.0 if included else kl, clip)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)

        losses = clipped_losses(advantages, estimates, config.clip_range_ratio, config)
        learned = self.optimizer.descend(rollout, losses, generator)
        return {**learned, **self.multipliers.metrics, **self.constraints.metrics}
