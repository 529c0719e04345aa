import json
from pathlib import Path

import pytest

from tests.helpers.cli_world import build
from tests.helpers.example_loader import load
from tests.helpers.rounding import FLOAT64

pytest.importorskip("pandas")


def test_its_means_are_those_of_the_comparison(tmp_path: Path) -> None:
    world = build(tmp_path / "world")
    means = load("compare_in_python").main(
        str(tmp_path / "runs"), env=world / "env.yaml", episodes=16, seeds=2,
        settings={"episodes_per_iteration": 8, "ppo_lagrangian.multiplier_init": 1},
    )  # fmt: skip
    settings = json.loads((tmp_path / "runs/comparison.json").read_text())["settings"]
    assert sorted(means.index) == sorted(settings) == ["initial", "ppo", "ppo_lagrangian"]
    for label, setting in settings.items():
        for name in means:
            assert means.loc[label, name] == pytest.approx(setting["metrics"][name]["mean"], abs=FLOAT64)
    assert (tmp_path / "runs-cooler/ppo-0/evaluation.jsonl").is_file()
