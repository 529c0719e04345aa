"""TRPO-Lagrangian: natural-gradient steps of fixed KL on reward - λ·cost.

Source: Schulman et al., "Trust Region Policy Optimization", arXiv 1502.05477, with the multiplier of Ray, Achiam &
Amodei, "Benchmarking Safe Exploration in Deep Reinforcement Learning" (2019): step √(2δ / gᵀF⁻¹g)·F⁻¹g on the gradient
g of the advantages (A_R - λ·A_C) / (1 + λ), shortened until the KL is at most δ and the surrogate has risen.

What differs: the KL to the reference is in the reward; critics that are heads on the actor's trunk are trained alone,
since moving the trunk would leave the trust region.
"""

import math

import torch
from torch import Tensor

from algos.core.constraints import ConstraintConfig, Constraints, MultiplierConfig, Multipliers, price
from algos.core.objectives import CriticConfig, critic_losses, estimate, mix_advantages, shaped_rewards
from algos.core.optim import CRITICS, Optimizer, Setup, TrainingConfig
from algos.core.trust_region import TrustRegion, TrustRegionConfig
from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ConstraintConfig, MultiplierConfig, TrustRegionConfig):
    """Settings of TRPO-Lagrangian; `learning_rate` is that of steps on demonstrations alone."""


class Algorithm:
    """One policy, its optimiser, the constraints and their multipliers; see `algos.core.optim.Setup`."""

    def __init__(self, setup: Setup[Config]) -> None:
        self.policy, self.config = setup.policy, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "trpo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One step of the actor, then the critics' minibatches.

        Metrics beside those of the critics and of the constraint: λ; `step_kl`, of the step that was taken;
        `step_fraction`, what the line search left of it.
        """
        config = self.config
        signals = self.constraints.observe(rollout)
        costs, multiplier = price(signals, self.multipliers.update(self.constraints.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)

        region = TrustRegion(self.policy, rollout, config, generator, config.at_once)
        (g,) = region.gradients(advantages)
        x = region.solve(g)
        step = math.sqrt(2 * config.max_kl / max(g.dot(x).item(), 1e-8)) * x
        fraction = region.search(step, lambda: region.surrogates(advantages)[0] > 0)
        taken = {"step_kl": region.divergence(), "step_fraction": fraction}

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return critic_losses(new, batch, index, estimates, config)

        learned = self.optimizer.descend(rollout, losses, generator, only=CRITICS)
        return {**learned, **self.multipliers.metrics, **self.constraints.metrics, **taken}
