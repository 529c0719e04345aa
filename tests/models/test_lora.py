"""Adapters and partial training: what is trained, what the reference is, what is saved, and what it costs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.models_doubles import (
    KINDS,
    TextVectorEnv,
    agent_of,
    make_classifier,
    make_lm,
    make_tokenizer,
    named_parameters,
    play,
)
from tests.helpers.rounding import TINY, same_tensors, tiny_gradient
from textsafe_gym.errors import ModelError
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.lora import tokenizer_of
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.types import Agent

PARTIAL: list[dict[str, int]] = [{"lora_rank": 3}, {"last_layers": 1}]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make_lm(request.param).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_lm(tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **options: Any) -> Any:
    return agent_of(CausalLMActor.load(folder, **options))


def move(agent: Agent) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in agent.parameter_groups()["actor"]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of log-probs: the sums that they come from are of their own size, which `move` raises well above 1."""
    torch.testing.assert_close(found, expected, atol=TINY * float(expected.abs().max()), rtol=0)


def log_probs(agent: Agent, rollout: Any) -> torch.Tensor:
    with torch.no_grad():
        return agent.evaluate(*rollout.inputs).log_probs


@pytest.mark.parametrize("partial", PARTIAL)
def test_the_reference_is_the_start_whatever_is_trained(folder: Path, partial: dict[str, int]) -> None:
    start, agent = load(folder), load(folder, **partial)
    env = TextVectorEnv(6, agent.actor.tokenizer)
    fresh = play(agent, env, seed=1)
    assert torch.equal(fresh.actions, play(start, env, seed=1).actions)
    move(agent)
    rollout = play(agent, env, seed=1)
    assert_close(log_probs(start, rollout), rollout.reference_log_probs)
    assert_close(log_probs(agent, rollout), rollout.log_probs)
    assert (rollout.log_probs - rollout.reference_log_probs).abs().max() > 0.05


@pytest.mark.parametrize("partial", PARTIAL)
def test_only_what_is_trained_gets_a_gradient_and_is_saved(folder: Path, partial: dict[str, int]) -> None:
    agent = load(folder, **partial)
    rollout = play(agent, TextVectorEnv(4, agent.actor.tokenizer), seed=1)
    now = agent.evaluate(*rollout.inputs)
    (now.log_probs.sum() + now.reward_values.sum() + now.cost_values.sum()).backward()
    trained = {name for name, x in named_parameters(agent).items() if x.grad is not None}
    assert set(agent.state_dict()) == trained
    actor = {id(x) for x in agent.parameter_groups()["actor"]}
    assert actor == {id(x) for x in agent.actor.model.parameters() if x.grad is not None}
    assert 0 < len(actor) < len(list(agent.actor.model.parameters()))
    if "lora_rank" in partial:
        assert all(".lora_" in name for name in trained if name.startswith("actor."))
        assert agent.actor._initial == ()
    else:  # the reference's frozen layers are the policy's own
        ours, theirs = (
            {x.data_ptr() for x in model.parameters()} for model in (agent.actor.model, agent.actor._initial[0])
        )
        assert len(theirs - ours) == len(actor)


def test_a_saved_adapter_is_the_policy_again(folder: Path, tmp_path: Path) -> None:
    agent = load(folder, lora_rank=3, lora_alpha=5, temperature=0.8)
    move(agent)
    agent.actor.save(tmp_path / "saved")
    rollout = play(agent, TextVectorEnv(4, agent.actor.tokenizer), seed=2)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "saved").iterdir()}
    assert "model.safetensors" not in sizes
    loaded = load(tmp_path / "saved")
    assert loaded.actor.temperature == 0.8
    assert_close(log_probs(loaded, rollout), rollout.log_probs)
    # as anybody's tools read it
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    theirs = agent_of(CausalLMActor(plain, make_tokenizer(), 0.8))
    assert_close(log_probs(theirs, rollout), rollout.log_probs)
    # and as the beginning of another adapter, whose reference it then is
    again = load(tmp_path / "saved", lora_rank=2)
    move(again)
    again.actor.save(tmp_path / "twice")
    further = play(again, TextVectorEnv(4, agent.actor.tokenizer), seed=2)
    assert_close(log_probs(loaded, further), further.reference_log_probs)
    twice = load(tmp_path / "twice")
    assert_close(log_probs(twice, further), further.log_probs)


def test_an_adapters_own_tokenizer_comes_before_its_base_models(llama: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    load(llama, lora_rank=2).actor.save(adapter)
    own = make_tokenizer()
    own.chat_template = "own"
    own.save_pretrained(adapter)
    assert tokenizer_of(adapter, "policy").chat_template == "own"
    for path in adapter.iterdir():
        if not path.name.startswith("adapter"):
            path.unlink()
    assert tokenizer_of(adapter, "policy").chat_template is None
    assert tokenizer_of(adapter, "policy").get_vocab() == own.get_vocab()


@pytest.mark.parametrize("partial", PARTIAL)
def test_state_round_trip(llama: Path, partial: dict[str, int]) -> None:
    agent, other = load(llama, **partial), load(llama, **partial)
    move(agent)
    other.load_state_dict(agent.state_dict())
    env = TextVectorEnv(4, agent.actor.tokenizer)
    assert same_tensors(agent.state_dict(), other.state_dict())
    assert_close(play(agent, env, 1).log_probs, play(other, env, 1).log_probs)
    with pytest.raises(ModelError, match="not of this policy"):
        load(llama).load_state_dict(agent.state_dict())


def test_two_policies_on_one_base_do_not_touch_each_other(llama: Path) -> None:
    one, two = load(llama, lora_rank=2), load(llama, lora_rank=2)
    env = TextVectorEnv(4, one.actor.tokenizer)
    before = play(two, env, 1).log_probs
    move(one)
    assert torch.equal(play(two, env, 1).log_probs, before)


@pytest.mark.parametrize("partial", [{}, *PARTIAL])
def test_recomputed_activations_give_the_same_gradients(folder: Path, partial: dict[str, int]) -> None:
    grads = []
    for more in ({}, {"gradient_checkpointing": True}):
        torch.manual_seed(0)
        agent = load(folder, **partial, **more)
        if more and not partial:
            calls = count_calls(agent.actor)
        rollout = play(agent, TextVectorEnv(4, agent.actor.tokenizer), seed=1)
        now = agent.evaluate(*rollout.inputs)
        (now.log_probs.sum() + now.reward_values.sum()).backward()
        grads.append({name: x.grad for name, x in named_parameters(agent).items() if x.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=tiny_gradient(4 * 8), rtol=TINY)
    if not partial:
        assert calls.count("backward") > 0  # a layer ran again after the loss was there


def test_separate_critics_recompute_as_well(llama: Path) -> None:
    grads, kept = [], []
    for more in ({}, {"gradient_checkpointing": True}):
        scores = {
            f"{kind}_critic": ScoreModel(make_classifier("llama"), make_tokenizer(), kind)
            for kind in ("reward", "cost")
        }
        agent = agent_of(CausalLMActor.load(llama, **more), critics="separate", **scores)
        ids = torch.arange(24).view(2, 12) % 7 + 3
        observations = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            now = agent.evaluate(observations, ids[:, 6:], torch.ones(2, 6, dtype=torch.bool))
        kept.append(len(saved))
        (now.reward_values.square().sum() + now.cost_values.sum()).backward()
        grads.append({name: x.grad for name, x in named_parameters(agent).items() if "critic" in name})
    assert kept[1] < kept[0] / 2
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=tiny_gradient(4 * 8), rtol=TINY)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "gradient_checkpointing": True}])
def test_compiled_layers_give_the_same_numbers(llama: Path, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = load(llama, **more)
    torch.manual_seed(0)
    compiled = load(llama, compile=True, **more)
    env = TextVectorEnv(6, plain.actor.tokenizer)
    found = []
    for agent in (plain, compiled):
        rollout = play(agent, env, seed=1)
        # The same pass, so that the KL begins at 0 in any precision.
        spoken = agent.actor.evaluate_in_chunks(*rollout.inputs).log_probs
        assert torch.equal(spoken, agent.reference.log_probs(*rollout.inputs))
        now = agent.evaluate(*rollout.inputs)
        (now.log_probs.sum() + now.reward_values.sum()).backward()
        found.append((rollout, {name: x.grad for name, x in named_parameters(agent).items() if x.grad is not None}))
    assert torch.equal(found[0][0].actions, found[1][0].actions)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=tiny_gradient(6 * 8), rtol=TINY)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def count_calls(actor: CausalLMActor) -> list[str]:
    """Tells for every run of the last layer whether it was in a backward pass."""
    from textsafe_gym.models.layers import decoder_layers

    calls: list[str] = []

    def note(*_: Any) -> None:
        calls.append("backward" if torch._C._current_graph_task_id() >= 0 else "forward")

    norm = next(
        module for name, module in decoder_layers(actor.model)[-1].named_modules() if "norm" in name or "ln" in name
    )
    norm.register_forward_hook(note)
    return calls


def test_refusals(llama: Path, tmp_path: Path) -> None:
    for options, words in [
        ({"lora_rank": 2, "last_layers": 1}, "exclude each other"),
        ({"lora_rank": 0}, "lora_rank has to be"),
        ({"lora_alpha": 4}, "with lora_rank only"),
        ({"last_layers": 3}, "from 1 to the model's 2 layers, not 3"),
    ]:
        with pytest.raises(ModelError, match=words) as caught:
            CausalLMActor.load(llama, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="loaded from a folder"):
        CausalLMActor(make_lm(), make_tokenizer(), lora_rank=2)
    actor = CausalLMActor.load(llama, lora_rank=2)
    actor.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 90)
    with pytest.raises(ModelError, match="cannot load policy"):
        CausalLMActor.load(tmp_path / "adapter")
    actor.save(tmp_path / "adapter")
    make_lm("gpt2").save_pretrained(llama)
    with pytest.raises(ModelError, match="LoRA"):
        CausalLMActor.load(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="names no base model"):
        CausalLMActor.load(tmp_path / "adapter")


@pytest.mark.parametrize(("given", "expected"), [({}, 6), ({"lora_alpha": 5}, 5)])
def test_a_lora_weighs_twice_its_rank_unless_it_is_set(given: dict[str, int], expected: int, llama: Path) -> None:
    (config,) = load(llama, lora_rank=3, **given).actor.model.peft_config.values()
    assert config.lora_alpha == expected
