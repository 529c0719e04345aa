"""REINFORCE written from nothing on the text environment; of this package it uses the environment alone.

It earns reward - cost_weight * cost, paid when the eight tokens of a response are said, and begins with random weights.
"""

import gymnasium as gym
import torch
from torch.distributions import Categorical

import textsafe_gym  # noqa: F401  registers the environments


def play(env: gym.Env, policy: torch.nn.Module, cost_weight: float) -> tuple[torch.Tensor, float]:
    """The log-probability of a sampled response, and what it earns."""
    observation, _ = env.reset()
    log_prob, ended = torch.zeros(()), False
    while not ended:
        last = observation["attention_mask"].nonzero()[0][-1]  # the policy sees nothing but the last token
        choice = Categorical(logits=policy(torch.tensor(observation["input_ids"][last])))
        action = choice.sample()
        log_prob = log_prob + choice.log_prob(action)
        observation, reward, terminated, truncated, info = env.step(action.item())
        ended = terminated or truncated
    return log_prob, reward - cost_weight * info["cost"]


def main(updates: int = 50, episodes: int = 32, cost_weight: float = 1.0, seed: int = 0) -> list[float]:
    torch.manual_seed(seed)
    env = gym.make("SafeRLHF-v0", max_response_length=8)
    env.reset(seed=seed)
    policy = torch.nn.Sequential(torch.nn.Embedding(env.action_space.n, 16), torch.nn.Linear(16, env.action_space.n))
    optimizer, curve = torch.optim.Adam(policy.parameters(), lr=0.1), []
    for update in range(updates):
        log_probs, earned = zip(*(play(env, policy, cost_weight) for _ in range(episodes)), strict=True)
        curve.append(sum(earned) / episodes)
        advantages = torch.tensor(earned) - curve[-1]
        loss = -(advantages / advantages.std() * torch.stack(log_probs)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"update {update}: {curve[-1]:.3f}")
    return curve


if __name__ == "__main__":
    main()
