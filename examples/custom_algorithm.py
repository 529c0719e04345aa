"""An algorithm of one's own, without a file in `algos/`: a quadratic penalty, held to a known optimum.

python examples/custom_algorithm.py; in this folder, also textsafe train custom_algorithm:Algorithm and compare
"""

import torch
from pydantic import Field

import algos
import textsafe_gym  # noqa: F401 (registers the environments)
from algos.core.constraints import Constraints
from algos.core.loop import Setup
from algos.core.objectives import clipped_losses, estimate, mix_advantages, shaped_rewards
from algos.core.optim import Optimizer
from algos.core.settings import ClipConfig, ConstraintConfig, CriticConfig, TrainingConfig


class Config(TrainingConfig, CriticConfig, ClipConfig, ConstraintConfig):
    """Settings; those of the bases come with their meaning."""

    stiffness: float = Field(10.0, gt=0, description="κ: rise of the weight for each unit of excess cost")


class Algorithm:
    """Quadratic penalty: a unit of cost weighs κ times the excess."""

    source = "rollouts"  # what `update` is given: episodes of the present policy
    critics = ("reward", "cost")  # those that the agent is to have

    def __init__(self, setup: Setup) -> None:
        self.agent, self.config = setup.agent, setup.config
        self.optimizer = Optimizer(setup)
        self.constraints = Constraints(self.config, setup.cost_limit, "quadratic_penalty", several=False)
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}

    def update(self, rollout, generator: torch.Generator) -> dict[str, float]:
        measured = self.constraints.measure(rollout)
        (excess,) = measured.excess.values()  # the window's mean cost, less the limit
        weight = self.config.stiffness * max(excess, 0.0)
        rewards = shaped_rewards(rollout, self.config.kl_coefficient, self.config.clip_range_score)
        estimates = estimate(rollout, rewards, measured.signals[0], self.config)
        advantages = mix_advantages(estimates.reward, estimates.cost, weight)
        losses = clipped_losses(advantages, estimates, clip=self.config, critics=self.config)
        learned = self.optimizer.train(rollout, losses, generator)
        return {**learned, **measured.metrics, "cost_weight": weight}


def main(episodes: int = 16384, cost_limit: float = -0.5) -> dict[str, float]:
    algos.register("quadratic_penalty", Config, Algorithm)
    settings = {"learning_rate": 1e-3, "minibatch_size": 32, "kl_coefficient": 0.2}
    trainer = algos.make("quadratic_penalty", "SafeRLHF-Exact-v0", episodes=episodes, cost_limit=cost_limit, **settings)
    trainer.learn()
    env = trainer.env.unwrapped
    found, best = env.evaluate(trainer.actor.model), env.solve(cost_limit, kl_coefficient=0.2)
    print(f"reward {found.reward:.2f} of {best.reward:.2f}, cost {found.cost:.2f}, limit {cost_limit:.2f}")
    return {"reward": found.reward, "cost": found.cost, "best_reward": best.reward}


if __name__ == "__main__":
    main()
