"""A task in Safety-Gymnasium's form, whose `step` returns six values, under PPO and PPO-Lagrangian.

A road of ten stretches; children play along half of them, and the driver sees where. Speed pays, and next to children
it costs. PPO drives on, PPO-Lagrangian slows down there. The best that keeps the limit pays 6.5.

    python examples/safety_gymnasium_task.py
    PYTHONPATH=examples textsafe train cpo --env safety_gymnasium_task:Road-v0 --set env.cost_limit=0.5
"""

import gymnasium as gym
import numpy as np

import algos
from textsafe_gym.adapters.safety_gymnasium import from_safety_gymnasium

SETTINGS = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "learning_rate_schedule": "constant"}
SETTINGS |= {"minibatch_size": 16, "episodes_per_iteration": 32, "kl_coefficient": 0.1}
MULTIPLIER = {"multiplier_update": "projected", "multiplier_init": 0.0, "multiplier_learning_rate": 0.05}


class Road(gym.Env):
    """Observation: whether children play here, the share of the road that is left. Action: stop, half or full speed."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.stretch = 0
        return self.observe(), {}

    def step(self, action):
        speed = action / 2
        reward, cost = speed * (2 - speed), speed * self.children
        self.stretch += 1
        return self.observe(), reward, cost, self.stretch == 10, False, {}

    def observe(self):
        self.children = float(self.np_random.random() < 0.5)
        return np.array([self.children, 1 - self.stretch / 10], np.float32)


def make(cost_limit: float = 1.0, **_) -> gym.Env:
    return from_safety_gymnasium(Road, cost_limit)


gym.register("Road-v0", entry_point=make)


def main(episodes: int = 4800) -> dict[str, dict[str, float]]:
    results = {}
    for name, more in {"ppo": {}, "ppo_lagrangian": MULTIPLIER}.items():
        rows = algos.make(name, "Road-v0", episodes=episodes, **SETTINGS, **more).learn()[-20:]
        results[name] = {key: float(np.mean([row[key] for row in rows])) for key in ("reward", "cost")}
        print(f"{name}: reward {results[name]['reward']:.2f}, cost {results[name]['cost']:.2f} (limit 1)")
    return results


if __name__ == "__main__":
    main()
