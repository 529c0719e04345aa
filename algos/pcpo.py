"""PCPO: a trust-region step for the reward, projected back into the constraint.

Source: Yang et al., "Projection-Based Constrained Policy Optimization", arXiv 2010.03152, eq. 7 with the KL projection:

    step = √(2δ/q)·F⁻¹g - ((√(2δ/q)·r + c) / s)⁺·F⁻¹b

with q = gᵀF⁻¹g, r = gᵀF⁻¹b, s = bᵀF⁻¹b, c = J_C - limit. The projection may lead out of the trust region; the line
search shortens the step until the KL on the true policy is at most δ.

What differs: as for `algos.cpo`. From far outside the constraint the projection is longer than the region is wide and
the line search leaves only its direction, as CPO's recovery does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from algos.core.settings import ConstraintConfig, CriticConfig, TrainingConfig, TrustRegionConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from algos.core.loop import Setup
    from textsafe_gym.types import Evaluation, Rollout


class Config(TrainingConfig, CriticConfig, ConstraintConfig, TrustRegionConfig):
    """Settings of PCPO; `learning_rate` is that of steps on demonstrations alone."""


class Algorithm:
    """An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "pcpo", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One step of the actor, then the critics' minibatches.

        Metrics besides those of the critics and of the constraint: `step_kl`, of the step that was taken;
        `step_fraction`, what the line search left of it.
        """
        from algos.core.objectives import critic_losses, estimate, shaped_rewards
        from algos.core.optim import CRITICS
        from algos.core.trust_region import inner, trust_region

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)

        with trust_region(self.agent.actor, rollout, config, generator, self.optimizer) as region:
            g, b = region.gradients(estimates.reward, estimates.cost)
            x, p = region.solve(g), region.solve(b)
            forward, back = pcpo_step(inner(g, x), inner(g, p), inner(b, p), excess, config.max_kl)
            step = forward * x - back * p
            if (width := math.sqrt(max(inner(step, region.fisher(step)), 0.0) / (2 * config.max_kl))) > 1:
                step = step / width  # the projection led out of the region

            def acceptable() -> bool:
                gain, rise = region.surrogates(estimates.reward, estimates.cost)
                return rise <= max(-excess, 0.0) and (gain > 0 or back > 0)

            fraction = region.search(step, acceptable)
            taken = {"step_kl": region.divergence(), "step_fraction": fraction}

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return critic_losses(new, batch, index, estimates, config)

        learned = self.optimizer.train(rollout, losses, generator, only=CRITICS)
        return {**learned, **estimates.metrics, **measured.metrics, **taken}


def pcpo_step(q: float, r: float, s: float, c: float, max_kl: float) -> tuple[float, float]:
    """α and β of the step α·F⁻¹g - β·F⁻¹b; arguments and errors as for `algos.cpo.cpo_step`.

    A cost without slope (s = 0) is left out, as no step can change it.
    """
    from algos.core.trust_region import radius

    forward, along_cost = radius(q, max_kl, "reward"), radius(s, max_kl, "cost")
    return forward, max(forward * r + c, 0.0) * along_cost**2 / (2 * max_kl)
