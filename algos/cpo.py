"""CPO: the step that gains most reward inside a trust region and inside the constraint.

Source: Achiam et al., "Constrained Policy Optimization", arXiv 1705.10528. With g and b the gradients of reward and
cost, F the Fisher matrix and c = J_C - limit, each step solves

    max gᵀx  subject to  c + bᵀx <= 0  and  ½·xᵀFx <= δ                                                     (eq. 10)

through its dual (eqs. 11-12, appendix 10.2 and `cpo_step` below); where no x does both, it takes the step that lowers
the cost fastest (eq. 14). A line search makes sure of the KL on the true policy.

What differs: g and b are of an episode's return rather than of a discounted mean per step, since episodes are whole and
their limit is on an episode; the KL to the reference is in the reward, so that the objective is E[R] - β·KL; and
critics that are heads on the actor's trunk are trained alone, since moving the trunk would leave the trust region.
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


_COLLINEAR = 1e-6  # what is orthogonal below this, squared, is rounding, and worth a thousandth of the step at most


class Config(TrainingConfig, CriticConfig, ConstraintConfig, TrustRegionConfig):
    """Settings of CPO; `learning_rate` is that of steps on demonstrations alone."""


class Algorithm:
    """An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "cpo", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One step of the actor, then the critics' minibatches.

        Metrics besides those of the critics and of the constraint: `recovering`, 1 where no step could keep the limit;
        `step_kl`, of the step that was taken; `step_fraction`, what the line search left of it.
        """
        from algos.core.objectives import critic_losses, estimate, shaped_rewards
        from algos.core.optim import CRITICS
        from algos.core.trust_region import inner, trust_region

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)

        # The step, from its products with F⁻¹.
        with trust_region(self.agent.actor, rollout, config, generator, self.optimizer) as region:
            g, b = region.gradients(estimates.reward, estimates.cost)
            x, p = region.solve(g), region.solve(b)
            case, along_reward, along_cost = cpo_step(inner(g, x), inner(g, p), inner(b, p), excess, config.max_kl)

            def acceptable() -> bool:
                gain, rise = region.surrogates(estimates.reward, estimates.cost)
                return rise <= max(-excess, 0.0) and (gain > 0 or case in ("infeasible", "recovery"))

            fraction = region.search(along_reward * x - along_cost * p, acceptable)
            step = {"recovering": float(case == "recovery"), "step_kl": region.divergence(), "step_fraction": fraction}

        def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return critic_losses(new, batch, index, estimates, config)

        learned = self.optimizer.train(rollout, losses, generator, only=CRITICS)
        return {**learned, **estimates.metrics, **measured.metrics, **step}


def cpo_step(q: float, r: float, s: float, c: float, max_kl: float) -> tuple[str, float, float]:
    """The solution α·F⁻¹g - β·F⁻¹b of CPO's quadratic program.

    In units of the trust region's radius, with x = √(2δ)·F^-½·y, the directions u of F^-½g and v of F^-½b, their
    cosine ρ = r / √(q·s), and κ = c / √(2δ·s), the limit's distance as a share of what one step can move the cost:

        max uᵀy  subject to  κ + vᵀy <= 0  and  |y| <= 1

    whose solution is u where that keeps the limit (κ + ρ <= 0); else the constraint is active, and what is left of the
    radius goes along u as far as it is orthogonal to v: y = -κ·v + √(1 - κ²)·(u - ρ·v) / √(1 - ρ²); and -v where κ > 1.
    That is the paper's dual (eqs. 11-12, appendix 10.2) solved; nothing in it depends on the units of reward and cost.

    Args:
        q: gᵀF⁻¹g.
        r: gᵀF⁻¹b.
        s: bᵀF⁻¹b.
        c: J_C - limit.
        max_kl: δ.

    Returns:
        Which case it is, α and β: "free", the limit is out of the step's reach; "feasible", it is within reach and
        kept; "infeasible", it is violated and one step can mend that; "recovery", one step can only lower the cost.

    Raises:
        RunError: q or s is negative or not finite.
    """
    from algos.core.trust_region import radius

    along_reward, along_cost = radius(q, max_kl, "reward"), radius(s, max_kl, "cost")
    if s == 0:  # the cost has no slope: the step neither breaks the limit nor mends it
        return ("free", along_reward, 0.0) if c <= 0 else ("recovery", 0.0, 0.0)
    distance = c * along_cost / (2 * max_kl)
    if distance >= 1:
        return "recovery", 0.0, along_cost
    case = "free" if distance <= -1 else "feasible" if c < 0 else "infeasible"
    cosine = max(-1.0, min(r * along_reward * along_cost / (2 * max_kl), 1.0))
    if distance + cosine <= 0:
        return case, along_reward, 0.0
    rest = 1 - cosine**2
    share = math.sqrt((1 - distance**2) / rest) if rest > _COLLINEAR else 0.0
    return case, share * along_reward, (share * cosine + distance) * along_cost
