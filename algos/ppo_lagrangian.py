"""PPO-Lagrangian: max reward subject to mean cost <= limit, as the Safe RLHF paper ships it.

Source: Dai et al., "Safe RLHF", arXiv 2310.12773, and its official implementation: two critics, the KL to the reference
in reward *and* cost, advantages mixed by a multiplier λ that the window of recent episode costs drives, PTX steps on
demonstrations. λ moves once an iteration, before the actor does.

The paper states max E[R] - β·KL subject to E[C] + β·KL <= limit. Its implementation leaves the KL out of the window
that drives λ, and thereby ends where E[C] = limit and the KL weighs β·(1 + λ). `limit_includes_kl` puts the KL there
too, so that the stated problem is the one that is solved; E[C] then ends β·KL below the limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from algos.core.settings import ClipConfig, CriticConfig, MultiplierConfig, RuleName, TrainingConfig

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup
    from textsafe_gym.types import Rollout


class Config(TrainingConfig, CriticConfig, ClipConfig, MultiplierConfig):
    """Settings of PPO-Lagrangian; the defaults are the official script's."""

    multiplier_update: RuleName = Field(
        "log", description="log: Safe RLHF's; projected, adam: gradient ascent, λ may be 0; pid; nu_pi; fixed"
    )
    multiplier_init: float = Field(1.0, ge=0, description="λ before the first update")
    kl_coefficient: float = Field(0.01, ge=0, description="weight of the KL, taken off the reward and put on the cost")
    limit_includes_kl: bool = Field(False, description="whether a limit on the mean bounds the cost with its KL")

    @property
    def problem(self) -> str | None:
        """`kl_in_cost` where the limit includes the KL; see `StepConfig.problem`."""
        return "kl_in_cost" if self.limit_includes_kl and super().problem == "mean" else super().problem


class Algorithm:
    """An agent, its optimiser, the constraints and their multipliers; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, setup: Setup[Config]) -> None:
        from algos.core.constraints import Constraints, Multipliers
        from algos.core.optim import Optimizer

        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "ppo_lagrangian")
        self.multipliers = Multipliers(self.config, self.constraints)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints, "multipliers": self.multipliers}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are means over its minibatches, λ, and the window that drove it."""
        from algos.core.constraints import weighted_cost
        from algos.core.objectives import clipped_losses, estimate, mix_advantages, shape_with_kl

        config, kl, clip = self.config, self.config.kl_coefficient, self.config.clip_range_score
        to_reference = rollout.log_ratios

        # The multiplier, on what the environment paid.
        included = config.limit_includes_kl and config.constraint == "mean"
        measured = self.constraints.measure(rollout, kl * to_reference if included else None)
        cost_signal, multiplier = weighted_cost(measured.signals, self.multipliers.update(measured.excess))

        rewards = shape_with_kl(rollout.rewards, to_reference, -kl, clip)
        of_costs = clip if config.constraint == "mean" else float("inf")  # a CVaR's values as λ follows them, unclipped
        costs = shape_with_kl(cost_signal, to_reference, 0.0 if included else kl, of_costs)
        estimates = estimate(rollout, rewards, costs, config)
        advantages = mix_advantages(estimates.reward, estimates.cost, multiplier)

        losses = clipped_losses(advantages, estimates, clip=config, critics=config)
        learned = self.optimizer.train(rollout, losses, generator, target_kl=config.target_kl)
        return {**learned, **estimates.metrics, **self.multipliers.metrics, **measured.metrics}
