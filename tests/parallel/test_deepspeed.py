"""Several processes against one: the same episodes, metrics and policy, and errors that name the process."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gymnasium.spaces import Box, Discrete

from tests.helpers.distributed_worker import EPISODES, OPTIONS, STREAMED, played, result, trainer_of
from tests.helpers.models_doubles import make_lm, make_tokenizer
from tests.helpers.rounding import TINY, assert_same_updates, tiny_gradient
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import read_rows
from textsafe_gym.models import lora
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.mlp import MLPActor

STAGES = ["zero0", "zero1", "zero2", "zero3"]
TIMES = {"tokens_per_second", "seconds_rollout", "seconds_update"}
# A minibatch's gradient is a sum over up to 7 responses of up to 9 tokens.
GRADIENT = tiny_gradient(7 * 9)
ROW = math.sqrt(9) * TINY  # a metric is a mean of sums over up to 9 tokens
WORKER = Path(__file__).parents[1] / "helpers" / "distributed_worker.py"


def launch(folder: Path, job: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    path = str(WORKER.parents[2])  # this checkout, wherever one is installed
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*torchrun, str(WORKER), str(folder), job],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a model, a checkpoint after two iterations, and what one process comes to.

    Two iterations are each thing that is done once or again; what goes on from a checkpoint has four.
    """
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distributed")
    make_lm().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    found = {}
    for name in OPTIONS:
        trainer = trainer_of(folder, name)
        start = result(trainer, [])["tensors"]
        rows = trainer.learn(2 * EPISODES)
        if name == "ppo_lagrangian":
            trainer.save(folder / "plain-2")
            rows += trainer.learn()
        found[name] = {**result(trainer, rows), "start": start}
    for name, trainer, episodes in [
        ("lora", trainer_of(folder, "ppo_lagrangian", policy={"lora_rank": 2}), 2 * EPISODES),
        ("dpo", trainer_of(folder, "dpo"), None),
    ]:
        start = result(trainer, [])["tensors"]
        found[name] = {**result(trainer, trainer.learn(episodes)), "start": start}
    return folder, found


@pytest.fixture(scope="module")
def parallel(plain: tuple[Path, dict[str, Any]]) -> Path:
    ran = launch(plain[0], "parity")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return plain[0]


def check(folder: Path, name: str, expected: dict[str, Any], first: int = 0, gradient: float = GRADIENT) -> None:
    tensors = torch.load(folder / f"{name}.pt", weights_only=True)
    rows = json.loads((folder / f"{name}.json").read_text())
    assert_same_updates(tensors, expected["tensors"], expected["start"], gradient)
    assert len(rows) == len(expected["rows"]) - first
    for row, wanted in zip(rows, expected["rows"][first:], strict=True):
        for key in wanted.keys() - TIMES:
            assert row[key] == pytest.approx(wanted[key], rel=ROW, abs=ROW), key


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one(parallel: Path, plain: tuple[Path, dict[str, Any]], stage: str) -> None:
    check(parallel, f"{stage}-ppo_lagrangian", plain[1]["ppo_lagrangian"])
    start = torch.load(parallel / f"{stage}-ppo_lagrangian.pt", weights_only=True)
    assert max((start[f"actor.model.{key}"] - x).abs().max() for key, x in make_lm().named_parameters()) > 1e-3


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("algorithm", sorted(OPTIONS.keys() - {"ppo_lagrangian"}))
def test_other_algorithms(parallel: Path, plain: tuple[Path, dict[str, Any]], stage: str, algorithm: str) -> None:
    check(parallel, f"{stage}-{algorithm}", plain[1][algorithm])


def test_labelled_pairs(parallel: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    check(parallel, "zero2-dpo", plain[1]["dpo"], gradient=tiny_gradient(2 * 7 * 9))  # a pair is two responses
    assert [row["pairs"] for row in plain[1]["dpo"]["rows"]] == [11, 22, 22, 22]


def test_adapters(parallel: Path, plain: tuple[Path, dict[str, Any]]) -> None:
    check(parallel, "zero3-lora", plain[1]["lora"])


@pytest.mark.long
def test_layers_gathered_for_each_pass(plain: tuple[Path, dict[str, Any]]) -> None:
    folder = plain[0]
    trainer = trainer_of(folder, "ppo_lagrangian", **STREAMED)
    start = result(trainer, [])["tensors"]
    expected = {**result(trainer, trainer.learn(16)), "start": start}
    ran = launch(folder, "stream")
    assert "'NoneType' object is not callable" in ran.stderr, ran.stderr[-3000:]  # with which process 1 ends at last
    assert "rank      : 1" in ran.stderr
    check(folder, "stream", expected)
    check(folder, "stream-resumed", expected, first=1)
    alone = trainer_of(folder, "ppo_lagrangian", resume=folder / "stream-1", **STREAMED)
    found = result(alone, alone.learn(16))["tensors"]
    assert_same_updates(found, expected["tensors"], start, GRADIENT)

    counts = json.loads((folder / "stream-counts.json").read_text())
    for row, wanted in zip(counts["evaluated"], played(trainer), strict=True):
        assert row == pytest.approx(wanted, abs=ROW)
    assert counts["unequal"] > 0
    assert 0 < counts["most"] < counts["numbers"] / 4
    assert counts["left"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_one_process_goes_on_in_two(
    parallel: Path, plain: tuple[Path, dict[str, Any]], stage: str
) -> None:
    check(parallel, f"{stage}-resumed", plain[1]["ppo_lagrangian"], first=2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_two_processes_goes_on_in_one(
    parallel: Path, plain: tuple[Path, dict[str, Any]], stage: str
) -> None:
    trainer = trainer_of(parallel, "ppo_lagrangian", resume=parallel / f"{stage}-2")
    found = result(trainer, trainer.learn())
    expected = plain[1]["ppo_lagrangian"]
    assert_same_updates(found["tensors"], expected["tensors"], expected["start"], GRADIENT)


def test_processes_leave_their_group_before_the_interpreter_ends(parallel: Path) -> None:
    """A thread of gloo that outlives the interpreter may abort a process whose work is done."""
    assert [(parallel / f"parity-left-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("dead", "process 1 did not come to"),
        ("stalled", "process 1 did not come to the start of iteration 3 within 6 s"),
    ],
)
def test_a_lost_process_is_named_and_the_checkpoint_is_whole(
    plain: tuple[Path, dict[str, Any]], job: str, words: str
) -> None:
    folder = plain[0]
    ran = launch(folder, job)  # which gives up after four minutes; torch's own patience is half an hour
    assert ran.returncode != 0
    if (folder / f"{job}-0.txt").exists():  # torchrun may end the survivor before it has said its last word
        assert words in (folder / f"{job}-0.txt").read_text()
    else:
        assert job == "dead"
        assert "rank      : 1" in ran.stderr
    trainer = trainer_of(folder, "ppo_lagrangian", resume=folder / f"{job}-latest")
    assert trainer.iteration == 2
    assert trainer.learn(48)[0]["iteration"] == 3


def test_trust_regions_are_refused_and_shipped_configurations_are_found(tmp_path: Path) -> None:
    run = CliRunner().invoke
    refused = run(main, ["train", "cpo", "--deepspeed", "zero2", "--out", str(tmp_path / "run")])
    assert refused.exit_code == 2
    assert "cpo sets the policy's weights itself" in refused.stderr
    assert not (tmp_path / "run").exists()
    unknown = run(main, ["train", "ppo", "--deepspeed", "zero4"])
    assert unknown.exit_code == 2
    assert "no such file or shipped configuration" in unknown.stderr
    several = run(main, ["train", "ppo"], env={"WORLD_SIZE": "2"})
    assert several.exit_code == 2
    assert "without --deepspeed" in several.stderr


@pytest.mark.long
def test_deepspeeds_own_launcher_is_understood(tmp_path: Path) -> None:
    """It puts an option before the command, which torchrun does not."""
    small = ["--set", "episodes_per_iteration=16", "--episodes", "16", "--json", "--out", str(tmp_path / "run")]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--module"]
    command = [*launcher, "textsafe_gym.cli.main", "train", "ppo", "--deepspeed", "zero2", *small]
    settings = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(WORKER.parents[2])}
    ran = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["episodes"] == 16


@pytest.mark.long
def test_the_command_does_under_torchrun_what_it_does_alone(tmp_path: Path) -> None:
    small = ["--set", "episodes_per_iteration=16", "--set", "minibatch_size=5", "--episodes", "64", "--seed", "2"]
    train = ["train", "ppo_lagrangian", *small, "--set", "learning_rate=1e-4"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    together = [*torchrun, "textsafe_gym.cli.main", *train, "--deepspeed", "zero2", "--out", str(tmp_path / "two")]
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(together, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert CliRunner().invoke(main, [*train, "--out", str(tmp_path / "one")]).exit_code == 0
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("two", "one")]
    for ours, theirs in zip(*rows, strict=True):
        for key in theirs.keys() - TIMES:
            assert ours[key] == pytest.approx(theirs[key], rel=ROW, abs=ROW), key
    evaluated = [len((tmp_path / name / "evaluation.jsonl").read_text().splitlines()) for name in ("two", "one")]
    assert evaluated[0] == evaluated[1]
    assert ran.stdout.count("Comparison") == 1


def test_what_would_need_a_whole_model_is_refused(plain: tuple[Path, dict[str, Any]]) -> None:
    from textsafe_gym.parallel.deepspeed import DeepSpeedProcesses

    streaming: Any = SimpleNamespace(streams_layers=True)
    for actor in (CausalLMActor.load(plain[0] / "model"), MLPActor(Box(0, 1, (2,)), Discrete(2))):
        with pytest.raises(ConfigError, match=r"set policy\.lora_rank$"):
            DeepSpeedProcesses.check(streaming, actor)
    actor = CausalLMActor.load(plain[0] / "model", lora_rank=2)
    DeepSpeedProcesses.check(streaming, actor)
    lora.add_new(actor.model, "scores", 2, 4)
    with pytest.raises(ConfigError, match="not LoRAs of the policy's base model"):
        DeepSpeedProcesses.check(streaming, actor)


def test_config_files(tmp_path: Path) -> None:
    from textsafe_gym.parallel.deepspeed_config import read_config

    shipped = list((Path(__file__).parents[2] / "configs" / "deepspeed").glob("*.json"))
    assert {read_config(path)["zero_optimization"]["stage"] for path in shipped} == {1, 2, 3}

    path = tmp_path / "zero.json"
    for text, words in [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"gradient_clipping": 1.0}', "'gradient_clipping' is set by textsafe"),
        ('{"zero_optimization": {"stage": 4}}', "0, 1, 2 or 3, not 4"),
        ('{"textsafe": {"gather": false}}', "textsafe has to be an object with gather_for_generation"),
        ('{"textsafe": {"gather_for_generation": 1}}', "gather_for_generation, true or false; not"),
        ('{"textsafe": []}', "textsafe has to be an object"),
        (
            '{"textsafe": {"gather_for_generation": false}, "zero_optimization": {"stage": 2}}',
            "needs ZeRO stage 3, not 2",
        ),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            read_config(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.json")
