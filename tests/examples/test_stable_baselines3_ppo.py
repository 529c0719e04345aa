"""The example of Stable-Baselines3: what it learns, and that a price on the cost lowers the cost."""

from pathlib import Path

import pytest


def test_a_price_lowers_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import stable_baselines3_ppo

    free = stable_baselines3_ppo.main(steps=10_000)
    priced = stable_baselines3_ppo.main(steps=10_000, price=2.0)
    assert free["before"]["paid"] + 1 < free["after"]["paid"] <= free["best"]["paid"] + 0.2
    assert priced["after"]["paid"] > priced["before"]["paid"] + 1
    assert priced["after"]["cost"] < free["after"]["cost"] - 1
    assert priced["best"]["cost"] < 0 < free["best"]["cost"]
