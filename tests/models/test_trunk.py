"""Policy, reference, critics, reward and cost on one set of weights agree with models apart and leave no trace."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import textsafe_gym  # noqa: F401  registers the environments
from tests.helpers.models_doubles import WORDS, TextVectorEnv, agent_of, make_lm, make_tokenizer, named_parameters, play
from tests.helpers.rounding import TINY, same_tensors, tiny_gradient
from textsafe_gym.cli.main import main
from textsafe_gym.data.readers import Preference
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.fitting.fit import fit_reward, fit_sft
from textsafe_gym.models import lora
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.types import Agent

KINDS = ["llama", "qwen2", "qwen3", "gpt2", "gemma", "mistral", "opt"]
PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w1 w1"]
RESPONSES = ["w11", "w12 w13 w14 w15", "", "w2 w3 w4 w5 w6 w7 w8 w9"]


def write_base(folder: Path, kind: str = "llama", **more: Any) -> Path:
    make_lm(kind, **more).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_scores(folder: Path, base: Path, kind: str, seed: int = 1, rank: int = 3) -> ScoreModel:
    """An adapter and a head away from zero."""
    score = ScoreModel.on_lora(base, kind, rank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in (x for x in score.model.parameters() if x.requires_grad):
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    score.set_normaliser(0.25 if kind == "reward" else 0.0, 2.0)
    score.save(folder)
    return score


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def folders(base: Path, tmp_path: Path) -> dict[str, Path]:
    """The base, a reward and a cost adapter for it."""
    for seed, kind in enumerate(("reward", "cost")):
        write_scores(tmp_path / kind, base, kind, seed)
    return {name: tmp_path / name for name in ("base", "reward", "cost")}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_classifier_with_merged_weights(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", kind)
    written = write_scores(tmp_path / "reward", base, "reward")
    score = ScoreModel.load(tmp_path / "reward", "reward")
    other = ScoreModel.load(tmp_path / "reward", "reward")
    assert score.model.causal is other.model.causal
    assert (score.mean, score.std) == (0.25, 2.0)
    # as PEFT's own tools read the folder
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    wrapped = PeftModel.from_pretrained(plain, tmp_path / "reward")
    merged = ScoreModel(wrapped.merge_and_unload().eval(), make_tokenizer(), "reward", 0.25, 2.0)
    expected = merged(PROMPTS, RESPONSES)
    assert np.ptp(expected) > 0.05
    for model in (written, score, other, score):
        model.tokenizer = make_tokenizer()  # in a Qwen2 folder, transformers makes a byte-level one of any
        np.testing.assert_allclose(model(PROMPTS, RESPONSES), expected, atol=TINY, rtol=0)
    bare = ScoreModel(make_classifier_of(base, score), make_tokenizer(), "reward", 0.25, 2.0)
    assert np.abs(bare(PROMPTS, RESPONSES) - expected).max() > 1e-3  # so that the adapter has a say


def make_classifier_of(base: Path, score: ScoreModel) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    with torch.no_grad():
        model.score.weight.copy_(score.model.score.weight)
    return model


def test_an_adapter_made_by_peft_is_read(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = get_peft_model(plain, config).eval()
    theirs.save_pretrained(tmp_path / "raw")
    expected = ScoreModel(theirs.merge_and_unload(), make_tokenizer(), "cost")(PROMPTS, RESPONSES)
    for names in ("score.weight", "score.modules_to_save.weight", "score.modules_to_save.default.weight"):
        path = tmp_path / "raw" / "adapter_model.safetensors"
        tensors = {("base_model.model." + names if ".score." in key else key): x for key, x in load_file(path).items()}
        save_file(tensors, path)
        score = ScoreModel.load(tmp_path / "raw", "cost")
        assert (score.kind, score.mean, score.std) == ("cost", 0.0, 1.0)
        np.testing.assert_allclose(score(PROMPTS, RESPONSES), expected, atol=TINY, rtol=0)


@pytest.mark.parametrize("first", ["policy", "scorers"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scorers_leave_the_policy_as_it_is(kind: str, first: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", kind)
    for seed, name in enumerate(("reward", "cost")):
        write_scores(tmp_path / name, base, name, seed)

    def load() -> tuple[Any, list[ScoreModel]]:
        makers = {
            "policy": lambda: agent_of(CausalLMActor.load(base, lora_rank=2)),
            "scorers": lambda: [ScoreModel.load(tmp_path / name, name) for name in ("reward", "cost")],
        }
        order = sorted(makers, key=lambda name: name != first)
        made = {name: makers[name]() for name in order}
        return made["policy"], made["scorers"]

    def gradients(agent: Agent) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        now = agent.evaluate(*rollout.inputs)
        (now.log_probs.sum() + now.reward_values.sum() + now.cost_values.sum()).backward()
        found = {name: x.grad for name, x in named_parameters(agent).items() if x.grad is not None}
        for x in named_parameters(agent).values():
            x.grad = None
        return now.log_probs.detach(), found

    torch.manual_seed(0)
    actor = CausalLMActor(AutoModelForCausalLM.from_pretrained(base), make_tokenizer(), lora_rank=2)
    alone = agent_of(actor)
    agent, scorers = load()
    assert agent.actor.model is scorers[0].model.causal is scorers[1].model.causal
    agent.load_state_dict(alone.state_dict())
    with torch.no_grad():
        for one, other in zip(alone.parameter_groups()["actor"], agent.parameter_groups()["actor"], strict=True):
            one.add_(0.2)
            other.copy_(one)
    rollout = play(alone, TextVectorEnv(4, make_tokenizer()), seed=1)
    expected, first_found = gradients(alone), None
    names = {name for name, x in named_parameters(agent).items() if x.requires_grad}
    scores = [scorer(PROMPTS, RESPONSES) for scorer in scorers]
    for _ in range(2):
        assert {name for name, x in named_parameters(agent).items() if x.requires_grad} == names == set(expected[1])
        found = gradients(agent)
        torch.testing.assert_close(found[0], expected[0], atol=TINY, rtol=0)
        for name, grad in expected[1].items():
            torch.testing.assert_close(found[1][name], grad, atol=tiny_gradient(4 * 8), rtol=TINY)
        again = play(agent, TextVectorEnv(4, make_tokenizer()), seed=1)
        torch.testing.assert_close(again.reference_log_probs, rollout.reference_log_probs, atol=TINY, rtol=0)
        # The agent's own second pass, after the scorers', is the first one to the last bit.
        first_found = first_found or (*found, again)
        assert torch.equal(found[0], first_found[0])
        assert same_tensors(found[1], first_found[1])
        assert torch.equal(again.reference_log_probs, first_found[2].reference_log_probs)
        for scorer, before in zip(scorers, scores, strict=True):
            np.testing.assert_array_equal(scorer(PROMPTS, RESPONSES), before)
    assert np.abs(scores[0] - scores[1]).max() > 0.01


def bytes_of(*holders: Any) -> int:
    """Bytes of all distinct storages of parameters and buffers."""
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for holder in holders
        for x in [*holder.parameters(), *holder.buffers()]
    }
    return sum(storages.values())


def test_six_roles_take_little_more_than_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 500}
    base = write_base(tmp_path / "base", **sizes)
    for name in ("reward", "cost"):
        write_scores(tmp_path / name, base, name, rank=4)
    env: Any = gym.make_vec(
        "SafeRLHF-v0",
        num_envs=4,
        prompts=PROMPTS,
        tokenizer=str(base),
        reward_model=str(tmp_path / "reward"),
        cost_model=str(tmp_path / "cost"),
        max_prompt_length=6,
        max_response_length=8,
    )
    agent: Any = agent_of(CausalLMActor.load(base, lora_rank=4))
    rollout = play(agent, env, seed=0)
    assert float(rollout.rewards.abs().sum()) > 0
    assert agent.actor._initial == ()
    scorers = [env.unwrapped.task._scorers[name] for name in ("reward", "cost")]
    together = bytes_of(agent.actor, agent.critics, *(scorer.model for scorer in scorers))
    plain = bytes_of(AutoModelForCausalLM.from_pretrained(base))
    assert plain < together <= 1.6 * plain
    apart = bytes_of(*(AutoModelForCausalLM.from_pretrained(base) for _ in range(4)))
    assert together < 0.4 * apart


def test_fits_train_the_adapter_alone(base: Path, tmp_path: Path) -> None:
    fast = {
        "epochs": 2,
        "learning_rate": 5e-3,
        "minibatch_size": 8,
        "test_fraction": 0.25,
        "max_length": 32,
        "progress": False,
    }
    before = (base / "model.safetensors").read_bytes()
    rows = [(f"w{i % 7} w{i % 5}", f"w{i % 7} w{i % 7}") for i in range(64)]
    metrics = fit_sft(rows, base, None, tmp_path / "sft", lora_rank=2, **fast)
    assert metrics["losses"][1] < metrics["losses"][0]
    assert metrics["held_out"]["transformer"]["loss"] < metrics["held_out"]["before fitting"]["loss"]
    pairs = [Preference(prompt, f"{answer} w20", answer) for prompt, answer in rows]
    metrics = fit_reward(pairs, base, None, tmp_path / "reward", lora_rank=2, **fast | {"epochs": 6})
    assert metrics["held_out"]["transformer"]["ranking_accuracy"] > 0.9
    assert metrics["settings"]["lora_rank"] == 2
    for name in ("sft", "reward"):
        assert not (tmp_path / name / "model.safetensors").exists()
    assert (base / "model.safetensors").read_bytes() == before
    reward = ScoreModel.load(tmp_path / "reward", "reward")
    assert (reward.mean, reward.std) == (metrics["normaliser"]["mean"], metrics["normaliser"]["std"])
    ranked = reward(["w1 w2"] * 2, ["w1 w1 w20", "w1 w1"])
    assert ranked[0] > ranked[1]
    ours = CausalLMActor.load(tmp_path / "sft")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids).logits, theirs(ids).logits, atol=TINY, rtol=0)
    # a fitted adapter is a trunk in its turn, whole or for a further adapter
    for number, options in enumerate(({}, {"lora_rank": 2})):
        fit_reward(pairs, tmp_path / "sft", None, tmp_path / f"on_{number}", **options, **fast | {"epochs": 1})
        assert np.isfinite(ScoreModel.load(tmp_path / f"on_{number}", "reward")(PROMPTS, RESPONSES)).all()


def test_refusals(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="swapped"):
        ScoreModel.load(folders["reward"], "cost")
    actor = CausalLMActor.load(folders["base"])
    sources = {f"{kind}_critic": folders[kind] for kind in ("reward", "cost")}
    with pytest.raises(ModelError, match="set critics=heads"):
        agent_of(actor, critics="separate", **sources)
    CausalLMActor.load(folders["base"], lora_rank=2).save(tmp_path / "policy")
    with pytest.raises(ModelError, match=r"head 'score' of shape \(1, 16\) .* has none") as caught:
        ScoreModel.load(tmp_path / "policy", "reward")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"1 tensors besides a LoRA, first 'score.weight'"):
        CausalLMActor.load(folders["reward"])
    path = folders["cost"] / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelError, match=r"first 'lm_head.weight'; merge it"):
        ScoreModel.load(folders["cost"], "cost")
    head = "base_model.model.score.weight"
    save_file(tensors | {head: torch.zeros(2, 16)}, path)
    with pytest.raises(ModelError, match=r"has \(2, 16\)"):
        ScoreModel.load(folders["cost"], "cost")
    for model in ("tiny", make_lm()):
        with pytest.raises(ConfigError, match="lies nowhere"):
            fit_sft([("w1", "w2")], model, make_tokenizer(), tmp_path / "no", lora_rank=2)
    shown = CliRunner().invoke(main, ["fit", "sft", "--data", "x", "--out", str(tmp_path / "no"), "--lora-rank", "2"])
    assert (shown.exit_code, len(shown.stderr.splitlines())) == (2, 1)


def test_a_run_on_one_trunk_resumes_to_the_same_result(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"{a} {b}" for a, b in zip(WORDS, WORDS[3:], strict=False)))
    kwargs = {
        "prompts": str(tmp_path / "prompts.txt"),
        "tokenizer": str(folders["base"]),
        "reward_model": str(folders["reward"]),
        "cost_model": str(folders["cost"]),
        "max_prompt_length": 4,
        "max_response_length": 6,
    }
    policy = {"model": str(folders["base"]), "lora_rank": 2}
    (tmp_path / "env.yaml").write_text(json.dumps({"id": "SafeRLHF-v0", "kwargs": kwargs, "policy": policy}))
    loads = []
    plain = lora.load_pretrained
    monkeypatch.setattr(lora, "load_pretrained", lambda *a, **k: loads.append(a[1]) or plain(*a, **k))

    def train(name: str, *more: str) -> None:
        options = ["--env", str(tmp_path / "env.yaml"), "--set", "episodes_per_iteration=8", "--set"]
        options += ["minibatch_size=4", "--set", "learning_rate=0.01", "--episodes", "96"]
        shown = CliRunner().invoke(main, ["train", "ppo_lagrangian", *options, "--out", str(tmp_path / name), *more])
        assert shown.exit_code == (1 if name == "stopped" and not more else 0), shown.stderr

    train("whole")
    assert len(loads) == 2  # to try the request out, and for the run: not once more for a scorer or a reference

    import algos.ppo_lagrangian

    update = algos.ppo_lagrangian.Algorithm.update
    done = []

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.append(0)
        if len(done) > 10:
            raise ZeroDivisionError
        return update(self, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(algos.ppo_lagrangian.Algorithm, "update", stop)
        train("stopped")
    assert not (tmp_path / "stopped/summary.json").exists()
    train("stopped", "--resume")
    for name in ("evaluation.jsonl", "checkpoints/latest/state.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
