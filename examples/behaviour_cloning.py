"""A method on demonstrations, in one file: behaviour cloning, held to the most likely policy.

python examples/behaviour_cloning.py; in this folder, also
textsafe train behaviour_cloning:BehaviourCloning --data demonstrations.jsonl
"""

import gymnasium as gym
import numpy as np

import algos
from algos.core.constraints import Constraints
from algos.core.optim import Optimizer
from algos.core.settings import OfflineConfig
from textsafe_gym.models import make_actor
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.types import episode_sums


class BehaviourCloning:
    """Behaviour cloning: the likelihood of demonstrated responses; of pairs, that of the preferred ones."""

    Config = OfflineConfig
    source = "demonstrations"  # what `update` is given
    critics = ()

    def __init__(self, setup) -> None:
        self.agent, self.config, self.optimizer = setup.agent, setup.config, Optimizer(setup)
        self.constraints = Constraints(None, setup.cost_limit, "behaviour cloning")
        self.parts = {"optimizer": self.optimizer, "constraints": self.constraints}  # what a checkpoint holds

    def update(self, demonstrations, generator) -> dict[str, float]:
        def losses(new, batch, index):
            loss = -episode_sums(new.log_probs, batch.mask).mean()
            return loss, {"actor_loss": loss}

        return self.optimizer.train(demonstrations, losses, generator)


def main(count: int = 512, **settings) -> tuple[float, float]:
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vocabulary=5, max_response_length=2, prompts=2, seed=10)
    task, actor = env.unwrapped, make_actor(env)
    every, rows = task.exact_task.responses, task.enumerate()
    shown = np.random.default_rng(0).integers(len(rows), size=count)  # all responses alike, unlike the reference's
    texts = [(rows[i].prompt, rows[i].response) for i in shown]
    data = Demonstrations.encode(texts, actor, task.max_prompt_length, task.max_response_length)
    algos.register("behaviour_cloning", BehaviourCloning.Config, BehaviourCloning)
    settings = {"learning_rate": 2e-3, "learning_rate_schedule": "cosine", "epochs": 16, **settings}
    algos.make("behaviour_cloning", env, actor, data=data, **settings).learn()
    counts = np.bincount(shown, minlength=len(rows))
    seen, share = counts > 0, counts / count  # the most likely policy has the demonstrations' own shares
    best = counts / np.bincount(every.prompt, counts)[every.prompt]
    policies = task.exact_task.log_probs(actor.model), every.reference_log_prob
    kl, start = (float(share[seen] @ (np.log(best[seen]) - policy[seen])) for policy in policies)
    print(f"KL of the most likely policy to this one: {kl:.4f} nats, before training {start:.4f}")
    return kl, start


if __name__ == "__main__":
    main()
