"""TRPO-Lagrangian: natural-gradient steps of fixed KL on reward - λ·cost.

Source: Schulman et al., "Trust Region Policy Optimization", arXiv 1502.05477, with the multiplier of Ray, Achiam &
Amodei, "Benchmarking Safe Exploration in Deep Reinforcement Learning" (2019): step √(2δ / gᵀF⁻¹g)·F⁻¹g on the gradient
g of the advantages (A_R - λ·A_C) / (1 + λ), shortened until the KL is at most δ and the surrogate has risen.

What differs: the KL to the reference is in the reward; critics that are heads on the actor's trunk are trained alone,
since moving the trunk would leave the trust region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from algos.core.settings import CriticConfig, MultiplierConfig, TrainingConfig, TrustRegionConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, MultiplierConfig, TrustRegionConfig):
    """Settings of TRPO-Lagrangian; `learning_rate` is that of steps on demonstrations alone."""


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "trpo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One step of the actor, then the critics' minibatches.

        Metrics besides those of the critics and of the constraint: λ; `step_kl`, of the step that was taken;
        `step_fraction`, what the line search left of it.
        """
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import critic_losses, estimate, mix_advantages, shaped_rewards
        from algos.core.optim import CRITICS
        from algos.core.trust_region import inner, radius, trust_region

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)

        with trust_region(self.agent.actor, rollout, config, generator, self.optimizer) as region:
            (g,) = region.gradients(advantages)
            x = region.solve(g)
            step = radius(inner(g, x), config.max_kl, "reward and cost") * x
            fraction = region.search(step, lambda: region.surrogates(advantages)[0] > 0)
            taken = {"step_kl": region.divergence(), "step_fraction": fraction}

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return critic_losses(new, batch, index, estimates, config)

        learned = self.optimizer.train(rollout, losses, generator, only=CRITICS)
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics, **taken}
