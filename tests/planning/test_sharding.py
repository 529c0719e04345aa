"""Plans for many processes against what DeepSpeed makes in two; run as a script, this is each of the two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.helpers.distributed_worker import trainer_of, zero
from tests.helpers.models_doubles import make_lm, make_tokenizer
from textsafe_gym.cli.main import main
from textsafe_gym.planning.memory import Batch, peak, plan, policy_size
from textsafe_gym.planning.sharding import Zero, sharded, zero_of

HEADS = [None, None]  # critics, both on the policy
BATCH = Batch(rows=8, group_size=1, at_once=4, prompt=6, response=9)
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1-float32": (1, {}),
    "2-bfloat16": (2, {"dtype": "bfloat16"}),
    "3-float32": (3, {}),
    "3-lora": (3, {"lora_rank": 2}),
    "3-bfloat16": (3, {"dtype": "bfloat16"}),
}


def measure(folder: Path) -> None:
    """What lies in this process after an iteration, in bytes."""
    from textsafe_gym.parallel.deepspeed import start

    found = {}
    for name, (stage, options) in CASES.items():
        processes: Any = start(zero(stage, stage3_param_persistence_threshold=0))
        trainer = trainer_of(folder, "ppo_lagrangian", processes, policy=dict(options))
        trainer.learn(16)
        engine = trainer.algorithm.optimizer.engine
        agent = trainer.algorithm.agent
        held = [getattr(x, "ds_tensor", x) for part in (agent.actor, agent.critics) for x in part.parameters()]
        moments = [x for state in engine.adam.state.values() for x in state.values() if x.numel() > 1]
        found[name] = {
            "weights: policy and critics": sum(x.numel() * x.element_size() for x in held),
            "optimiser: two moments": sum(x.numel() * x.element_size() for x in moments),
            "optimiser: float32 copies": sum(4 * x.numel() for x in engine.adam.state),
        }
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    make_lm().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    path = str(Path(__file__).parents[2])
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ran = subprocess.run(
        [*torchrun, __file__, str(folder)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_shares_are_deepspeeds(measured: Path, name: str, rank: int) -> None:
    stage, options = CASES[name]
    dtype = options.get("dtype", "float32")
    size = policy_size(measured / "model", options.get("lora_rank"))
    parts = plan(size, [], BATCH, dtype=dtype, critics=HEADS)
    parts = sharded(parts, size, HEADS, dtype, "cpu", zero_of(zero(stage), 2))
    found = {part.name: part.bytes for part in parts}
    for key, number in json.loads((measured / f"{rank}.json").read_text())[name].items():
        assert number == pytest.approx(found[key], rel=0.01), key  # DeepSpeed pads


def test_seven_billion_on_eight_are_deepspeeds_estimate(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as estimate2

    config = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000, **config}))
    size = policy_size(tmp_path)
    numbers = size.trained + 2 * size.head

    def of(stage: int, **more: Any) -> int:
        spread = zero_of(zero(stage, **more), 8)
        parts = plan(size, [], BATCH, dtype="bfloat16", device="cuda", critics=HEADS)
        parts = sharded(parts, size, HEADS, "bfloat16", "cuda", spread)
        names = ("weights: policy and critics", "optimiser", "gradients")
        return sum(x.bytes for x in parts if x.name.startswith(names) and x.device == "cuda")

    host = {"device": "cpu"}
    # DeepSpeed's also counts gradients in 16 bits next to those in 32, each spread over the eight. Ours are shares of
    # whole numbers: of 18 bytes each at most one is too much.
    assert of(2) + 2 * numbers // 8 == pytest.approx(estimate2(numbers, 8, 1, False)[1], abs=18)
    assert of(2, offload_optimizer=host) == estimate2(numbers, 8, 1, True)[1]
    assert of(3) == pytest.approx(estimate3(numbers, 0, 8, 1, False)[1], abs=18)
    both = {"offload_optimizer": host, "offload_param": host}
    assert of(3, **both) == estimate3(numbers, 0, 8, 1, True, True)[1] == 0


def test_a_config_is_read() -> None:
    host = {"device": "cpu"}
    read = zero_of(zero(2, overlap_comm=True, offload_optimizer=host, offload_param=host), 4)
    assert read == Zero(4, 2, "cpu", None, 2 * 500_000_000, 1_000_000_000, True)
    read = zero_of(zero(3, overlap_comm=True, reduce_bucket_size=10, offload_param=host), 4)
    assert read == Zero(4, 3, None, "cpu", 10, 1_000_000_000, True)
    assert zero_of({}, 1) == Zero(1, 0, None, None, 0, 1_000_000_000, True)
    assert not zero_of({"textsafe": {"gather_for_generation": False}, **zero(3)}, 4).gather_for_generation


def test_seventy_billion_on_eight_without_whole_copies(tmp_path: Path) -> None:
    config = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    config |= {"model_type": "llama", "vocab_size": 32000, "intermediate_size": 28672}
    (tmp_path / "config.json").write_text(json.dumps(config))
    size, batch = policy_size(tmp_path, lora_rank=16), Batch(rows=16, group_size=1, at_once=2, prompt=512, response=512)
    parts = plan(size, [], batch, dtype="bfloat16", device="cuda", critics=HEADS, gradient_checkpointing=True)

    def most(config: str) -> float:
        file = Path(__file__).parents[2] / "configs" / "deepspeed" / f"{config}.json"
        spread = zero_of(json.loads(file.read_text()), 8)
        return peak(sharded(parts, size, HEADS, "bfloat16", "cuda", spread), "cuda")[1]

    assert most("zero3") > 128 * 2**30
    assert 16 * 2**30 < most("zero3_stream") < 40 * 2**30


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textsafe_gym.planning.memory.capacity", lambda device: 2**20)
    arguments = ["train", "ppo", "--memory", "--deepspeed", "zero2", "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 2
    assert "a bucket of gradients" in shown.stdout
    assert "1/1 of" in shown.stdout
    assert "the update phase needs" in shown.stderr
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(Path(sys.argv[1]))
