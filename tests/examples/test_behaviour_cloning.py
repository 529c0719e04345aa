"""Behaviour cloning, a class of the user's own on demonstrations: its optimum, `train` and what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import algos
from tests.helpers import cli_world
from tests.helpers.example_loader import load
from textsafe_gym.cli.main import main as command
from textsafe_gym.errors import ConfigError

pytestmark = pytest.mark.usefixtures("as_a_user")
NAME = "behaviour_cloning:BehaviourCloning"


def test_it_reaches_the_most_likely_policy() -> None:
    kl, start = load("behaviour_cloning").main()
    assert kl < 0.02
    assert start > 0.2


def test_the_command_trains_it_from_a_file(tmp_path: Path) -> None:
    root = cli_world.build(tmp_path / "world")
    request = ["train", NAME, "--env", str(root / "env.yaml"), "--out", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(command, [*request, "--data", str(root / "demonstrations.jsonl"), "-q"])
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = (root / "demonstrations.jsonl").read_text().splitlines()
    assert (summary["episodes"], summary["pairs"], summary["demonstrations"]) == (0, 0, len(rows))
    card = (tmp_path / "run" / "checkpoints" / "latest" / "policy" / "README.md").read_text()
    assert f"{len(rows)}: {root / 'demonstrations.jsonl'}" in card
    refused = CliRunner().invoke(command, [*request[:-3], "--out", str(tmp_path / "never"), "-q"])
    assert refused.exit_code == 2
    assert "--data simulated:4096: no environment simulates demonstrations; give --data FILE" in refused.stderr


def test_pairs_are_no_demonstrations() -> None:
    with pytest.raises(ConfigError, match="learns from demonstrations; give data=<Demonstrations>"):
        algos.make(NAME, "SafeRLHF-Exact-v0", data=None)
