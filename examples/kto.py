"""A method on labelled responses, in one file: KTO, held to its closed form.

python examples/kto.py; in this folder, also textsafe train kto:KTO --data labelled.jsonl
"""

import gymnasium as gym
import numpy as np
import torch

import algos
from algos.core.constraints import Constraints
from algos.core.optim import Optimizer
from algos.core.settings import OfflineConfig
from textsafe_gym.data.readers import Labelled as Row
from textsafe_gym.models import make_actor
from textsafe_gym.offline.labelled import Labelled
from textsafe_gym.types import episode_sums


class KTO:
    """KTO: E[1 - σ(±(β·log(π/π_ref) - z))], + for a good response and - for a bad one (arXiv 2402.01306)."""

    class Config(OfflineConfig):
        kl_coefficient: float = 0.1  # β

    source, critics = "labelled", ()  # what `update` is given: responses, each labelled good or bad

    def __init__(self, setup) -> None:
        self.agent, self.config, self.optimizer = setup.agent, setup.config, Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "KTO")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}  # what a checkpoint holds

    def update(self, labelled, generator) -> dict[str, float]:
        z = self.baseline(labelled[torch.arange(min(len(labelled), self.config.at_once))])

        def losses(new, batch, index):
            log_ratio = episode_sums(new.log_probs, batch.mask) - batch.reference_log_probs.to(new.log_probs)
            excess = (self.config.kl_coefficient * log_ratio - z) * (2 * batch.good.to(log_ratio) - 1)
            loss = (1 - torch.sigmoid(excess)).mean()
            return loss, {"actor_loss": loss, "label_accuracy": (excess > 0).float().mean()}

        return {**self.optimizer.train(labelled, losses, generator), "baseline": z}

    @torch.no_grad()
    def baseline(self, rows) -> float:
        """z: β·max(KL, 0), the KL estimated, once an iteration, on each prompt with the response of the row before."""
        other, split = rows[torch.arange(len(rows)).roll(1)], rows.inputs[2].shape[1]  # responses are the last columns
        pairs = {name: (x[:, :-split], other.observations[name][:, -split:]) for name, x in rows.observations.items()}
        inputs = {name: torch.cat(pair, 1) for name, pair in pairs.items()}, other.actions, other.mask
        log_ratios = self.agent.actor.evaluate(*inputs).log_probs - self.agent.reference.log_probs(*inputs)
        return self.config.kl_coefficient * max(episode_sums(log_ratios, other.mask).mean().item(), 0.0)


def main(count: int = 512, seed: int = 0) -> tuple[float, float]:
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vocabulary=6, max_response_length=1, prompts=2, seed=10)
    task, actor = env.unwrapped, make_actor(env)
    every, rows, budgets = task.exact_task.responses, task.enumerate(), (task.max_prompt_length, 1)
    start = np.exp(every.reference_log_prob)
    good = every.reward > np.bincount(every.prompt, start * every.reward)[every.prompt]  # than the reference's mean
    drawn = np.random.default_rng(seed).choice(len(rows), size=count, p=start / 2)
    said = [Row(rows[i].prompt, rows[i].response, bool(good[i])) for i in drawn]
    settings = {"kl_coefficient": 0.5, "learning_rate": 2e-3, "learning_rate_schedule": "cosine", "epochs": 8}
    data = Labelled.encode(said, actor, *budgets, actor.reference())
    algos.register("kto", KTO.Config, KTO)
    algos.make("kto", env, actor, data=data, seed=seed, **settings).learn()
    best = start * good / np.bincount(every.prompt, start * good)[every.prompt]  # for β ≤ 1: the reference, if good
    policies = task.exact_task.log_probs(actor.model), every.reference_log_prob
    kl, before = (every.mean(best, np.log(np.where(good, best, 1)) - policy) for policy in policies)
    print(f"KL of the closed form to the policy: {kl:.4f} nats, before training {before:.4f}")
    return kl, before


if __name__ == "__main__":
    main()
