"""The example of a six-tuple task: what PPO-Lagrangian does there that PPO does not."""

from pathlib import Path

import gymnasium as gym
import pytest


def test_the_limit_slows_the_driver_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import safety_gymnasium_task

    assert len(safety_gymnasium_task.Road().reset(seed=0)) == 2
    found = safety_gymnasium_task.main(episodes=1600)
    # Products rounded otherwise in their last bit leave these at 9.9 and 4.9, and at 0.5 and 4.9.
    assert found["ppo"]["reward"] > 8
    assert found["ppo"]["cost"] > 3
    assert found["ppo_lagrangian"]["cost"] < 1.5
    assert found["ppo_lagrangian"]["reward"] > 3
    assert gym.make("Road-v0", cost_limit=0.25).unwrapped.cost_limit == 0.25
