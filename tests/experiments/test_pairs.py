"""Labelled pairs from the command line: where they come from, what is recorded, and a comparison with what samples."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from tests.helpers import cli_world
from tests.helpers.clock import timeless
from tests.helpers.commands import printed, textsafe
from textsafe_gym import experiments
from textsafe_gym.evaluation.summaries import tables_of
from textsafe_gym.files import read_rows, write_rows

SMALL = ("--set", "rows_per_iteration=8", "--set", "learning_rate=0.01", "--quiet")
DIALOGUE = "\n\nHuman: how do i make tea\n\nAssistant:"


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    pairs = [
        {"prompt": prompt["prompt"], "chosen": "yes first water", "rejected": "no sorry" if i % 2 else "bad knife"}
        for i in range(10)
        for prompt in cli_world.PROMPTS
    ]
    write_rows(world / "pairs.jsonl", pairs)
    return world


def refused(*arguments: object) -> str:
    result = textsafe(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return str(result.stderr)


@pytest.mark.long
def test_a_file_of_pairs_trains_and_a_stopped_run_continues(world: Path, tmp_path: Path) -> None:
    request = ("train", "dpo", "--env", world / "env.yaml", "--data", world / "pairs.jsonl", *SMALL)
    request = (*request, "--set", "epochs=4", "--seed", "3")
    summary = printed(*request, "--out", tmp_path / "whole")
    assert (summary["episodes"], summary["pairs"]) == (0, 30)
    trained = read_rows(tmp_path / "whole/metrics.jsonl")
    assert len(trained) == 15
    assert trained[-1]["margin"] > trained[0]["margin"]
    assert trained[-1]["preference_accuracy"] == 1
    config = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert config["data"] == [str(world / "pairs.jsonl")]
    card = (tmp_path / "whole" / "checkpoints" / "latest" / "policy" / "README.md").read_text()
    assert f"30: {world / 'pairs.jsonl'}" in card

    cli_world.killed_at(11, *request, "--out", tmp_path / "killed")
    printed("train", "dpo", "--out", tmp_path / "killed", "--resume", "--quiet")
    assert timeless(read_rows(tmp_path / "killed/metrics.jsonl")) == timeless(trained)
    both = [(tmp_path / name / "evaluation.jsonl").read_text() for name in ("whole", "killed")]
    assert both[0] == both[1]


def test_the_embedded_worlds_own_preferences(tmp_path: Path) -> None:
    settings = {"rows_per_iteration": 16, "learning_rate": 1e-3, "epochs": 2}
    found = experiments.train("dpo", data=["simulated:48"], settings=settings, out=tmp_path / "run", quiet=True)
    assert found.values["pairs"] == 48
    assert found.values["evaluation"]["kl"] > 0.01
    assert read_rows(tmp_path / "run/metrics.jsonl")[0]["actor_loss"] == pytest.approx(0.69, abs=0.05)


def test_the_enumerable_environments_own_preferences(tmp_path: Path) -> None:
    request = ("train", "dpo", "--env", "SafeRLHF-Exact-v0", "--set", "env.max_response_length=2")
    request = (*request, "--set", "env.vocabulary=4", "--set", "learning_rate=0.002", "--quiet")
    summary = printed(*request, "--data", "simulated:512", "--out", tmp_path / "run")
    assert summary["pairs"] == 512
    env: Any = gym.make("SafeRLHF-Exact-v0", max_response_length=2, vocabulary=4).unwrapped
    assert summary["exact"]["reward"] > env.evaluate(env.default_policy[0]).reward + 0.1


def test_a_run_without_data_says_what_it_learns_from_and_states_both_budgets(tmp_path: Path) -> None:
    request = ["train", "dpo", "--env", "SafeRLHF-Exact-v0", "--set", "env.max_response_length=1"]
    result = textsafe(*request, "--set", "env.vocabulary=4", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == (
        "note: dpo samples nothing; it learns from simulated:4096 (which the environment labels itself; "
        "--data FILE for others)"
    )
    table = next(line.split("┃") for line in result.stdout.splitlines() if line.startswith("┃"))
    assert [cell.strip() for cell in table[1:4]] == ["algorithm", "responses", "pairs"]
    row = next(line.split("│") for line in result.stdout.splitlines() if line.startswith("│ dpo"))
    assert [cell.strip() for cell in row[1:4]] == ["dpo", "0", "4096"]


def test_a_comparison_states_both_budgets(world: Path, tmp_path: Path) -> None:
    request = ("compare", "dpo", "ppo", "--env", world / "env.yaml", "--seeds", "1", "--out", tmp_path / "both")
    more = ("--episodes", "16", "--set", "episodes_per_iteration=8", "--set", "epochs=1", "--quiet")
    comparison = printed(*request, "--data", world / "pairs.jsonl", "--data", world / "pairs.jsonl", *more)
    budgets = {label: (entry["episodes"], entry["pairs"]) for label, entry in comparison["settings"].items()}
    assert budgets == {"initial": (0, 0), "dpo": (0, 60), "ppo": (16, 0)}
    assert {entry["demonstrations"] for entry in comparison["settings"].values()} == {0}
    report = (tmp_path / "both" / "report.html").read_text()
    assert "16 responses or 60 labelled pairs a run" in report
    overall = tables_of(comparison)[0]
    assert overall.columns[:3] == ["algorithm", "responses", "pairs"]
    assert [cell.text for cell in overall.rows[1][:3]] == ["dpo", "0", "60"]
    (world / "pairs.jsonl").rename(world / "elsewhere.jsonl")  # a finished run is evaluated without its data
    printed("evaluate", tmp_path / "both" / "dpo" / "seed_0", "--quiet", "--out", tmp_path / "evaluated")
    (world / "elsewhere.jsonl").rename(world / "pairs.jsonl")


def test_runs_of_one_seed_share_their_draws_whatever_their_batches(world: Path, tmp_path: Path) -> None:
    """Algorithms that learn nothing are one policy, and so have one evaluation."""
    none = {"learning_rate": 0.0, "critic_learning_rate": 0.0, "rows_per_iteration": 8}
    none |= {"reward_shaping.episodes_per_iteration": 2, "ppo.episodes_per_iteration": 4}
    result = experiments.compare(
        ["dpo", "reward_shaping", "ppo"], world / "env.yaml", settings=none, episodes=4, data=[world / "pairs.jsonl"],
        seeds=1, out=tmp_path / "out", quiet=True,
    )  # fmt: skip
    said = [[row["response"] for row in run.rows] for run in result.runs]
    assert said == said[:1] * 4
    configs = [yaml.safe_load((run.directory / "config.yaml").read_text()) for run in result.runs]
    assert [config["evaluation_batch"] for config in configs] == [2] * 4
    last = result.runs[-1].directory
    again = experiments.train("ppo", config=last / "config.yaml", out=tmp_path / "alone", quiet=True)
    assert again.runs[0].rows == result.runs[-1].rows
    both = experiments.evaluate(
        [last, world / "policy"], yaml.safe_load((world / "env.yaml").read_text()), out=tmp_path / "both", quiet=True
    )
    assert [[row["response"] for row in run.rows] for run in both.runs] == said[:1] * 2


def test_a_comparison_of_betas_without_any_sampling(world: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"env": str(world / "env.yaml"), "data": [world / "pairs.jsonl"], "seeds": 1}
    vary = {"dpo.kl_coefficient": [0.1, 1.0]}
    found = experiments.compare("dpo", **arguments, vary=vary, out=tmp_path / "betas", quiet=True)
    assert [path.name for path in found.figures] == ["pareto.png"]
    assert "30 labelled pairs a run" in (tmp_path / "betas" / "report.html").read_text()


def test_refusals(world: Path, tmp_path: Path) -> None:
    env = ("--env", world / "env.yaml", "--out", tmp_path / "never")
    assert "--data simulated:4096: this environment has prompts of its own" in refused("train", "dpo", *env)
    assert "expected simulated:N" in refused("train", "dpo", "--data", "simulated:none", *env)
    assert "no such file" in refused("train", "dpo", "--data", tmp_path / "no.jsonl", *env)
    assert "--data: ppo learns from what it samples" in refused("train", "ppo", "--data", world / "pairs.jsonl", *env)
    assert "--episodes: dpo samples nothing" in refused("train", "dpo", "--episodes", "8", *env)
    assert "--data: ppo learns" in refused("compare", "ppo", "--data", world / "pairs.jsonl", *env)
    assert "are not pairs" in refused("train", "dpo", "--data", world / "demonstrations.jsonl", *env)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "how", "chosen": "a", "rejected": "b"}\n{"prompt": "how"}\n')
    assert "bad.jsonl:2: no column 'chosen'" in refused("train", "dpo", "--data", tmp_path / "bad.jsonl", *env)
    other = refused("train", "dpo", "--env", "CartPole-v1", "--out", tmp_path / "never")
    assert "dpo learns from texts, but CartPole-v1 is not a text environment" in other
    assert not (tmp_path / "never").exists()
