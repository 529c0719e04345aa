"""An offline method of one's own, in one file: IPO on labelled pairs, held to its closed form.

python examples/offline_algorithm.py; in this folder, also textsafe compare ppo dpo offline_algorithm:IPO
"""

import gymnasium as gym
import numpy as np
from pydantic import Field
from scipy.special import expit

import algos
from algos.core.constraints import Constraints
from algos.core.optim import Optimizer
from algos.core.preferences import preference_losses
from algos.core.settings import OfflineConfig
from textsafe_gym.models import make_actor
from textsafe_gym.offline.preferences import Preferences


class Config(OfflineConfig):
    kl_coefficient: float = Field(0.1, gt=0, description="τ: weight of the KL to the reference")


class IPO:
    """IPO: max E[P(preferred to the reference's response)] - τ·KL (Azar et al., arXiv 2310.12036)."""

    source = "preferences"  # what `update` is given: labelled pairs that are there already
    critics = ()

    def __init__(self, setup) -> None:
        self.agent, self.config, self.optimizer = setup.agent, setup.config, Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "IPO")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}  # what a checkpoint holds

    def update(self, preferences, generator) -> dict[str, float]:
        tau = self.config.kl_coefficient  # the paper's loss is (h - 1/(2τ))², and the margin τ·h
        losses = preference_losses(lambda margin: ((margin - 0.5) / tau) ** 2, tau)
        return self.optimizer.train(preferences, losses, generator)


def main(pairs: int = 1024, tau: float = 0.2, seed: int = 0) -> tuple[float, float]:
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vocabulary=5, max_response_length=2, prompts=2, seed=10)
    task, actor = env.unwrapped, make_actor(env)
    budgets = task.max_prompt_length, task.max_response_length
    data = Preferences.encode(task.preferences(pairs, seed), actor, *budgets, actor.reference())
    algos.register("identity_preferences", Config, IPO)
    settings = {"kl_coefficient": tau, "learning_rate": 2e-3, "learning_rate_schedule": "cosine", "epochs": 8}
    algos.make("identity_preferences", env, actor, data=data, seed=seed, **settings).learn()
    every = task.exact_task.responses
    against = np.exp(every.reference_log_prob) * (every.prompt[:, None] == every.prompt)  # a response of the reference
    preferred = (expit(every.reward[:, None] - every.reward) * against).sum(1)
    weights = np.exp(every.reference_log_prob + preferred / tau)
    best = weights / np.bincount(every.prompt, weights)[every.prompt]
    policies = task.exact_task.log_probs(actor.model), every.reference_log_prob
    kl, start = (every.mean(best, np.log(best) - policy) for policy in policies)
    print(f"KL of the closed form to the policy: {kl:.4f} nats, before training {start:.4f}")
    return kl, start


if __name__ == "__main__":
    main()
