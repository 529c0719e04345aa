"""The paper's own set-up, on rows and checkpoints of the published form but of toy size."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from tests.helpers.commands import done
from tests.helpers.example_loader import load
from tests.helpers.models_doubles import make_config
from tests.helpers.official_score import build, make_official_tokenizer
from textsafe_gym.experiments.spec import build_spec
from textsafe_gym.files import read_rows, write_rows
from textsafe_gym.models.files import load_tokenizer
from textsafe_gym.models.formats.beaver import CHAT_TEMPLATE

ROOT = Path(__file__).parents[2]
ROUNDS = {  # limit, first multiplier and its rate: the paper's
    "round1": (0.0, 1.0, 0.01),
    "round2": (-3.0, 0.5, 0.04),
    "round3": (-3.0, 1.0, 0.04),
}
SCRIPT = {
    "episodes_per_iteration": 128, "minibatch_size": 128, "epochs": 1, "learning_rate": 1e-5, "warmup_ratio": 0.03,
    "critic_learning_rate": 5e-6, "learning_rate_schedule": "cosine", "weight_decay": 0.01, "max_grad_norm": 1.0,
    "ptx_coefficient": 16.0, "kl_coefficient": 0.01, "gamma": 1.0, "gae_lambda": 0.95, "value_coefficient": 1.0,
    "clip_range_ratio": 0.2, "clip_range_value": 5.0, "clip_range_score": 50.0, "multiplier_max": 5.0,
    "multiplier_update": "log", "cost_window": 128, "limit_includes_kl": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub would give: preferences, Alpaca's rows, a policy with pickled weights, two score models."""
    root = tmp_path_factory.mktemp("hub")
    rows = []
    for i in range(24):
        safe = [i % 3 > 0, i % 2 > 0]
        row = {"prompt": f"w{i} w1 w2", "response_0": f"w3 w{i}", "response_1": f"w4 w5 w{i}"}
        row |= {"is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
        rows.append(row | {"better_response_id": i % 2, "safer_response_id": int(safe[1] and not safe[0])})
    write_rows(root / "preferences.jsonl", rows)
    alpaca = [{"instruction": "w1 w2", "input": "w3" if i % 2 else "", "output": f"w{i}", "text": ""} for i in range(8)]
    (root / "alpaca.json").write_text(json.dumps(alpaca))
    tokenizer = make_official_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(make_config(vocab_size=len(tokenizer)))
    (root / "policy").mkdir()
    model.config.save_pretrained(root / "policy")
    tokenizer.save_pretrained(root / "policy")
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        shards.setdefault(f"pytorch_model-0000{1 + i % 2}-of-00002.bin", {})[name] = tensor
    for name, tensors in shards.items():
        torch.save(tensors, root / "policy" / name)
    index = {"metadata": {}, "weight_map": {key: name for name, shard in shards.items() for key in shard}}
    (root / "policy" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for kind in ("reward", "cost"):
        build(root / kind, kind, do_normalize=kind == "cost")
    return root


@pytest.fixture(scope="module")
def prepared(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    module = load("pku_safe_rlhf/prepare")
    module.prepare_model(str(published / "policy"), root / "alpaca-7b")
    module.prepare_demonstrations(str(published / "alpaca.json"), root / "alpaca.jsonl")
    return root


def test_preparation(published: Path, prepared: Path) -> None:
    tokenizer = load_tokenizer(prepared / "alpaca-7b", "policy")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    model = LlamaForCausalLM.from_pretrained(prepared / "alpaca-7b", use_safetensors=True)
    for shard in (published / "policy").glob("*.bin"):
        for name, tensor in torch.load(shard, weights_only=True).items():
            assert torch.equal(model.state_dict()[name], tensor)
    rows = read_rows(prepared / "alpaca.jsonl")
    assert rows[:2] == [{"prompt": "w1 w2", "response": "w0"}, {"prompt": "w1 w2 w3", "response": "w1"}]
    load("pku_safe_rlhf/prepare").prepare_model(str(prepared / "alpaca-7b"), prepared / "again")  # of safetensors
    LlamaForCausalLM.from_pretrained(prepared / "again", use_safetensors=True)


@pytest.mark.parametrize("name", list(ROUNDS))
def test_a_round(name: str, published: Path, prepared: Path, tmp_path: Path) -> None:
    paths = {"env.prompts": published / "preferences.jsonl", "env.evaluation_prompts": published / "preferences.jsonl"}
    paths |= {"env.tokenizer": prepared / "alpaca-7b", "policy.model": prepared / "alpaca-7b"}
    paths |= {"env.reward_model": published / "reward", "env.cost_model": published / "cost"}
    paths |= {"env.demonstrations": prepared / "alpaca.jsonl"}
    sizes = {"env.max_prompt_length": 12, "env.max_response_length": 6, "env.device": "cpu", "policy.device": "cpu"}
    changes = [f"--set={key}={value}" for key, value in {**paths, **sizes}.items()]
    config = ROOT / "configs" / "paper" / f"{name}.yaml"
    out = tmp_path / "run"
    request = ["train", "ppo_lagrangian", "--env", "pku_safe_rlhf", "--config", config, *changes]
    done(*request, "--episodes", 256, "--out", out)

    saved = yaml.safe_load((out / "config.yaml").read_text())
    limit, first, rate = ROUNDS[name]
    wanted = {**SCRIPT, "cost_limit": limit, "multiplier_init": first, "multiplier_learning_rate": rate}
    assert {key: saved["config"][key] for key in wanted} == wanted
    assert saved["policy"]["critics"] == "separate"
    assert saved["policy"]["dtype"] == saved["env"]["kwargs"]["dtype"] == "bfloat16"
    rows = read_rows(out / "metrics.jsonl")
    assert len(rows) == 2
    assert {"ptx_loss", "cost_critic_loss", "multiplier", "kl"} <= set(rows[0])
    assert json.loads((out / "summary.json").read_text())["cost_limit"] == limit


def test_the_environment_is_the_papers() -> None:
    spec = build_spec("ppo_lagrangian", env="pku_safe_rlhf", config=None, assignments=[], episodes=None, seed=None)
    kwargs = spec.env["kwargs"]
    assert kwargs["max_prompt_length"] + kwargs["max_response_length"] == 512
    assert kwargs["prompts"] == "hub:PKU-Alignment/PKU-SafeRLHF:train"


def test_the_models_before_the_first_round(published: Path, prepared: Path, tmp_path: Path) -> None:
    common = ["--learning-rate", "2e-5", "--minibatch-size", "16", "--max-length", "512", "--device", "cpu"]
    sft, data = prepared / "alpaca-7b", published / "preferences.jsonl"
    done("fit", "sft", "--data", prepared / "alpaca.jsonl", "--model", sft, "--test-fraction", 0, *common,
             "--out", tmp_path / "sft")  # fmt: skip
    for kind in ("reward", "cost"):
        skip = ["--skip-inconsistent"] if kind == "cost" else []
        done("fit", kind, "--data", data, "--model", tmp_path / "sft", *common, *skip, "--out", tmp_path / kind)
        metrics = json.loads((tmp_path / kind / "metrics.json").read_text())
        assert metrics["settings"]["epochs"] == 2
        assert metrics["settings"]["regularization"] == 0.001
