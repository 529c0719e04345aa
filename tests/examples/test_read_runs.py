import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.cli_world import build
from tests.helpers.example_loader import load
from textsafe_gym.cli.main import main


def test_its_table_is_that_of_the_comparison(tmp_path: Path) -> None:
    env = build(tmp_path) / "env.yaml"
    arguments = ["compare", "ppo", "rloo", "--env", str(env), "--seeds", "2", "--episodes", "16", "--set"]
    arguments += ["episodes_per_iteration=8", "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    table = load("read_runs").main(str(tmp_path / "runs"), str(tmp_path / "reward.png"))
    settings = json.loads((tmp_path / "runs" / "comparison.json").read_text())["settings"]
    assert sorted(table.index) == sorted(settings) == ["initial", "ppo", "rloo"]
    for label, setting in settings.items():
        for signal in ("reward", "cost"):
            for bound in ("mean", "low", "high"):
                assert table.loc[label, (bound, signal)] == pytest.approx(setting["metrics"][signal][bound])
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")
