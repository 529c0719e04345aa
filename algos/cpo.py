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


_TINY = 1e-8


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
        from algos.core.trust_region import TrustRegion

        config = self.config
        measured = self.constraints.measure(rollout)
        costs, (excess,) = measured.signals[0], measured.excess.values()
        rewards = shaped_rewards(rollout, config.kl_coefficient, config.clip_range_score)
        estimates = estimate(rollout, rewards, costs, config)

        # The step, from its products with F⁻¹.
        region = TrustRegion(self.agent.actor, rollout, config, generator, config.at_once)
        g, b = region.gradients(estimates.reward, estimates.cost)
        x, p = region.solve(g), region.solve(b)
        case, along_reward, along_cost = cpo_step(
            g.dot(x).item(), g.dot(p).item(), b.dot(p).item(), excess, config.max_kl
        )

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

    With the multipliers λ of the trust region and ν >= 0 of the constraint, x = F⁻¹(g - ν·b) / λ. For a given λ the
    best ν is ((λ·c + r) / s)⁺, which leaves one dimension:

        D(λ) = ½(A/λ + B·λ) - r·c/s   where λ·c + r > 0,  with A = q - r²/s and B = 2δ - c²/s
        D(λ) = ½(q/λ + 2δ·λ)          elsewhere

    each minimised in closed form and clipped to its own interval; the smaller D wins. (The paper's appendix 10.2
    minimises gᵀx, so that its r has the other sign.)

    Args:
        q: gᵀF⁻¹g.
        r: gᵀF⁻¹b.
        s: bᵀF⁻¹b.
        c: J_C - limit.
        max_kl: δ.

    Returns:
        Which case it is, α and β: "free", the limit is out of the step's reach; "feasible", it is within reach and
        kept; "infeasible", it is violated and one step can mend that; "recovery", one step can only lower the cost.
    """
    if s <= _TINY or (c < 0 and 2 * max_kl - c * c / s < 0):
        # Nothing that the step could do changes whether the limit is kept.
        return "free", math.sqrt(2 * max_kl / max(q, _TINY)), 0.0
    a, b = max(q - r * r / s, 0.0), 2 * max_kl - c * c / s
    if c >= 0 and b < 0:
        return "recovery", 0.0, math.sqrt(2 * max_kl / s)
    border = -r / c if c else (-math.inf if r > 0 else math.inf)
    inside, outside = ((0.0, border), (border, math.inf)) if c < 0 else ((border, math.inf), (0.0, border))
    best = math.inf, 1.0
    for (low, high), top, bottom, constant in ((inside, a, b, -r * c / s), (outside, q, 2 * max_kl, 0.0)):
        low = max(low, 0.0)
        if high >= low:
            value = min(max(math.sqrt(top / bottom) if bottom > 0 else math.inf, low, _TINY), max(high, _TINY))
            best = min(best, (0.5 * (top / value + bottom * value) + constant, value))
    multiplier = best[1]
    nu = max(multiplier * c + r, 0.0) / s
    return ("feasible" if c < 0 else "infeasible"), 1 / multiplier, nu / multiplier
