"""Uploading to a hub and loading from it by id, over HTTP, each step in a process and with a cache of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from click.testing import CliRunner

from tests.helpers import cli_world, hub_server
from textsafe_gym.cli.main import main
from textsafe_gym.files import read_rows, write_rows
from textsafe_gym.models.mlp import MLPActor

FAST = "--set episodes_per_iteration=8 --episodes 16 --seed 3"


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    answers = ["first make water then stop", "sorry no"]
    rows = [
        {"prompt": row["prompt"], "response": answer, "label": label}
        for row in cli_world.PROMPTS
        for label, answer in enumerate(answers)
    ]
    write_rows(world / "labels.jsonl", rows)
    return world


def in_process(hub: hub_server.Hub, home: Path, *commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Commands one after another, up to the first that fails; at a fresh `home` nothing is cached."""
    program = (
        "import shlex, sys\nfrom textsafe_gym.cli.main import main\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n        main(shlex.split(line))\n"
        "    except SystemExit as end:\n        if end.code:\n            raise\n"
    )
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *commands],
        capture_output=True, text=True, check=False, env={**os.environ, **own, **environment},
    )  # fmt: skip


def refused(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert words in result.stderr


@pytest.mark.long
def test_what_was_pushed_is_trained_on_and_evaluated_by_its_id(hub: hub_server.Hub, world: Path, tmp_path: Path):
    first = in_process(
        hub,
        tmp_path / "first",
        f"push {world}/policy lab/base",
        f"fit reward --data {world}/labels.jsonl --model lab/base --lora-rank 2 --epochs 1 --test-fraction 0 "
        f"--out {world}/adapter",
        f"push {world}/adapter lab/helps",
        f"push {world}/cost lab/harm --private",
        f"train ppo_lagrangian --env {world}/env.yaml {FAST} --set env.reward_model={world}/adapter "
        f"--set policy.model=lab/base --set policy.lora_rank=2 --out {world}/run",
        f"push {world}/run lab/careful",
    )
    assert first.returncode == 0, first.stderr
    assert hub.private == {"lab/harm"}
    own = [hub.repos[f"lab/{name}"] for name in ("base", "helps", "harm", "careful")]  # others are of other tests
    weights = {name for files in own for name in files if name.endswith("safetensors")}
    assert weights == {"model.safetensors", "adapter_model.safetensors"}
    assert json.loads(hub.repos["lab/careful"]["adapter_config.json"])["base_model_name_or_path"] == "lab/base"
    card = hub.repos["lab/careful"]["README.md"].decode()
    assert "base_model: lab/base" in card
    assert 'CausalLMActor.load("lab/careful")' in card
    for files in hub.repos.values():
        assert not any(str(world).encode() in content for content in files.values())

    models = "--set env.reward_model=lab/helps --set env.cost_model=lab/harm"
    evaluate = f"evaluate lab/careful --env {world}/env.yaml {models} --seed 3 --out {tmp_path}"
    second = in_process(hub, tmp_path / "second", f"{evaluate}/online")
    assert second.returncode == 0, second.stderr
    found, wanted = (
        read_rows(path) for path in (tmp_path / "online/careful-0/evaluation.jsonl", world / "run/evaluation.jsonl")
    )
    for key in ("prompt", "response", "reward", "cost"):
        assert [row[key] for row in found] == [row[key] for row in wanted]

    again = in_process(hub, tmp_path / "second", f"{evaluate}/offline", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    refused(in_process(hub, tmp_path / "third", f"{evaluate}/no", HF_HUB_OFFLINE="1"), 2, "HF_HUB_OFFLINE is set")


def test_an_mlp_policy_by_its_id(hub: hub_server.Hub, tmp_path: Path):
    actor = MLPActor(gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Discrete(2), [4])
    actor.save(tmp_path / "mlp")
    program = (
        "from textsafe_gym.models import load_policy; import sys; "
        "print(load_policy('lab/small').state_dict()['network.0.weight'].tolist())"
    )
    assert in_process(hub, tmp_path / "a", f"push {tmp_path}/mlp lab/small").returncode == 0
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "b")}
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(loaded.stdout) == actor.state_dict()["network.0.weight"].tolist()


def test_who_cannot_push_is_told_why(hub: hub_server.Hub, world: Path, tmp_path: Path):
    push = f"push {world}/cost lab/refused"
    environment = {
        name: text for name, text in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    }
    assert "HF_TOKEN" not in environment
    refused(in_process(hub, tmp_path, push, HF_TOKEN=""), 2, "hf auth login")
    refused(in_process(hub, tmp_path, push, HF_HUB_OFFLINE="1"), 2, "HF_HUB_OFFLINE")
    refused(in_process(hub, tmp_path, push, HF_TOKEN="hf_anothers"), 1, "refused lab/refused (401)")
    refused(in_process(hub, tmp_path, push, HF_ENDPOINT="http://127.0.0.1:9"), 1, "does not take the upload")
    assert "lab/refused" not in hub.repos


def test_what_is_to_be_private_does_not_become_public(hub: hub_server.Hub, world: Path, tmp_path: Path):
    push = f"push {world}/cost lab/open"
    assert in_process(hub, tmp_path, push).returncode == 0
    before = dict(hub.repos["lab/open"])
    (world / "cost/README.md").write_text("changed")
    refused(in_process(hub, tmp_path, f"{push} --private"), 2, "lab/open is there already and public")
    assert hub.repos["lab/open"] == before
    again = in_process(
        hub, tmp_path, f"push {world}/cost lab/closed --private", f"push {world}/cost lab/closed --private"
    )
    assert again.returncode == 0, again.stderr
    assert "lab/closed" in hub.private


def test_only_what_a_model_needs_is_uploaded(world: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "optimizer.pt",
        "error.log",
        "a.py",
    ):
        (folder / name).write_text("{}")
    result = CliRunner().invoke(main, ["push", str(folder), "lab/x", "--dry-run", "--json"])
    assert json.loads(result.stdout)["files"] == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("file", "repo", "words"),
    [
        ({"adapter_config.json": {"base_model_name_or_path": "/models/sft"}}, "lab/x", "has to be pushed first"),
        ({"adapter_config.json": {"base_model_name_or_path": "../sft"}}, "lab/x", "has to be pushed first"),
        ({"adapter_config.json": {"base_model_name_or_path": None}}, "lab/x", "has to be pushed first"),
        ({"config.json": []}, "lab/x", "config.json: expected a JSON object"),
        ({"config.json": {}, "mlp_policy.json": 3}, "lab/x", "mlp_policy.json: expected a JSON object"),
        ({"config.json": {}}, "x", "names no owner"),
        ({"config.json": {"_name_or_path": "/home/me/model"}}, "lab/x", "local path '/home/me/model'"),
        ({"config.json": {}}, "lab/x/y", "is not a hub id"),
        ({"notes.json": {}}, "lab/x", "no policy or score model"),
        ({"config.yaml": {}}, "lab/x", "not finished"),
    ],
)
def test_what_should_not_be_pushed_is_refused(file: dict[str, object], repo: str, words: str, tmp_path: Path):
    for name, content in file.items():
        (tmp_path / name).write_text(json.dumps(content))
    result = CliRunner().invoke(main, ["push", str(tmp_path), repo])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
