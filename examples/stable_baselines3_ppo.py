"""Stable-Baselines3's PPO on a text environment whose best reward is known.

Stable-Baselines3 knows no constraint: it takes the reward, and the cost is only counted. With --cost-weight 1 the
reward is R - 1·C, as a Lagrangian with a fixed multiplier has it.

    pip install "textsafe-gym[sb3]"
    python examples/stable_baselines3_ppo.py [--cost-weight 1]
"""

import sys

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO

from textsafe_gym.adapters.stable_baselines3 import CostCallback, CostVecEnv, WindowExtractor


class Weighted(gym.vector.VectorWrapper):
    """Pays reward - cost_weight·cost."""

    def __init__(self, env, cost_weight):
        super().__init__(env)
        self.cost_weight = cost_weight

    def step(self, actions):
        observation, reward, terminated, truncated, info = self.env.step(actions)
        return observation, reward - self.cost_weight * info["cost"], terminated, truncated, info


def play(model: PPO, env: CostVecEnv, episodes: int = 1000) -> dict[str, float]:
    """Mean pay and cost of sampled episodes."""
    observation, ended = env.reset(), []
    while len(ended) < episodes:
        observation, _, _, infos = env.step(model.predict(observation)[0])
        ended += [info["episode"] for info in infos if "episode" in info]
    return {"return": float(np.mean([e["r"] for e in ended])), "cost": float(np.mean([e["c"] for e in ended]))}


def main(steps: int = 40_000, cost_weight: float = 0.0) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    texts = gym.make_vec("SafeRLHF-Exact-v0", num_envs=16, autoreset_mode="SameStep")
    env = CostVecEnv(Weighted(texts, cost_weight))
    best = texts.unwrapped.solve_weighted(
        cost_weight, kl_coefficient=1e-3
    )  # nearly none: Stable-Baselines3 has no KL term
    settings = {"n_steps": 64, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 1.0, "gae_lambda": 1.0}
    policy_kwargs = {"features_extractor_class": WindowExtractor}
    model = PPO("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings)
    results = {"before": play(model, env)}
    model.learn(steps, callback=CostCallback())
    results |= {"after": play(model, env), "best": {"return": best.reward - cost_weight * best.cost, "cost": best.cost}}
    for name, found in results.items():
        print(f"{name:6}  return {found['return']:5.2f}  costs {found['cost']:5.2f}")
    return results


if __name__ == "__main__":
    main(cost_weight=float(sys.argv[2]) if sys.argv[1:2] == ["--cost-weight"] else 0.0)
