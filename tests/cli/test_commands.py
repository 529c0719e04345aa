"""The commands end to end, on a world of a few thousand weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

from tests.helpers import cli_world
from tests.helpers.clock import timeless
from tests.helpers.cmdps import Crossing, Rare
from tests.helpers.commands import done, printed, textsafe
from tests.helpers.rounding import TINY
from tests.helpers.speed import python, times_as_long
from textsafe_gym.cli.main import COMMANDS
from textsafe_gym.files import read_rows

FAST = ["--set", "episodes_per_iteration=8", "--set", "learning_rate=0.003", "--set", "ptx_coefficient=0.1"]


def start(*arguments: object) -> subprocess.Popen[str]:
    # A shell's background job, and what it starts, ignores Ctrl-C; here it is asked about.
    return subprocess.Popen(
        [sys.executable, "-m", "textsafe_gym.cli.main", *map(str, arguments)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_rows(path: Path, count: int) -> None:
    for _ in range(3000):  # five minutes, on a machine that others use too
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not grow")


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    out = world / "trained"
    done("train", "ppo_lagrangian", "--env", world / "env.yaml", *FAST, "--episodes", 200, "--seed", 3, "--out", out)
    return out


@pytest.fixture(scope="module")
def compared(world: Path) -> Path:
    out = world / "compared"
    done(
        "compare", "ppo", "reward_shaping", "--env", world / "env.yaml", *FAST, "--episodes", 40, "--seeds", 2,
        "--vary", "reward_shaping.cost_weight=0.5,2", "--out", out,
    )  # fmt: skip
    return out


@pytest.mark.timing
def test_help_is_fast_and_loads_no_library():
    """Of its third of a second nine tenths are the imports of click and Gymnasium."""
    probe = "import sys\nfrom textsafe_gym.cli.main import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    probe += "assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules), 'heavy import'"
    assert times_as_long(python(probe), python("import click, gymnasium")) < 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str):
    text = done(command, "--help").stdout
    if "Commands:" not in text and command != "completion":
        assert "--json" in text
    assert "Example" in text
    assert f"textsafe {command}" in text


def test_lists_are_for_humans_and_machines():
    assert "SafeRLHF-v0" in done("envs").stdout
    assert "ppo_lagrangian" in done("algos").stdout
    names = {entry["name"] for entry in json.loads(done("algos", "--json").stdout)}
    assert {"ppo", "reward_shaping", "ppo_lagrangian"} <= names
    keys = {entry["key"]: entry for entry in json.loads(done("algos", "ppo_lagrangian", "--json").stdout)}
    assert keys["multiplier_max"]["about"]
    assert {"embedded_world", "SafeRLHF-v0"} <= {entry["name"] for entry in json.loads(done("envs", "--json").stdout)}


def test_a_run_directory_holds_everything(trained: Path, world: Path):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["algorithm"] == "ppo_lagrangian"
    assert (config["config"]["seed"], config["config"]["episodes"]) == (3, 200)
    assert config["env"]["kwargs"]["cost_model"] == str(world / "cost")
    metrics = read_rows(trained / "metrics.jsonl")
    assert [row["iteration"] for row in metrics] == list(range(1, 26))
    assert metrics[-1]["episodes"] == 200
    assert {"reward", "cost", "multiplier", "kl", "tokens_per_second"} <= metrics[0].keys()
    evaluation = read_rows(trained / "evaluation.jsonl")
    assert [row["prompt"] for row in evaluation] == [row["prompt"] for row in cli_world.PROMPTS]
    assert [row["group"] for row in evaluation] == [row["group"] for row in cli_world.PROMPTS]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["evaluation"]["reward"] == pytest.approx(sum(row["reward"] for row in evaluation) / 3)
    assert (trained / "checkpoints/latest/policy/model.safetensors").exists()


def test_a_run_can_be_repeated_from_its_config(trained: Path, tmp_path: Path):
    done("train", "ppo_lagrangian", "--config", trained / "config.yaml", "--out", tmp_path / "again")
    assert (tmp_path / "again/evaluation.jsonl").read_bytes() == (trained / "evaluation.jsonl").read_bytes()
    assert (tmp_path / "again/config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()


def test_a_killed_run_resumes_to_the_same_result(world: Path, tmp_path: Path):
    arguments = ["train", "ppo_lagrangian", "--env", world / "env.yaml", *FAST, "--episodes", 320]
    cli_world.killed_at(13, *arguments, "--out", tmp_path / "killed")
    assert not (tmp_path / "killed/summary.json").exists()
    with (tmp_path / "killed/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 99, "rew')  # as if killed in the midst of a write
    done("train", "ppo_lagrangian", "--out", tmp_path / "killed", "--resume")
    done(*arguments, "--out", tmp_path / "whole")
    for name in ("config.yaml", "evaluation.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    killed, whole = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert timeless(killed) == timeless(whole)
    tensors = "checkpoints/latest/state.safetensors"
    assert (tmp_path / "killed" / tensors).read_bytes() == (tmp_path / "whole" / tensors).read_bytes()


@pytest.mark.long
def test_ctrl_c_says_how_to_go_on(world: Path, tmp_path: Path):
    out = tmp_path / "out"
    arguments = [
        "compare",
        "ppo",
        "--env",
        world / "env.yaml",
        *FAST,
        "--episodes",
        400_000,
        "--seeds",
        2,
        "--workers",
        2,
    ]
    process = start(*arguments, "--out", out)
    wait_for_rows(out / "ppo/seed_0/metrics.jsonl", 12)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    last = stderr.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert f"--out {out} --resume" in last
    assert "Traceback" not in stderr
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return  # no worker is left
        time.sleep(0.1)
    raise AssertionError("a worker goes on")


def test_compare_writes_table_figures_and_report(compared: Path):
    comparison = json.loads((compared / "comparison.json").read_text())
    labels = ["initial", "ppo", "reward_shaping[cost_weight=0.5]", "reward_shaping[cost_weight=2]"]
    assert list(comparison["settings"]) == labels
    for label in labels:
        entry = comparison["settings"][label]
        assert entry["seeds"] == [0, 1]
        assert set(entry["groups"]) == {"benign", "harmful"}
    # Of the untrained policy to itself: the rounding of generation's cache in each of a response's tokens.
    kl = {label: comparison["settings"][label]["metrics"]["kl"]["mean"] for label in ("initial", "ppo")}
    assert abs(kl["initial"]) <= cli_world.MAX_RESPONSE_LENGTH * TINY
    assert abs(kl["ppo"]) > 10 * abs(kl["initial"])
    for name in ("learning_curves.png", "pareto.png"):
        assert (compared / name).read_bytes().startswith(b"\x89PNG")
    report = (compared / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 2
    assert "reward_shaping[cost_weight=0.5]" in report
    assert 'src="http' not in report
    assert "href=" not in report


def test_compare_in_processes_gives_the_same_and_keeps_finished_runs(compared: Path, world: Path, tmp_path: Path):
    arguments = [
        "compare",
        "ppo",
        "reward_shaping",
        "--env",
        world / "env.yaml",
        *FAST,
        "--episodes",
        40,
        "--workers",
        2,
    ]
    arguments += ["--vary", "reward_shaping.cost_weight=0.5,2", "--out", tmp_path / "out", "--json"]
    shutil.copytree(compared / "ppo/seed_0", tmp_path / "out/ppo/seed_0")
    kept = tmp_path / "out/ppo/seed_0/summary.json"
    written = kept.stat().st_mtime_ns
    result = json.loads(done(*arguments, "--seeds", 2, "--resume").stdout)
    assert kept.stat().st_mtime_ns == written
    assert result["settings"]["ppo"]["seeds"] == [0, 1]
    for path in sorted(compared.rglob("evaluation.jsonl")):
        assert (tmp_path / "out" / path.relative_to(compared)).read_bytes() == path.read_bytes()


def test_a_failed_run_is_reported_with_its_log_and_the_others_are_done(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import algos.reward_shaping

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(algos.reward_shaping.Algorithm, "update", fail)
    arguments = [
        "compare",
        "ppo",
        "reward_shaping",
        "--env",
        world / "env.yaml",
        *FAST,
        "--episodes",
        16,
        "--seeds",
        1,
    ]
    result = textsafe(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    log = tmp_path / "out/reward_shaping/seed_0/error.log"
    last = result.stderr.splitlines()[-1]
    assert last.startswith("failed: 1 of 3 runs failed")
    assert "ZeroDivisionError: a bug" in last
    assert str(log) in last
    assert "Traceback" in log.read_text()
    assert (tmp_path / "out/ppo/seed_0/summary.json").exists()
    monkeypatch.undo()
    done(*arguments, "--out", tmp_path / "out", "--resume")
    assert not log.exists()


def test_evaluate_repeats_a_runs_own_evaluation(trained: Path, tmp_path: Path):
    done("evaluate", trained, "--out", tmp_path / "out")
    again = tmp_path / "out/ppo_lagrangian-3"
    assert read_rows(again / "evaluation.jsonl") == read_rows(trained / "evaluation.jsonl")


def test_several_responses_to_a_prompt(compared: Path, tmp_path: Path):
    run = compared / "ppo/seed_0"
    found = printed("evaluate", run, "--samples", 3, "--out", tmp_path / "out")
    again = read_rows(tmp_path / "out/ppo-0/evaluation.jsonl")
    first = [{name: x for name, x in row.items() if name != "sample"} for row in again if row["sample"] == 0]
    assert first == read_rows(run / "evaluation.jsonl")
    assert [row["sample"] for row in again] == sorted([0, 1, 2] * len(first))
    assert len({tuple(row["response"] for row in again if row["sample"] == i) for i in range(3)}) == 3
    reward = found["settings"]["ppo"]["metrics"]["reward"]
    assert reward["low"] < reward["mean"] < reward["high"]
    one, two = (printed("pareto", tmp_path / "out", "--samples", k, "--out", tmp_path / str(k)) for k in (1, 2))
    mean = [
        sum(row["reward"] for row in own) / len(own) for own in (first, [row for row in again if row["sample"] < 2])
    ]
    assert [front["points"][0]["reward"] for front in (one, two)] == pytest.approx(mean)
    done("evaluate", compared / "ppo/seed_1", "--samples", 2, "--out", tmp_path / "more")
    both = printed("pareto", tmp_path / "out", tmp_path / "more", "--samples", 2, "--out", tmp_path / "both")
    assert both["points"][0]["runs"] == 2  # repetitions, though the one has a response more
    refused = textsafe("pareto", tmp_path / "out", "--samples", 4, "--out", tmp_path / "4")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--samples 4" in refused.stderr
    assert "was evaluated with 3" in refused.stderr
    assert not (tmp_path / "4").exists()


def test_a_comparison_plays_as_many_responses_and_keeps_to_it(world: Path, tmp_path: Path):
    request = ("compare", "ppo", "--env", world / "env.yaml", *FAST, "--episodes", 8, "--seeds", 1, "--out", tmp_path)
    found = printed(*request, "--samples", 2)
    for name in ("initial", "ppo"):
        played = read_rows(tmp_path / name / "seed_0/evaluation.jsonl")
        assert sorted({row["sample"] for row in played}) == [0, 1]
        assert found["settings"][name]["metrics"]["cost"]["low"] is not None
    assert "--samples 2" in (tmp_path / "report.html").read_text()
    done(*request, "--samples", 2, "--resume")
    assert textsafe(*request, "--samples", 3, "--resume").exit_code == 2


def test_evaluate_takes_models_and_other_prompts(trained: Path, world: Path, tmp_path: Path):
    (tmp_path / "other.txt").write_text("make tea\nbake a lock\n")
    result = done(
        "evaluate", trained, trained / "checkpoints/latest/policy", "--env", world / "env.yaml", "--json",
        "--set", f"env.evaluation_prompts={tmp_path / 'other.txt'}", "--out", tmp_path / "out",
    )  # fmt: skip
    settings = json.loads(result.stdout)["settings"]
    assert list(settings) == ["ppo_lagrangian", "policy"]
    played = read_rows(tmp_path / "out/policy-0/evaluation.jsonl")
    assert [row["prompt"] for row in played] == ["make tea", "bake a lock"]
    assert "kl" not in settings["policy"]["metrics"]  # a bare model has no starting point to be compared with


def test_pareto_reads_any_runs(compared: Path, tmp_path: Path):
    result = json.loads(done("pareto", compared, "--cost-limit", -0.05, "--out", tmp_path, "--json").stdout)
    assert {"initial", "ppo", "reward_shaping"} == set(result["algorithms"])
    assert result["algorithms"]["reward_shaping"]["settings"] == 2
    assert all(point["feasible"] == (point["cost"] <= -0.05) for point in result["points"])
    assert json.loads((tmp_path / "pareto.json").read_text())["points"] == result["points"]
    assert (tmp_path / "pareto.png").exists()
    assert "hypervolume" in done("pareto", compared, "--out", tmp_path).stdout


def test_chat_answers_a_pipe(trained: Path):
    result = done("chat", trained, "--json", text="make tea\n\nhow do i bake bread\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["make tea", "how do i bake bread"]
    assert all(isinstance(answer["cost"], float) and answer["response"] is not None for answer in answers)
    text = done("chat", trained, text="make tea\n").stdout
    assert answers[0]["response"] in text
    assert f"reward {answers[0]['reward']:.2f}, cost {answers[0]['cost']:.2f}" in text


def test_an_mlp_on_another_environment(tmp_path: Path):
    gym.register("Crossing-v0", entry_point=Crossing)
    arguments = ["--env", "Crossing-v0", "--set", "episodes_per_iteration=8", "--episodes", 32]
    done("compare", "ppo_lagrangian", *arguments, "--seeds", 1, "--out", tmp_path / "out")
    assert (tmp_path / "out/ppo_lagrangian/seed_0/summary.json").exists()


def test_a_limit_on_a_cost_that_is_named_when_it_occurs(tmp_path: Path) -> None:
    gym.register("Rare-v0", entry_point=Rare)
    small = ["--env", "Rare-v0", "--set", "episodes_per_iteration=8", "--episodes", 16, "--set"]
    right = done("train", "cpo", *small, "cost_limits={harm: 0.5}", "--out", tmp_path / "right")
    assert "cost_limits" not in right.stderr
    wrong = done("train", "cpo", *small, "cost_limits={harn: 0.5}", "--out", tmp_path / "wrong").stderr
    assert "named costs so far: harm; did you mean 'harm'?\n" in wrong
    assert "none of the run's 16 episodes had a cost 'harn'" in wrong
    again = done("train", "cpo", *small, "cost_limits={harn: 0.5}", "--out", tmp_path / "again").stderr
    assert "named costs so far: harm" in again  # a command says what another in this process has said before


def test_an_adapter_on_a_large_model_keeps_its_threads(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from textsafe_gym.experiments import build
    from textsafe_gym.experiments.spec import build_spec

    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    spec = build_spec("ppo", env=str(world / "env.yaml"), config=None, assignments=["policy.lora_rank=1"],
                      episodes=None, seed=None)  # fmt: skip
    env = build.make_env(spec, 1)
    actor = build.make_actor(spec, env)
    assert threads == [1]
    monkeypatch.setattr(build, "_SMALL", sum(x.numel() for x in actor.state_dict().values()) + 1)
    build.make_actor(spec, env)
    assert threads == [1]
