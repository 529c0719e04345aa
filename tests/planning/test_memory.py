"""The memory plan against tensors that are really there, and what the command line makes of it."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from algos.core.loop import Setup
from algos.core.optim import Optimizer
from tests.helpers.models_doubles import agent_of, make_config, make_tokenizer
from textsafe_gym.cli.main import main
from textsafe_gym.embedded_world import ASSETS
from textsafe_gym.errors import ModelError
from textsafe_gym.experiments import memory as run_memory
from textsafe_gym.experiments.build import make_actor, make_env, make_trainer
from textsafe_gym.experiments.spec import build_spec, config_class
from textsafe_gym.models import sampling
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.parallel.deepspeed import DeepSpeedProcesses
from textsafe_gym.parallel.process_group import SingleProcess
from textsafe_gym.planning.memory import PHASES, Batch, capacity, peak, plan, policy_size, score_size
from textsafe_gym.types import Agent

KNOWN = {
    "135m": (134_515_008, {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}),
    "1.5b": (1_543_714_304, {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
             "tie_word_embeddings": True}),
    "7b": (6_738_415_616, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}),
    "70b": (68_976_648_192, {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000}),
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 400}
BATCH = Batch(rows=16, group_size=1, at_once=8, prompt=40, response=24)
PARTIAL: list[dict[str, Any]] = [{}, {"lora_rank": 4}, {"last_layers": 1}]


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp_path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = make_config("llama", **SMALL, tie_word_embeddings=request.param)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    config.num_labels = 1
    for kind in ("reward", "cost"):
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / kind)
    for path in tmp_path.iterdir():
        make_tokenizer(words=[f"w{i}" for i in range(397)]).save_pretrained(path)
    for kind in ("reward", "cost"):
        ScoreModel.on_lora(tmp_path / "policy", kind, 4).save(tmp_path / f"{kind}_adapter")
    return {path.name: path for path in tmp_path.iterdir()}


def nbytes(tensors: Any) -> int:
    return sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors}.values())


def load(folders: dict[str, Path], partial: dict[str, Any], **more: Any) -> Any:
    """An agent with both critics; of `partial`, "critics" is theirs and the rest the actor's."""
    own = {name: value for name, value in partial.items() if name != "critics"}
    actor = CausalLMActor.load(folders["policy"], **own, **more)
    sources = {f"{kind}_critic": folders[kind] for kind in ("reward", "cost")} if "critics" in partial else {}
    return agent_of(actor, critics=partial.get("critics", "heads"), **sources)


def planned(parts: list[Any]) -> dict[str, int]:
    return {part.name: part.bytes for part in parts}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_by_the_config_alone(name: str, tmp_path: Path) -> None:
    total, values = KNOWN[name]
    folder = write_config(tmp_path / name, values)
    size = policy_size(folder)
    assert size.base == size.trained == total
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    assert size.cached == 2 * values["num_key_value_heads"] * hidden // heads
    assert size.wide == 2 * values["intermediate_size"]
    # a low-rank product of rank r has r rows of the input's width and r columns of the output's
    widths = [hidden, size.cached // 2]
    pairs = [(widths[0], x) for x in (widths[0], widths[1], widths[1], widths[0])] + [(hidden, size.wide // 2)] * 3
    lora = policy_size(folder, lora_rank=8)
    assert lora.trained == lora.lora == 8 * values["num_hidden_layers"] * sum(map(sum, pairs))
    assert (lora.base, lora.wide) == (total, size.wide)
    classifier = score_size(folder, "reward model")
    output = 0 if values.get("tie_word_embeddings") else hidden * values["vocab_size"]
    assert classifier.base == total - output + hidden


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("partial", [*PARTIAL, {"critics": "separate"}])
def test_what_is_kept_is_exact(folders: dict[str, Path], partial: dict[str, Any], dtype: str) -> None:
    shared = "_adapter" if "lora_rank" in partial else ""
    sources = {kind: folders[kind + shared] for kind in ("reward", "cost")}
    separate = "critics" in partial
    agent = load(folders, partial, dtype=dtype)
    scores = [ScoreModel.load(path, kind, dtype=dtype) for kind, path in sources.items()]
    own = {name: value for name, value in partial.items() if name != "critics"}
    found = planned(
        plan(
            policy_size(folders["policy"], **own),
            [score_size(path, kind) for kind, path in sources.items()],
            BATCH,
            dtype=dtype,
            score_dtype=dtype,
            critics=[score_size(path, kind) if separate else None for kind, path in sources.items()],
        )
    )
    adapters = [name for name, _ in agent.actor.model.named_parameters() if ".scores_" in name]
    actor = [x for name, x in agent.actor.model.named_parameters() if name not in adapters]
    assert found["weights: policy"] == nbytes(actor)
    reference = agent.actor._initial[0].parameters() if agent.actor._initial else []
    assert found["weights: reference"] == nbytes([*actor, *reference]) - nbytes(actor)
    assert found["weights: critics"] == nbytes(agent.critics.parameters())
    if not shared:
        assert found["weights: reward"] == nbytes(scores[0].model.parameters())
    elif dtype == "float32":
        everything = [*actor, *agent.critics.parameters(), *(x for score in scores for x in score.model.parameters())]
        assert sum(x for name, x in found.items() if name.startswith("weights")) == nbytes(everything)

    optimizer = Optimizer(Setup(agent, config_class("ppo")(), None, 1))
    rollout_like = torch.randint(3, 300, (2, 12))
    mask = torch.ones(2, 6, dtype=torch.bool)
    now = agent.evaluate({"input_ids": rollout_like, "attention_mask": torch.ones_like(rollout_like)},
                         rollout_like[:, 6:], mask)  # fmt: skip
    grads: list[torch.Tensor] = []
    for x in (x for group in optimizer.engine.groups.values() for x in group):
        x.register_post_accumulate_grad_hook(lambda x: grads.append(x.grad))
    optimizer.engine.backward(now.log_probs.sum() + now.reward_values.sum() + now.cost_values.sum())
    grads += [copy.grad for copy in optimizer.engine.copies.values()]
    assert found["gradients"] == nbytes(grads)
    optimizer.engine.step(1.0)
    state = optimizer.engine.adam.state.values()
    assert found["optimiser: two moments"] == nbytes([x[name] for x in state for name in ("exp_avg", "exp_avg_sq")])
    assert found.get("optimiser: float32 copies", 0) == nbytes(optimizer.engine.copies.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_exact(folders: dict[str, Path], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []
    make = sampling.make_cache
    monkeypatch.setattr(sampling, "make_cache", lambda *a: caches.append(make(*a)) or caches[-1])
    actor = CausalLMActor.load(folders["policy"], dtype=dtype)
    ids = torch.randint(3, 300, (BATCH.rows, BATCH.prompt))
    never = 10_000  # no token, so that no row ends
    sampling.generate(actor.model, ids, torch.ones_like(ids), BATCH.response, never, range(BATCH.rows))
    buffers = [x for layer in caches[0].layers for x in (layer.key_buffer, layer.value_buffer)]
    parts = planned(plan(policy_size(folders["policy"]), [], BATCH, dtype=dtype))
    assert parts["key-value cache"] == nbytes(buffers)


def kept_by(agent: Agent, padded: bool) -> int:
    """Bytes of what a pass of one micro-batch saves for its backward pass, as torch reports."""
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (BATCH.at_once, BATCH.prompt + BATCH.response))
    attention = torch.ones_like(ids)
    attention[0, : 5 * padded] = 0
    mask = torch.ones(BATCH.at_once, BATCH.response, dtype=torch.bool)
    weights = {x.untyped_storage().data_ptr() for part in (agent.actor, agent.critics) for x in part.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def save(x: torch.Tensor) -> torch.Tensor:
        saved.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        now = agent.evaluate({"input_ids": ids, "attention_mask": attention}, ids[:, BATCH.prompt :], mask)
    assert now.log_probs.requires_grad
    return sum(x.untyped_storage().nbytes() for place, x in saved.items() if place not in weights)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("partial", [*PARTIAL, {"critics": "separate"}])
def test_activations_are_about_right(
    folders: dict[str, Path], partial: dict[str, Any], dtype: str, padded: bool
) -> None:
    agent = load(folders, partial, dtype=dtype)
    own = {name: value for name, value in partial.items() if name != "critics"}
    size = policy_size(folders["policy"], **own)
    sizes = [score_size(folders[kind], f"{kind}_critic") for kind in ("reward", "cost")] if "critics" in partial else []
    amount = planned(plan(size, [], BATCH, dtype=dtype, critics=sizes))["activations"]
    measured = kept_by(agent, padded)
    assert 0.75 < amount / measured < 1.33
    if not own:
        # The layers' inputs, and in the backward pass one layer's activations at a time.
        less = load(folders, partial, dtype=dtype, gradient_checkpointing=True)
        models = 1 + len(sizes)
        measured = kept_by(less, padded) + measured // (size.layers * models)
        found = planned(plan(size, [], BATCH, dtype=dtype, critics=sizes, gradient_checkpointing=True))
        assert 1 / 1.5 < found["activations"] / measured < 1.5  # three layers are few next to the heads' own states


def test_the_peak_is_of_the_phase_that_takes_most(folders: dict[str, Path]) -> None:
    size, score = policy_size(folders["policy"]), score_size(folders["reward"], "reward model")
    parts = plan(size, [score], BATCH, score_device="meta")
    phase, most = peak(parts, "cpu")
    assert most == max(sum(x.bytes for x in parts if x.device == "cpu" and name in x.phases) for name in PHASES)
    assert phase == "update"
    many = plan(size, [score], Batch(rows=4096, group_size=1, at_once=1, prompt=40, response=24))
    assert peak(many, "cpu")[0] == "rollout"
    assert peak(parts, "meta")[1] > score.base * 4
    shared = [score_size(folders[f"{kind}_adapter"], kind) for kind in ("reward", "cost")]
    lora = policy_size(folders["policy"], lora_rank=4)
    apart = planned(plan(lora, shared, BATCH, dtype="bfloat16"))  # another precision, so another copy
    together = planned(plan(lora, shared, BATCH))
    assert together["weights: reward"] == together["weights: cost"] == shared[0].lora * 4
    assert apart["weights: reward"] - together["weights: reward"] == lora.base * 4
    assert apart["weights: cost"] == together["weights: cost"]


@pytest.mark.parametrize(
    ("algorithm", "critics", "note"),
    [
        ("ppo_lagrangian", "heads", "2 on the policy"),
        ("ppo_lagrangian", "separate", "2 of their own"),
        ("ppo", "heads", "1 on the policy"),
        ("ppo", "separate", "1 of their own"),
        ("grpo", "heads", None),
        ("rloo_lagrangian", "separate", None),
        ("dpo", "heads", None),
    ],
)
def test_the_plan_has_what_the_algorithm_makes(algorithm: str, critics: str, note: str | None) -> None:
    settings = [f"policy.critics={critics}", "minibatch_size=8"]
    spec = build_spec(algorithm, env=None, config=None, assignments=settings, episodes=None, seed=None)
    found = {part["name"]: part for part in run_memory.memory_plan(spec, SingleProcess())["parts"]}
    env = make_env(spec, spec.config.get("group_size", 1))
    agent = make_trainer(spec, env, make_actor(spec, env), few=True).algorithm.agent
    assert found.get("weights: critics", {}).get("note") == note
    made = 0 if agent.critics is None else nbytes(agent.critics.parameters())
    assert found.get("weights: critics", {"bytes": 0})["bytes"] == made
    assert found["weights: reference"]["bytes"] == nbytes(x for x in agent.actor._initial[0].parameters())
    trained = nbytes(x for group in agent.parameter_groups().values() for x in group)
    assert found["gradients"]["bytes"] == trained
    assert found["optimiser: two moments"]["bytes"] == 2 * trained
    # A pair is two responses; a pass of the reference is part of scoring.
    assert found["activations"]["note"] == f"of {16 if algorithm == 'dpo' else 8} episodes"
    assert found["one layer at work"]["bytes"] > 0


def test_processes_together_have_the_critics_that_the_algorithm_makes() -> None:
    weights = {}
    for algorithm, name in (("ppo_lagrangian", "weights: policy and critics"), ("grpo", "weights: policy")):
        spec = build_spec(algorithm, env=None, config=None, assignments=[], episodes=None, seed=None)
        processes = Mock(DeepSpeedProcesses, world_size=2, config={"zero_optimization": {"stage": 3}})
        found = {part["name"]: part["bytes"] for part in run_memory.memory_plan(spec, processes)["parts"]}
        weights[algorithm] = found[name]
    size = policy_size(ASSETS / "policy")
    assert weights["ppo_lagrangian"] - weights["grpo"] == 4 * size.head  # half of two
    assert weights["grpo"] == 4 * size.base // 2


def test_capacity() -> None:
    assert capacity("cpu") > 2**28
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device cuda"):
            capacity("cuda")


def run(folder: Path, *more: str, out: Path) -> Any:
    options = ["--set", f"env.tokenizer={folder}", "--set", f"policy.model={folder}", "--out", str(out)]
    for kind in ("reward", "cost"):
        options += ["--set", f"env.{kind}_model={folder}"]
    return CliRunner().invoke(main, ["train", "ppo", "--memory", *options, *more])


def test_command_line_plans_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("135m", "70b"):
        write_config(tmp_path / name, KNOWN[name][1])
    monkeypatch.setattr("textsafe_gym.planning.memory.capacity", lambda device: 2**36)
    shown = run(tmp_path / "135m", out=tmp_path / "out")
    assert shown.exit_code == 2
    assert "134.5 M" in shown.stdout
    assert "Peak on cpu" in shown.stdout
    assert shown.stderr.startswith("error: cannot load")
    large = run(tmp_path / "70b", out=tmp_path / "out")
    assert large.exit_code == 2
    assert large.stderr.startswith("error: --memory: the update phase needs ")
    assert "on cpu, which has 64.00 GiB" in large.stderr
    missing = run(tmp_path / "none", out=tmp_path / "out")
    assert missing.stderr.startswith("error: policy")
    for result in (shown, large, missing):
        assert len(result.stderr.splitlines()) == 1
    for setting, words in {"env.max_prompt_length=no": "max_prompt_length", "env.dtype=int8": "dtype"}.items():
        wrong = run(tmp_path / "135m", "--set", setting, out=tmp_path / "out")
        assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1)
        assert words in wrong.stderr
    other = CliRunner().invoke(main, ["train", "ppo", "--memory", "--env", "CartPole-v1"])
    assert other.exit_code == 2
    assert "not for 'CartPole-v1'" in other.stderr
    assert not (tmp_path / "out").exists()


def test_command_line_goes_on_where_there_is_room(tmp_path: Path) -> None:
    arguments = ["train", "ppo", "--memory", "--json", "--episodes", "32", "--set", "episodes_per_iteration=16"]
    shown = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert result["episodes"] == 32
    found = result["memory"]
    assert found["peaks"]["cpu"]["bytes"] < found["peaks"]["cpu"]["capacity"]
    names = [part["name"] for part in found["parts"]]
    assert {"weights: policy", "weights: reference", "weights: reward model", "weights: cost model"} <= set(names)
    assert run_memory.readable(3 * 2**29) == "1.50 GiB"
