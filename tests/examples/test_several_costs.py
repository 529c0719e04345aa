from pathlib import Path

import pytest

import algos
from tests.helpers.example_loader import load


def test_each_cost_moves_its_own_multiplier(tmp_path: Path) -> None:
    example = load("several_costs")
    rows = example.main(episodes=256, out=str(tmp_path / "run"))
    previous = dict.fromkeys(example.LIMITS, 1.0)
    for row in rows:
        for name, limit in example.LIMITS.items():
            rise = row[f"multiplier_{name}"] - previous[name]
            assert rise * (row[f"window_cost_{name}"] - limit) > 0
            previous[name] = row[f"multiplier_{name}"]
        assert row["multiplier"] == pytest.approx(row["multiplier_harm"] + row["multiplier_words"])
    assert rows[-1]["window_cost_words"] == pytest.approx(1.5, abs=0.4)  # tens of words
    state = algos.core.checkpoint.load_checkpoint(tmp_path / "run")
    assert state["constraints.limits"] == example.LIMITS
