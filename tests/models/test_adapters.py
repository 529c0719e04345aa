"""Adapters and partial training: what is trained, what the reference is, what is saved, and what it costs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.models_doubles import KINDS, TextVectorEnv, make_classifier, make_lm, make_tokenizer
from tests.helpers.rounding import TINY, same_tensors, tiny_gradient
from textsafe_gym.errors import ModelError
from textsafe_gym.models.causal_lm import CausalLMPolicy
from textsafe_gym.models.score import ScoreModel

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


def move(policy: CausalLMPolicy) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameter_groups()["actor"]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of log-probs: the sums that they come from are of their own size, which `move` raises well above 1."""
    torch.testing.assert_close(found, expected, atol=TINY * float(expected.abs().max()), rtol=0)


def log_probs(policy: CausalLMPolicy, rollout: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy.evaluate(rollout.observations, rollout.actions, rollout.mask).log_probs


@pytest.mark.parametrize("partial", PARTIAL)
def test_the_reference_is_the_start_whatever_is_trained(folder: Path, partial: dict[str, int]) -> None:
    start, policy = CausalLMPolicy.load(folder), CausalLMPolicy.load(folder, **partial)
    env = TextVectorEnv(6, policy.tokenizer)
    fresh = policy.rollout(env, seed=1)
    assert torch.equal(fresh.actions, start.rollout(env, seed=1).actions)
    move(policy)
    rollout = policy.rollout(env, seed=1)
    assert_close(log_probs(start, rollout), rollout.reference_log_probs)
    assert_close(log_probs(policy, rollout), rollout.log_probs)
    assert (rollout.log_probs - rollout.reference_log_probs).abs().max() > 0.05


@pytest.mark.parametrize("partial", PARTIAL)
def test_only_what_is_trained_gets_a_gradient_and_is_saved(folder: Path, partial: dict[str, int]) -> None:
    policy = CausalLMPolicy.load(folder, **partial)
    rollout = policy.rollout(TextVectorEnv(4, policy.tokenizer), seed=1)
    now = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    (now.log_probs.sum() + now.reward_values.sum() + now.cost_values.sum()).backward()
    trained = {name for name, x in policy.named_parameters() if x.grad is not None}
    assert set(policy.state_dict()) == trained
    actor = {id(x) for x in policy.parameter_groups()["actor"]}
    assert actor == {id(x) for x in policy.model.parameters() if x.grad is not None}
    assert 0 < len(actor) < len(list(policy.model.parameters()))
    if "lora_rank" in partial:
        assert all(".lora_" in name for name in trained if name.startswith("model."))
        assert policy._reference == ()
    else:  # the reference's frozen layers are the policy's own
        ours, theirs = ({x.data_ptr() for x in model.parameters()} for model in (policy.model, policy._reference[0]))
        assert len(theirs - ours) == len(actor)


def test_a_saved_adapter_is_the_policy_again(folder: Path, tmp_path: Path) -> None:
    policy = CausalLMPolicy.load(folder, lora_rank=3, lora_alpha=5, temperature=0.8)
    move(policy)
    policy.save(tmp_path / "saved")
    rollout = policy.rollout(TextVectorEnv(4, policy.tokenizer), seed=2)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "saved").iterdir()}
    assert "model.safetensors" not in sizes
    loaded = CausalLMPolicy.load(tmp_path / "saved")
    assert loaded.temperature == 0.8
    assert_close(log_probs(loaded, rollout), rollout.log_probs)
    # as anybody's tools read it
    theirs = CausalLMPolicy(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval(), policy.tokenizer, 0.8)
    assert_close(log_probs(theirs, rollout), rollout.log_probs)
    # and as the beginning of another adapter, whose reference it then is
    again = CausalLMPolicy.load(tmp_path / "saved", lora_rank=2)
    move(again)
    again.save(tmp_path / "twice")
    further = again.rollout(TextVectorEnv(4, policy.tokenizer), seed=2)
    assert_close(log_probs(loaded, further), further.reference_log_probs)
    twice = CausalLMPolicy.load(tmp_path / "twice")
    assert_close(log_probs(twice, further), further.log_probs)


@pytest.mark.parametrize("partial", PARTIAL)
def test_state_round_trip(llama: Path, partial: dict[str, int]) -> None:
    policy, other = CausalLMPolicy.load(llama, **partial), CausalLMPolicy.load(llama, **partial)
    move(policy)
    other.load_state_dict(policy.state_dict())
    env = TextVectorEnv(4, policy.tokenizer)
    assert same_tensors(policy, other)
    ours, theirs = (each.rollout(env, 1).log_probs for each in (policy, other))
    assert_close(ours, theirs)
    with pytest.raises(ModelError, match="not of this policy"):
        CausalLMPolicy.load(llama).load_state_dict(policy.state_dict())


def test_two_policies_on_one_base_do_not_touch_each_other(llama: Path) -> None:
    one, two = CausalLMPolicy.load(llama, lora_rank=2), CausalLMPolicy.load(llama, lora_rank=2)
    env = TextVectorEnv(4, one.tokenizer)
    before = two.rollout(env, 1).log_probs
    move(one)
    assert torch.equal(two.rollout(env, 1).log_probs, before)


@pytest.mark.parametrize("partial", [{}, *PARTIAL])
def test_recomputed_activations_give_the_same_gradients(folder: Path, partial: dict[str, int]) -> None:
    grads = []
    for more in ({}, {"gradient_checkpointing": True}):
        torch.manual_seed(0)
        policy = CausalLMPolicy.load(folder, **partial, **more)
        if more and not partial:
            calls = count_calls(policy)
        rollout = policy.rollout(TextVectorEnv(4, policy.tokenizer), seed=1)
        now = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
        (now.log_probs.sum() + now.reward_values.sum()).backward()
        grads.append({name: x.grad for name, x in policy.named_parameters() if x.grad is not None})
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
        policy = CausalLMPolicy.load(llama, critics="separate", **scores, **more)
        ids = torch.arange(24).view(2, 12) % 7 + 3
        observations = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            now = policy.evaluate(observations, ids[:, 6:], torch.ones(2, 6, dtype=torch.bool))
        kept.append(len(saved))
        (now.reward_values.square().sum() + now.cost_values.sum()).backward()
        grads.append({name: x.grad for name, x in policy.named_parameters() if "critic" in name})
    assert kept[1] < kept[0] / 2
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=tiny_gradient(4 * 8), rtol=TINY)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("more", [{}, {"lora_rank": 2, "gradient_checkpointing": True}])
def test_compiled_layers_give_the_same_numbers(llama: Path, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = CausalLMPolicy.load(llama, **more)
    torch.manual_seed(0)
    compiled = CausalLMPolicy.load(llama, compile=True, **more)
    env = TextVectorEnv(6, plain.tokenizer)
    found = []
    for policy in (plain, compiled):
        rollout = policy.rollout(env, seed=1)
        now = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
        (now.log_probs.sum() + now.reward_values.sum()).backward()
        found.append((rollout, {name: x.grad for name, x in policy.named_parameters() if x.grad is not None}))
    assert torch.equal(found[0][0].actions, found[1][0].actions)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=tiny_gradient(6 * 8), rtol=TINY)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def count_calls(policy: CausalLMPolicy) -> list[str]:
    """Tells for every run of the last layer whether it was in a backward pass."""
    from textsafe_gym.models.layers import decoder_layers

    calls: list[str] = []

    def note(*_: Any) -> None:
        calls.append("backward" if torch._C._current_graph_task_id() >= 0 else "forward")

    norm = next(
        module for name, module in decoder_layers(policy.model)[-1].named_modules() if "norm" in name or "ln" in name
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
            CausalLMPolicy.load(llama, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="loaded from a folder"):
        CausalLMPolicy(make_lm(), make_tokenizer(), lora_rank=2)
    policy = CausalLMPolicy.load(llama, lora_rank=2)
    policy.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 90)
    with pytest.raises(ModelError, match="cannot load policy"):
        CausalLMPolicy.load(tmp_path / "adapter")
    policy.save(tmp_path / "adapter")
    make_lm("gpt2").save_pretrained(llama)
    with pytest.raises(ModelError, match="adapter"):
        CausalLMPolicy.load(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="names no base model"):
        CausalLMPolicy.load(tmp_path / "adapter")
