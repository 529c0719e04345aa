"""Score models in the format of the official Safe RLHF implementation, against its formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.official_score import build, make_official_tokenizer
from tests.helpers.rounding import TINY, same_tensors
from textsafe_gym.errors import ModelError
from textsafe_gym.files import read_json, write_json
from textsafe_gym.models.formats import FORMATS, beaver
from textsafe_gym.models.score import Critic, ScoreModel

PROMPTS, RESPONSES = ["w1 w2 w3", "w4"], ["w11 w12", ""]


@pytest.mark.parametrize("kind", ["reward", "cost"])
@pytest.mark.parametrize("do_normalize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_are_the_official_formula(kind: str, do_normalize: bool, bias: bool, tmp_path: Path) -> None:
    formula = build(tmp_path / "beaver", kind, do_normalize, bias)
    expected = [formula(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    score = ScoreModel.load(tmp_path / "beaver", kind)
    np.testing.assert_allclose(score(PROMPTS, RESPONSES), expected, atol=TINY, rtol=0)

    score.save(tmp_path / "ours")
    again = ScoreModel.load(tmp_path / "ours", kind)
    assert same_tensors(again.model, score.model)
    np.testing.assert_allclose(again(PROMPTS, RESPONSES), score(PROMPTS, RESPONSES), atol=TINY, rtol=0)
    assert (again.mean, again.std) == (score.mean, score.std)
    score.set_normaliser(0.0, 7.0)  # what is saved here goes before the official fields
    score.save(tmp_path / "ours")
    assert ScoreModel.load(tmp_path / "ours", kind).std == 7.0
    assert load_file(tmp_path / "ours" / "model.safetensors")["score_head.weight"].shape == (1, 16)
    other = "cost" if kind == "reward" else "reward"
    for folder in ("beaver", "ours"):
        with pytest.raises(ModelError, match=f"this is a {kind} model, not a {other} model"):
            ScoreModel.load(tmp_path / folder, other)


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_a_critic_begins_as_the_official_score(kind: str, tmp_path: Path) -> None:
    formula = build(tmp_path / "beaver", kind, do_normalize=True)
    score = ScoreModel.load(tmp_path / "beaver", kind)
    text = f"BEGINNING OF CONVERSATION: USER: {PROMPTS[0]} ASSISTANT:{RESPONSES[0]}<eos>"
    inputs = {name: torch.tensor([ids]) for name, ids in score.tokenizer(text).items() if name != "token_type_ids"}
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[0, -1] = True
    assert Critic(score)(where, **inputs).item() == pytest.approx(formula(PROMPTS[0], RESPONSES[0]), abs=TINY)
    assert score.normalised_head().bias is not None


def test_the_older_class_name_a_missing_kind_and_another_template(tmp_path: Path) -> None:
    formula = build(tmp_path / "beaver", None, do_normalize=False, architectures=["LlamaModelForScore"], bias=False)
    for kind in ("reward", "cost"):
        assert ScoreModel.load(tmp_path / "beaver", kind)(["w1"], ["w2"])[0] == pytest.approx(
            formula("w1", "w2"), abs=TINY
        )
    own = make_official_tokenizer()
    own.chat_template = "{{ messages[0]['content'] }} {{ messages[1]['content'] }}<end>"
    own.save_pretrained(tmp_path / "beaver")
    assert ScoreModel.load(tmp_path / "beaver", "cost").tokenizer.chat_template == own.chat_template


def test_a_new_head_on_such_a_trunk(tmp_path: Path) -> None:
    build(tmp_path / "beaver", "reward", do_normalize=True)
    score = ScoreModel.on_trunk(tmp_path / "beaver", "cost")
    assert (score(PROMPTS, RESPONSES) == 0).all()
    score.save(tmp_path / "new")
    assert ScoreModel.load(tmp_path / "new", "cost").std == 1.0


def test_faults_are_one_line(tmp_path: Path) -> None:
    faults = {
        "has score_dim 3": {"score_dim": 3},
        "this is a critic model": {"score_type": "critic"},
        "mean and var, lists of one number each": {"mean": None},
        "needs mean and var": {"var": [1.0, 2.0]},
        "which needs mean": {"var": [-1.0]},
        "has to be finite": {"mean": [float("nan")]},
        "var, lists of one": {"mean": ["high"]},
    }
    for number, (message, change) in enumerate(faults.items()):
        build(tmp_path / str(number), "reward", do_normalize=True, **change)
        with pytest.raises(ModelError, match=message) as caught:
            ScoreModel.load(tmp_path / str(number), "reward")
        assert "\n" not in str(caught.value)
        assert str(tmp_path / str(number)) in str(caught.value)
    build(tmp_path / "torn", "reward", do_normalize=True)
    shard = tmp_path / "torn" / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    del tensors["score_head.weight"]
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(ModelError):
        ScoreModel.load(tmp_path / "torn", "reward")


def test_pickled_weights_can_be_converted_as_the_error_says(tmp_path: Path) -> None:
    formula = build(tmp_path / "beaver", "cost", do_normalize=True)
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted((tmp_path / "beaver").glob("model*")):
        if shard.suffix == ".safetensors":
            tensors |= load_file(shard)
        shard.unlink()
    torch.save(tensors, tmp_path / "beaver" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pytorch_model") as caught:
        ScoreModel.load(tmp_path / "beaver", "cost")
    assert "\n" not in str(caught.value)
    old, new = tmp_path / "beaver" / "pytorch_model.bin", tmp_path / "beaver" / "model.safetensors"
    assert "save_file(torch.load(OLD, weights_only=True), NEW)" in str(caught.value)
    save_file(torch.load(old, weights_only=True), new)
    assert ScoreModel.load(tmp_path / "beaver", "cost")(["w1"], ["w2"])[0] == pytest.approx(
        formula("w1", "w2"), abs=TINY
    )


def test_a_format_from_elsewhere_is_one_module(tmp_path: Path) -> None:
    class Odd:
        ARCHITECTURES = frozenset({"OddScore"})
        load = staticmethod(beaver.load)

        @staticmethod
        def normaliser(config: object, kind: str) -> dict[str, object]:
            return {"kind": kind, "mean": 0.0, "std": 4.0}

    formula = build(tmp_path / "odd", "cost", do_normalize=False)
    write_json(tmp_path / "odd/config.json", read_json(tmp_path / "odd/config.json") | {"architectures": ["OddScore"]})
    FORMATS.register("odd", Odd(), "")
    try:
        score = ScoreModel.load(tmp_path / "odd", "cost")
    finally:
        FORMATS.remove("odd")
    assert score.std == 4.0
    np.testing.assert_allclose(score(["w1"], ["w2"]), formula("w1", "w2") / 4, atol=TINY, rtol=0)
