"""Stable-Baselines3's PPO on the text environment, as somebody has it who has only installed the package.

    python stranger_ppo.py STEPS SEED...

Prints, as JSON, where the package was found, and what each seed earned in each episode.
"""

import json
import sys
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import textsafe_gym


class Weighted(gym.Wrapper[Any, Any, Any, Any]):
    """Pays reward - cost."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - info["cost"], terminated, truncated, info


class LastToken(BaseFeaturesExtractor):
    """The last token's embedding."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, features_dim=16)
        self.embedding = torch.nn.Embedding(int(space["input_ids"].high.max()) + 1, 16)

    def forward(self, observations: Any) -> torch.Tensor:
        ids, mask = observations["input_ids"].long(), observations["attention_mask"]
        last = (mask * torch.arange(mask.shape[1])).argmax(1, keepdim=True)
        return self.embedding(ids.gather(1, last)[:, 0])


class Earned(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[float] = []

    def _on_step(self) -> bool:
        self.episodes += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True


def learn(steps: int, seed: int) -> list[float]:
    env = Weighted(gym.make("SafeRLHF-v0", max_response_length=8))
    settings = {"n_steps": 256, "batch_size": 256, "n_epochs": 4, "learning_rate": 0.1, "gamma": 1.0, "gae_lambda": 1.0}
    network = {"features_extractor_class": LastToken, "net_arch": []}
    model = PPO("MultiInputPolicy", env, seed=seed, device="cpu", policy_kwargs=network, **settings)
    model.learn(steps, callback=(earned := Earned()))
    return earned.episodes


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves = [learn(int(sys.argv[1]), int(seed)) for seed in sys.argv[2:]]
    print(json.dumps({"file": textsafe_gym.__file__, "curves": curves}))
