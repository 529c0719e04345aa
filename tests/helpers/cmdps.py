"""Two small constrained MDPs and a bandit whose constrained optimum is known."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray


class Tracking(gym.Env):
    """Box actions: follow a target that is worth following and costly to follow.

    Each of 8 steps shows a target s ~ U[0, 1] and the share of time left. Action a pays -(a - s)² and costs a.
    max E[-Σ(a - s)²] subject to E[Σ a] <= limit has λ* = 2·(0.5 - limit / 8), a*(s) = s - λ*/2 and the reward
    -8·(λ*/2)²: with limit 0.8, λ* = 0.8, a* = s - 0.4 and -1.28. Without the constraint: a = s, reward 0, cost 4.
    """

    STEPS, COST_LIMIT, MULTIPLIER, REWARD = 8, 0.8, 0.8, -1.28

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (2,), np.float32)
        self.action_space = Box(-2.0, 2.0, (1,), np.float32)
        self.cost_limit = self.COST_LIMIT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._observe(), {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict]:
        moved = float(action[0])
        reward = -((moved - self.target) ** 2)
        self.step_number += 1
        return self._observe(), reward, self.step_number == self.STEPS, False, {"cost": moved}

    def _observe(self) -> NDArray:
        self.target = float(self.np_random.random())
        return np.array([self.target, 1 - self.step_number / self.STEPS], np.float32)


class Crossing(gym.Env):
    """Discrete actions: hurry (1) or wait (0) at crossings that are clear or busy, in episodes of 4 to 8 steps.

    Each crossing is busy with probability ½, seen in the observation. Hurrying pays 1, waiting 0.3; hurrying at a busy
    crossing costs 1, at a clear one nothing. After step t >= 4 the episode ends with probability ¼, at 8 for certain.
    """

    COST_LIMIT = 0.5
    # E[steps] = 4 + 3/4 + (3/4)² + (3/4)³ + (3/4)⁴
    STEPS = 4 + sum(0.75**k for k in range(1, 5))

    @classmethod
    def optimum(cls, kl: float) -> tuple[float, float]:
        """Reward and λ of the optimum of max E[R] - kl·KL subject to E[C] + kl·KL <= limit, the KL to a fair coin,
        with λ where E[C] = limit: PPO-Lagrangian puts the KL in the signals and not in the constraint."""
        busy = cls.COST_LIMIT / (cls.STEPS / 2)  # P(hurry | busy) uses the limit up
        logit = math.log(busy / (1 - busy))  # = (0.7 - λ) / (kl·(1 + λ))
        multiplier = (0.7 - kl * logit) / (1 + kl * logit)
        clear = 1 / (1 + math.exp(-0.7 / (kl * (1 + multiplier))))
        return cls.STEPS / 2 * (0.6 + 0.7 * (busy + clear)), multiplier

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (3,), np.float32)
        self.action_space = Discrete(2)
        self.cost_limit = self.COST_LIMIT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[NDArray, float, bool, bool, dict]:
        reward, cost = (1.0 if action else 0.3), float(bool(action) and self.busy)
        self.step_number += 1
        over = self.step_number == 8 or (self.step_number >= 4 and self.np_random.random() < 0.25)
        return self._observe(), reward, over, False, {"cost": cost}

    def _observe(self) -> NDArray:
        self.busy = bool(self.np_random.random() < 0.5)
        return np.array([self.busy, not self.busy, self.step_number / 8], np.float32)


class Bandit(gym.Env):
    """One step, three arms: the best is forbidden in full, the second safe, the third safer and useless."""

    REWARDS, COSTS, COST_LIMIT = np.array([1.0, 0.6, 0.0]), np.array([1.0, -0.4, -1.0]), 0.0

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(3)
        self.cost_limit = self.COST_LIMIT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray, float, bool, bool, dict]:
        return np.ones(1, np.float32), float(self.REWARDS[action]), True, False, {"cost": float(self.COSTS[action])}

    @classmethod
    def optimum(cls, kl: float) -> tuple[NDArray, float]:
        """What PPO-Lagrangian solves from a uniform reference: π_λ ∝ exp((R - λC) / (kl·(1 + λ))) with E[C] = limit."""
        low, high = 0.0, 100.0
        for _ in range(100):
            multiplier = (low + high) / 2
            weights = np.exp((cls.REWARDS - multiplier * cls.COSTS) / (kl * (1 + multiplier)))
            probabilities = weights / weights.sum()
            low, high = (multiplier, high) if probabilities @ cls.COSTS > cls.COST_LIMIT else (low, multiplier)
        return probabilities, multiplier


def vector(env: type[gym.Env], count: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([env] * count)


class Rare(Crossing):
    """Names its cost, "harm", only where it occurs."""

    def step(self, action: int) -> Any:
        *rest, info = super().step(action)
        return *rest, {**info, "costs": {"harm": info["cost"]}} if info["cost"] else info


class Halves(Crossing):
    """As programs often count: a cost of 0 is an int, one of 0.5 a float."""

    def step(self, action: int) -> Any:
        *rest, _ = super().step(action)
        cost = 0.5 if action else 0
        return *rest, {"cost": cost, "costs": {"a": cost, "b": 2 * cost}}


class Reusing(gym.vector.VectorWrapper):
    """Returns the same arrays at every step, with other numbers in them; rewards are float32."""

    def reset(self, **options: Any) -> Any:
        self._held: dict[Any, NDArray] = {}
        return self._refilled(self.env.reset(**options))

    def step(self, actions: Any) -> Any:
        observation, rewards, *rest = self.env.step(actions)
        return self._refilled((observation, rewards.astype(np.float32), *rest))

    def _refilled(self, value: Any, path: tuple = ()) -> Any:
        if isinstance(value, dict):
            return {name: self._refilled(x, (*path, name)) for name, x in value.items()}
        if isinstance(value, tuple):
            return tuple(self._refilled(x, (len(value), i)) for i, x in enumerate(value))
        held = self._held.setdefault((path, value.shape, value.dtype), value)
        held[...] = value
        return held
