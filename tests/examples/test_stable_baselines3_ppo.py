"""The example of Stable-Baselines3: what it learns, and that a weight on the cost lowers the cost."""

from pathlib import Path

import pytest


def test_a_weight_lowers_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import stable_baselines3_ppo

    free = stable_baselines3_ppo.main(steps=10_000)
    weighted = stable_baselines3_ppo.main(steps=10_000, cost_weight=2.0)
    assert free["before"]["return"] + 1 < free["after"]["return"] <= free["best"]["return"] + 0.2
    assert weighted["after"]["return"] > weighted["before"]["return"] + 1
    assert weighted["after"]["cost"] < free["after"]["cost"] - 1
    assert weighted["best"]["cost"] < 0 < free["best"]["cost"]
