"""Wrong requests: each ends with exit code 2 and one line that names what and where, and leaves nothing behind."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from tests.helpers import cli_world
from textsafe_gym.cli.main import main
from textsafe_gym.files import read_rows


class NoCost(gym.Env):
    """Reports no info["cost"]."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    """A sound world, a finished run and, under names that say so, damaged copies."""
    if "NoCost-v0" not in gym.registry:
        gym.register("NoCost-v0", entry_point=NoCost)
    run = world / "run"
    arguments = ["train", "ppo", "--env", world / "env.yaml", "--episodes", 8, "--set", "episodes_per_iteration=8"]
    result = CliRunner().invoke(main, [str(argument) for argument in [*arguments, "--out", run]])
    assert result.exit_code == 0, result.stderr
    cli_world.build(world / "small", cli_world.WORDS[:-4])  # fewer words than the policy knows
    _damage_models(world)
    for name in ("metrics.jsonl", "evaluation.jsonl", "summary.json"):
        copy = world / f"run_torn_{name.partition('.')[0]}"
        shutil.copytree(run, copy)
        (copy / name).write_text((copy / name).read_text()[:-20])
    shutil.copytree(run, world / "run_torn_checkpoint")
    tensors = world / "run_torn_checkpoint/checkpoints/latest/policy/model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:200])
    shutil.copytree(run, world / "run_no_label")
    (world / "run_no_label/config.yaml").write_text("algorithm: ppo\n")
    texts = {
        "torn.yaml": "id: SafeRLHF-v0\nkwargs: {prompts: [a, b\n",
        "list.yaml": "- 1\n",
        "odd.yaml": "id: SafeRLHF-v0\nkwarg: {}\n",
        "low.yaml": "id: SafeRLHF-v0\nkwargs:\n  max_prompt_length: 64\n  cost_limit: low\n",
        "ppo.yaml": "learning_rate: 0.1\nclip_range_ration: 0.2\n",
        "empty.txt": "",
        "blank.jsonl": '{"prompt": "make tea"}\n{"prompt": "  "}\n',
        "torn.jsonl": '{"prompt": "make tea"}\n{"prompt": "make',
        "column.csv": "question,answer\nmake tea,yes\n",
        "long.txt": "how do i bake bread and make tea then stop no yes please\n",
        "kinds.txt": "a",
    }
    for name, text in texts.items():
        (world / name).write_text(text)
    (world / "latin.yaml").write_bytes(b"id: caf\xe9\n")
    return world


def _damage_models(root: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("torn", "nan", "no_tokenizer", "no_config"):
        shutil.copytree(root / "cost", root / f"cost_{name}")
    torn = root / "cost_torn/model.safetensors"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    nan = load_file(root / "cost_nan/model.safetensors")
    save_file({key: x * float("nan") for key, x in nan.items()}, root / "cost_nan/model.safetensors", {"format": "pt"})
    (root / "cost_no_tokenizer/tokenizer.json").unlink()
    (root / "cost_no_tokenizer/tokenizer_config.json").unlink()
    (root / "cost_no_config/config.json").unlink()
    shutil.copytree(root / "policy", root / "policy_torn")
    torn = root / "policy_torn/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    shutil.copytree(root / "policy", root / "policy_wrong_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "small/policy" / name, root / "policy_wrong_tokenizer" / name)


def train(*more: str, algorithm: str = "ppo", env: str = "{w}/env.yaml", out: str = "out") -> list[str]:
    return [
        "train",
        algorithm,
        "--env",
        env,
        "--set",
        "episodes_per_iteration=8",
        "--episodes",
        "8",
        "--out",
        out,
        *more,
    ]


def setting(*assignments: str, algorithm: str = "ppo") -> list[str]:
    return train(*(part for text in assignments for part in ("--set", text)), algorithm=algorithm)


# Name: arguments ({w} is the world), and what the message must contain.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["trian", "ppo"], ["trian", "train"]),
    "unknown option": (["envs", "--jsn"], ["--jsn"]),
    "no algorithm": (["train"], ["ALGO"]),
    "unknown algorithm": (train(algorithm="ppo_lagrange"), ["ppo_lagrange", "ppo_lagrangian"]),
    "unknown algorithm in compare": (["compare", "ppo", "trpo9"], ["trpo9"]),
    "algorithm twice": (["compare", "ppo", "ppo"], ["ppo", "twice"]),
    "unknown settings of": (["algos", "pp"], ["pp", "ppo"]),
    "unknown key": (setting("lerning_rate=1"), ["lerning_rate", "learning_rate"]),
    "two faults at once": (setting("lerning_rate=1", "epochs=0"), ["lerning_rate", "epochs = 0"]),
    "unknown key of no algorithm": (
        ["compare", "ppo", "cpo", "--set", "zzz=1"],
        [
            "unknown key 'zzz' (--set zzz=1): none of ppo, cpo has it; the nearest are ",
            "; 'textsafe algos ppo' lists all",
        ],
    ),
    "unknown key in a file": (train("--config", "{w}/ppo.yaml"), ["clip_range_ration", "{w}/ppo.yaml:2"]),
    "wrong type": (setting("epochs=many"), ["epochs", "many"]),
    "value out of range": (setting("learning_rate=-1"), ["learning_rate", "-1"]),
    "not a number": (setting("learning_rate=.nan"), ["learning_rate", "nan"]),
    "infeasible combination": (
        setting("multiplier_init=9", algorithm="ppo_lagrangian"),
        ["multiplier_init = 9", "multiplier_max = 5"],
    ),
    "multiplier that could never move": (setting("multiplier_init=0", algorithm="ppo_lagrangian"), ["multiplier_init"]),
    "limit on an unknown cost": (setting("cost_limits={harm: 0.1}", algorithm="cpo"), ["cost_limits", "harm", "none"]),
    "two limits where one is kept": (setting("cost_limits={a: 0, b: 0}", algorithm="cpo"), ["cpo", "one constraint"]),
    "probability without a limit": (setting("constraint=probability", algorithm="cpo"), ["probability", "cost_limit"]),
    "group that does not fit": (setting("group_size=7", algorithm="rloo"), ["group_size = 7"]),
    "no equals sign": (setting("epochs"), ["epochs", "key=value"]),
    "key set twice": (setting("epochs=1", "epochs=2"), ["epochs", "twice"]),
    "broken value": (setting("epochs=[1"), ["epochs=[1"]),
    "negative budget": (["train", "ppo", "--episodes", "-5", "--out", "out"], ["episodes", "-5"]),
    "budget of the wrong type": (["train", "ppo", "--episodes", "many"], ["episodes", "many"]),
    "negative seed": (train("--seed", "-1"), ["seed", "-1"]),
    "a seed that no generator takes": (train("--seed", str(2**64)), ["seed", str(2**64)]),
    "a seed of responses that no generator takes": (["evaluate", "x", "--seed", str(10**30)], ["--seed", str(10**30)]),
    "a seed in words": (["chat", "x", "--seed", "seven"], ["--seed", "seven"]),
    "a learning rate without end": (train("--set", "learning_rate=.inf"), ["learning_rate", "inf", "finite"]),
    "no seeds": (["compare", "ppo", "--seeds", "0"], ["--seeds", "0"]),
    "no workers": (["compare", "ppo", "--workers", "0"], ["--workers", "0"]),
    "unknown environment": (train(env="SafeRLFH-v0"), ["SafeRLFH"]),
    "environment of no module": (train(env="nowhere:Env-v0"), ["nowhere"]),
    "environment without a cost": (train(env="NoCost-v0"), ["cost"]),
    "missing file": (train(env="{w}/missing.yaml"), ["{w}/missing.yaml"]),
    "truncated YAML": (train(env="{w}/torn.yaml"), ["{w}/torn.yaml:", "YAML"]),
    "YAML of a list": (train(env="{w}/list.yaml"), ["{w}/list.yaml:1"]),
    "YAML in another encoding": (train(env="{w}/latin.yaml"), ["{w}/latin.yaml", "UTF-8"]),
    "environment file with an unknown key": (train(env="{w}/odd.yaml"), ["kwarg", "{w}/odd.yaml:2", "kwargs"]),
    "environment file of another kind": (train(env="{w}/kinds.txt"), ["{w}/kinds.txt"]),
    "unknown keyword of the environment": (setting("env.cost_limt=1"), ["cost_limt", "cost_limit"]),
    "cost limit of the wrong type": (setting("env.cost_limit=low"), ["cost_limit", "low"]),
    "cost limit of the wrong type in a file": (
        ["train", "ppo", "--env", "{w}/low.yaml", "--out", "{w}/new"],
        ["cost_limit", "low", "{w}/low.yaml:4"],
    ),
    "vocabulary of the wrong type": (
        ["train", "ppo", "--env", "SafeRLHF-Exact-v0", "--set", "env.vocabulary=x", "--out", "{w}/new"],
        ["vocabulary: expected a whole number", "'x' (--set env.vocabulary=x)"],
    ),
    "infinite cost limit": (setting("env.cost_limit=.inf"), ["cost_limit", "inf"]),
    "empty response budget": (setting("env.max_response_length=0"), ["max_response_length", "0"]),
    "missing prompts": (setting("env.prompts={w}/missing.jsonl"), ["{w}/missing.jsonl"]),
    "empty prompts": (setting("env.prompts={w}/empty.txt"), ["{w}/empty.txt"]),
    "a blank prompt": (setting("env.prompts={w}/blank.jsonl"), ["{w}/blank.jsonl:2"]),
    "truncated JSON lines": (setting("env.prompts={w}/torn.jsonl"), ["{w}/torn.jsonl:2"]),
    "CSV without the column": (setting("env.prompts={w}/column.csv"), ["{w}/column.csv", "prompt", "question"]),
    "a prompt over its budget": (setting("env.prompts={w}/long.txt"), ["max_prompt_length"]),
    "missing demonstrations": (setting("env.demonstrations={w}/none.jsonl"), ["{w}/none.jsonl"]),
    "missing tokenizer": (setting("env.tokenizer={w}/none"), ["{w}/none"]),
    "another tokenizer than the policy's": (
        setting("env.tokenizer={w}/small/policy"),
        ["{w}/small/policy", "{w}/policy"],
    ),
    "policy with the wrong tokenizer": (setting("policy.model={w}/policy_wrong_tokenizer"), ["policy_wrong_tokenizer"]),
    "missing cost model": (setting("env.cost_model={w}/none"), ["{w}/none"]),
    "truncated cost model": (setting("env.cost_model={w}/cost_torn"), ["{w}/cost_torn"]),
    "cost model without config": (setting("env.cost_model={w}/cost_no_config"), ["{w}/cost_no_config"]),
    "cost model without tokenizer": (setting("env.cost_model={w}/cost_no_tokenizer"), ["{w}/cost_no_tokenizer"]),
    "cost model of NaN": (setting("env.cost_model={w}/cost_nan"), ["cost model", "finite"]),
    "reward model as cost model": (setting("env.cost_model={w}/reward"), ["{w}/reward", "cost", "reward"]),
    "policy as cost model": (setting("env.cost_model={w}/policy"), ["{w}/policy"]),
    "missing policy": (setting("policy.model={w}/none"), ["{w}/none"]),
    "truncated policy": (setting("policy.model={w}/policy_torn"), ["{w}/policy_torn"]),
    "unknown policy option": (setting("policy.temprature=1"), ["temprature", "temperature"]),
    "temperature of nought": (setting("policy.temperature=0"), ["temperature", "0"]),
    "separate critic of several costs": (
        setting("policy.critics=separate", "env.cost_model={a: {w}/cost, b: {w}/cost}", algorithm="ppo_lagrangian"),
        ["cost_critic"],
    ),
    "unknown device": (setting("policy.device=abacus"), ["abacus"]),
    "output exists": (train(out="{w}/run"), ["{w}/run", "--resume"]),
    "output below a file": (train(out="{w}/empty.txt/out"), ["{w}/empty.txt"]),
    "resume of nothing": (train("--resume"), ["out", "resume"]),
    "resume without a place": (["train", "ppo", "--resume"], ["--resume", "--out"]),
    "resume of another algorithm": (
        ["train", "ppo_lagrangian", "--resume", "--out", "{w}/run"],
        ["{w}/run/config.yaml", "ppo_lagrangian"],
    ),
    "resume with other settings": (
        ["train", "ppo", "--resume", "--out", "{w}/run", "--set", "epochs=3"],
        ["{w}/run/config.yaml", "config.epochs"],
    ),
    "another preset than the run's whose settings are given": (
        ["train", "ppo", "--config", "{w}/run/config.yaml", "--preset", "paper", "--out", "out"],
        ["--preset paper: {w}/run/config.yaml is of a run with the preset 'small'", "leave --preset out"],
    ),
    "a setting of another algorithm": (
        ["compare", "ppo", "ppo_lagrangian", "--set", "ppo.multiplier_init=3"],
        ["ppo: there is no setting 'multiplier_init' here (--set ppo.multiplier_init=3); 'textsafe algos ppo' lists"],
    ),
    "limit on a cost nearly named so": (
        setting(
            "cost_limits={haarm: 0}", "env.cost_model={harm: {w}/cost, rude: {w}/cost}", algorithm="ppo_lagrangian"
        ),
        ["'haarm' is not a cost of the environment; its named costs: harm, rude; did you mean 'harm'?"],
    ),
    "vary without values": (["compare", "ppo", "--vary", "ppo.epochs="], ["ppo.epochs", "ALGO.KEY=V1,V2"]),
    "vary without a key": (["compare", "ppo", "--vary", "ppo=1,2"], ["ppo=1,2", "ALGO.KEY=V1,V2"]),
    "vary of another algorithm": (["compare", "ppo", "--vary", "cpo.epochs=1,2"], ["cpo"]),
    "vary of an unknown key": (["compare", "ppo", "--vary", "ppo.epoch=1,2"], ["epoch", "epochs"]),
    "vary with a value twice": (["compare", "ppo", "--vary", "ppo.epochs=1,1"], ["twice"]),
    "vary with a wrong value": (
        ["compare", "ppo", "--vary", "ppo.epochs=1,x", "--env", "{w}/env.yaml"],
        ["epochs = 'x'"],
    ),
    "unequal budgets": (
        ["compare", "ppo", "reward_shaping", "--set", "ppo.episodes=8", "--set", "reward_shaping.episodes=16"],
        ["episodes", "ppo 8", "reward_shaping 16"],
    ),
    "evaluation of nothing": (["evaluate", "{w}/none", "--out", "out"], ["{w}/none"]),
    "evaluation of a file": (["evaluate", "{w}/empty.txt", "--out", "out"], ["{w}/empty.txt"]),
    "evaluation of half a run": (
        ["evaluate", "{w}/run_no_label", "--out", "out"],
        ["{w}/run_no_label/config.yaml", "label"],
    ),
    "evaluation of a damaged checkpoint": (
        ["evaluate", "{w}/run_torn_checkpoint", "--out", "out"],
        ["{w}/run_torn_checkpoint/checkpoints/latest"],
    ),
    "evaluation with an algorithm's key": (["evaluate", "{w}/run", "--set", "epochs=1"], ["epochs"]),
    "front of nothing": (["pareto", "{w}/none"], ["{w}/none"]),
    "front of no run": (["pareto", "{w}/policy"], ["{w}/policy"]),
    "front of a truncated evaluation": (
        ["pareto", "{w}/run_torn_evaluation", "--out", "out"],
        ["{w}/run_torn_evaluation/evaluation.jsonl:3"],
    ),
    "front of a truncated summary": (["pareto", "{w}/run_torn_summary"], ["{w}/run_torn_summary/summary.json"]),
    "front with an infinite limit": (["pareto", "{w}/run", "--cost-limit", "inf"], ["--cost-limit"]),
    "fit to a missing file": (["fit", "sft", "--data", "{w}/none.jsonl", "--out", "out"], ["{w}/none.jsonl"]),
    "fit to a truncated file": (["fit", "sft", "--data", "{w}/torn.jsonl", "--out", "out"], ["{w}/torn.jsonl"]),
    "fit on no device": (
        [
            "fit",
            "sft",
            "--data",
            "{w}/demonstrations.jsonl",
            "--device",
            "abacus",
            "--test-fraction",
            "0",
            "--out",
            "out",
        ],
        ["abacus"],
    ),
    "bench on no device": (["bench", "rollout", "--device", "abacus"], ["abacus"]),
    "evaluation where something lies": (
        ["evaluate", "{w}/run", "--out", "{w}/policy"],
        ["{w}/policy exists and is not empty; choose another"],
    ),
    "chat with nobody": (["chat", "{w}/none"], ["{w}/none"]),
    "chat with a cost model": (["chat", "{w}/cost", "--env", "{w}/env.yaml"], ["{w}/cost"]),
}


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def check(stderr: str, code: int, expected: list[str], world: Path) -> None:
    assert code == 2, stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    for part in expected:
        assert part.format(w=world) in lines[0]


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    before = tree(world)
    result = CliRunner().invoke(main, [argument.replace("{w}", str(world)) for argument in arguments])
    check(result.stderr, result.exit_code, expected, world)
    assert result.stdout == ""
    assert tree(tmp_path) == {}
    assert tree(world) == before


@pytest.mark.parametrize("name", ["unknown algorithm", "cost model of NaN", "front of no run"])
def test_refused_in_a_process_of_its_own(name: str, world: Path, tmp_path: Path):
    arguments, expected = CASES[name]
    command = [sys.executable, "-m", "textsafe_gym.cli.main", *(a.replace("{w}", str(world)) for a in arguments)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    check(result.stderr, result.returncode, expected, world)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config": {"seed": "x", "episodes_per_iteration": 8}}, "config.seed = 'x'"),
        ({"config": {"seed": -1, "episodes_per_iteration": 8}}, "config.seed = -1"),
        ({"config": {"seed": 0}}, "'config.episodes_per_iteration' is missing"),
        ({"config": {"seed": 0, "episodes_per_iteration": 8, "cost_limit": "low"}}, "config.cost_limit = 'low'"),
        ({"env": {"id": "SafeRLHF-v0", "kwargs": [1]}}, "env.kwargs = [1]"),
        ({"env": {"id": 3, "kwargs": {}}}, "env.id = 3"),
        ({"policy": None}, "policy = None"),
        ({"algorithm": ["ppo"]}, "algorithm = ['ppo']"),
    ],
)
def test_settings_of_a_run_that_are_none_are_named(world: Path, tmp_path: Path, change: dict, expected: str):
    shutil.copytree(world / "run", tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    check(result.stderr, result.exit_code, [f"{path} is not a run's: ", expected], world)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_stays_in_its_directory(world: Path, tmp_path: Path):
    """Whatever a run that came from elsewhere calls itself."""
    shutil.copytree(world / "run", tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "label": "../../evil"}))
    before = tree(tmp_path / "run")
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "a/b")])
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    (folder,) = (tmp_path / "a/b").iterdir()
    assert (folder / "summary.json").exists()
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("text", ["{}", '{"evaluation": 3}', '{"evaluation": {"reward": 1}}', '{"evaluation": {'])
def test_a_finished_run_with_a_damaged_summary_is_not_taken_for_one(world: Path, tmp_path: Path, text: str):
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").write_text(text)
    result = CliRunner().invoke(main, ["train", "ppo", "--out", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 2
    assert str(tmp_path / "run/summary.json") in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_chat_refuses_what_is_no_text(world: Path):
    command = [sys.executable, "-m", "textsafe_gym.cli.main", "chat", str(world / "run")]
    for mode in ("0", "1"):  # in the second Python hands bytes that are not text on as halves of characters
        result = subprocess.run(
            command, input=b"\xff\xfe\n", capture_output=True, env={**os.environ, "PYTHONUTF8": mode, "LC_ALL": "C"}
        )
        check(result.stderr.decode(), result.returncode, ["not text in UTF-8"], world)


def test_a_checkpoint_of_another_kind_is_none(world: Path, tmp_path: Path):
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()  # as if it were not finished
    for text in ("[]", "[1]", "3", '{"a": 1}'):
        (tmp_path / "run/checkpoints/latest/state.json").write_text(text)
        result = CliRunner().invoke(main, ["train", "ppo", "--resume", "--out", str(tmp_path / "run")])
        check(result.stderr, result.exit_code, [f"{tmp_path}/run/checkpoints/latest"], world)


def test_a_run_with_fewer_rows_than_iterations_is_not_continued(world: Path, tmp_path: Path):
    """Damage inside a run that has begun: its files stay for inspection."""
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/metrics.jsonl").write_text("")
    result = CliRunner().invoke(main, ["train", "ppo", "--out", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 2
    assert "0 rows" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "cost": "high"}, "'cost'"),
        (lambda row: {key: value for key, value in row.items() if key != "reward"}, "'reward'"),
        (lambda row: {**row, "gold_harm": "x"}, "'gold_harm' must be a finite number"),
        (lambda row: {**row, "kl": math.nan}, "'kl' must be a finite number"),
    ],
)
def test_odd_rows_are_named_by_line(world: Path, tmp_path: Path, change: Callable[[dict], dict], message: str):
    shutil.copytree(world / "run", tmp_path / "run")
    path = tmp_path / "run/evaluation.jsonl"
    rows = read_rows(path)
    rows[1] = change(rows[1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(main, ["pareto", str(tmp_path / "run")])
    check(result.stderr, result.exit_code, [f"{path}:2", message], world)
