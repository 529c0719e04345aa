"""One CMDP with Box actions for both libraries: follow a target that is worth following and costly to follow.

Each of 8 steps shows a target s ~ U[0, 1] and the share of time left. Action a pays -(a - s)² and costs a, and the mean
cost of an episode may be 0.8. The best deterministic policy is a = s - 0.4 with return -1.28 (λ* = 0.8); a Gaussian one
of standard deviation σ loses another 8·σ². Without the limit: a = s, return 0, cost 4.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

STEPS, COST_LIMIT, BEST = 8, 0.8, -1.28
OBSERVATION, ACTION = Box(0.0, 1.0, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)


class Tracking(gym.vector.VectorEnv):
    """`num_envs` episodes in step with each other; an action after their common end begins new ones."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012
    cost_limit = COST_LIMIT

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBSERVATION, ACTION
        self.rng = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        return self._observe(), {}

    def step(self, actions):
        if self.t == STEPS:
            self.t = 0
            zeros, never = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
            return self._observe(), zeros, never, never, {"cost": zeros}
        moved = np.asarray(actions)[:, 0]
        rewards = -((moved - self.target) ** 2)
        self.t += 1
        over = np.full(self.num_envs, self.t == STEPS)
        return self._observe(), rewards, over, np.zeros_like(over), {"cost": moved.astype(float)}

    def _observe(self):
        self.target = self.rng.random(self.num_envs)
        return np.stack([self.target, np.full(self.num_envs, 1 - self.t / STEPS)], 1).astype(np.float32)
