"""Score models: read at the last attended token, normalised, independent of company, kept whole on disk."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.helpers.models_doubles import KINDS, make_classifier, make_lm, make_tokenizer
from tests.helpers.rounding import TINY, same_tensors
from textsafe_gym.errors import ModelError
from textsafe_gym.models.encoding import encode_pairs
from textsafe_gym.models.files import new_directory
from textsafe_gym.models.score import ScoreModel

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w1 w1"]
RESPONSES = ["w11", "w12 w13 w14 w15", "", "w2 w3 w4 w5 w6 w7 w8 w9"]


def make_score(kind: str = "reward", architecture: str = "llama", pad_is_eos: bool = False, **more: Any) -> ScoreModel:
    return ScoreModel(make_classifier(architecture), make_tokenizer(pad_is_eos), kind, **more)


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_scores_depend_on_neither_company_nor_pad(architecture: str, pad_is_eos: bool) -> None:
    score = make_score(architecture=architecture, pad_is_eos=pad_is_eos)
    together = score(PROMPTS, RESPONSES)
    assert together.dtype == np.float64
    assert together.shape == (4,)
    alone = [float(score([p], [r])[0]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(together, alone, atol=TINY, rtol=0)
    np.testing.assert_allclose(score(PROMPTS, RESPONSES), alone, atol=TINY, rtol=0)
    np.testing.assert_allclose(score(PROMPTS[::-1], RESPONSES[::-1])[::-1], alone, atol=TINY, rtol=0)
    # by hand: the bare trunk on prompt, response and EOS, without any padding
    for prompt, response, value in zip(PROMPTS, RESPONSES, alone, strict=True):
        ids = [int(word[1:]) + 3 for word in f"{prompt} {response}".split()] + [1]
        with torch.no_grad():
            hidden = score.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            assert value == pytest.approx(float(hidden @ score.model.score.weight[0]), abs=TINY)
    assert score([], []).shape == (0,)


def test_token_scores_end_in_the_score_and_carry_gradients() -> None:
    score = make_score()
    ids, mask = encode_pairs(score.tokenizer, PROMPTS, RESPONSES)
    raw = score.token_scores(ids)
    assert raw.shape == ids.shape
    last = raw[torch.arange(4), mask.sum(1) - 1]
    np.testing.assert_allclose(last.detach().numpy(), score(PROMPTS, RESPONSES), atol=TINY, rtol=0)
    last.sum().backward()
    assert all(p.grad is not None for p in score.model.parameters())


def test_normalisers() -> None:
    raw = make_score()(PROMPTS, RESPONSES)
    np.testing.assert_allclose(make_score(mean=0.5, std=2.0)(PROMPTS, RESPONSES), (raw - 0.5) / 2, atol=TINY, rtol=0)
    np.testing.assert_allclose(make_score("cost", std=0.5)(PROMPTS, RESPONSES), raw / 0.5, atol=2 * TINY, rtol=0)
    for kind, mean, std in [("cost", 0.1, 1.0), ("reward", 0.0, 0.0), ("reward", float("nan"), 1.0)]:
        with pytest.raises(ModelError, match="normaliser"):
            make_score(kind, mean=mean, std=std)
    score = make_score(mean=0.5, std=2.0)
    ids, mask = encode_pairs(score.tokenizer, PROMPTS[:1], RESPONSES[:1])
    hidden = score.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
    assert score.normalised_head()(hidden).item() == pytest.approx(score(PROMPTS[:1], RESPONSES[:1])[0], abs=TINY)


def test_what_is_too_long_loses_its_left() -> None:
    score = make_score()
    score.max_length = 5
    np.testing.assert_allclose(score(["w1 w2 w3 w4 w5"], ["w6 w7"]), score(["w4 w5"], ["w6 w7"]), atol=TINY, rtol=0)


@pytest.mark.parametrize("architecture", KINDS)
def test_save_and_load(architecture: str, tmp_path: Path, byte_tokenizer: Any) -> None:
    score = make_score(architecture=architecture, mean=0.25, std=3.0)
    if architecture == "qwen2":  # transformers reads any tokenizer next to a Qwen2 model as a byte-level one
        score = ScoreModel(make_classifier("qwen2", vocab_size=257), byte_tokenizer, "reward", 0.25, 3.0)
    score.save(tmp_path / "reward")
    loaded = ScoreModel.load(tmp_path / "reward", "reward")
    assert same_tensors(loaded.model, score.model)
    np.testing.assert_allclose(loaded(PROMPTS, RESPONSES), score(PROMPTS, RESPONSES), atol=TINY, rtol=0)
    assert (loaded.mean, loaded.std, loaded.kind) == (0.25, 3.0, "reward")
    score.set_normaliser(0.0, 1.0)
    score.save(tmp_path / "reward")  # over the old one
    assert ScoreModel.load(tmp_path / "reward", "reward").std == 1.0
    assert os.listdir(tmp_path) == ["reward"]
    assert not list((tmp_path / "reward").glob("*.bin"))


def test_reward_and_cost_may_not_be_swapped(tmp_path: Path) -> None:
    make_score("cost").save(tmp_path / "cost")
    with pytest.raises(ModelError, match="this is a cost model, not a reward model"):
        ScoreModel.load(tmp_path / "cost", "reward")
    plain = make_classifier()
    plain.save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    for kind in ("reward", "cost"):
        assert ScoreModel.load(tmp_path / "plain", kind).std == 1.0


def test_a_loaded_classifier_brings_its_normaliser(tmp_path: Path) -> None:
    score = make_score(mean=0.25, std=3.0)
    score.save(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    loaded = ScoreModel.of(model, make_tokenizer(), "reward")
    assert same_tensors(loaded.model, score.model)
    np.testing.assert_allclose(loaded(PROMPTS, RESPONSES), score(PROMPTS, RESPONSES), atol=TINY, rtol=0)
    with pytest.raises(ModelError, match="swapped"):
        ScoreModel.of(model, make_tokenizer(), "cost")


def test_a_new_head_on_a_language_models_trunk(tmp_path: Path) -> None:
    lm = make_lm()
    lm.save_pretrained(tmp_path / "lm")
    make_tokenizer().save_pretrained(tmp_path / "lm")
    score = ScoreModel.on_trunk(tmp_path / "lm", "cost")
    for name, tensor in lm.base_model.state_dict().items():
        assert torch.equal(score.model.base_model.state_dict()[name], tensor)
    assert (score(PROMPTS, RESPONSES) == 0).all()
    with pytest.raises(ModelError, match=r"lacks 1 tensors .* 'score.weight'"):
        ScoreModel.load(tmp_path / "lm", "cost")


DAMAGE = {
    "no folder": lambda d: d.rename(d.parent / "away"),
    "no config": lambda d: (d / "config.json").unlink(),
    "config is not JSON": lambda d: (d / "config.json").write_text("{"),
    "unknown architecture": lambda d: (d / "config.json").write_text('{"model_type": "no_such_model"}'),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "truncated weights": lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-99]),
    "empty weights": lambda d: (d / "model.safetensors").write_bytes(b""),
    "weights are text": lambda d: (d / "model.safetensors").write_text("these are not weights, whatever they say"),
    "pickled weights": lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
    "wrong shape": lambda d: edit(d, hidden_size=8),
    "wrong depth": lambda d: edit(d, num_hidden_layers=3),
    "bad normaliser": lambda d: edit(d, textsafe_score={"kind": "reward", "mean": 0, "std": -1}),
    "odd normaliser": lambda d: edit(d, textsafe_score={"kind": "reward", "mean": None, "std": 1}),
    "normaliser without std": lambda d: edit(d, textsafe_score={"kind": "reward"}),
    "two labels": lambda d: edit(d, id2label={"0": "a", "1": "b"}, num_labels=2),
    "no tokenizer": lambda d: [path.unlink() for path in d.glob("token*")],
    "broken tokenizer": lambda d: (d / "tokenizer.json").write_text("[1"),
    "larger tokenizer": lambda d: make_tokenizer(words=[f"w{i}" for i in range(40)]).save_pretrained(d),
}


def edit(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_one_line(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_score().save(tmp_path / "reward")
    DAMAGE[damage](tmp_path / "reward")
    capfd.readouterr()
    with pytest.raises(ModelError) as caught:
        ScoreModel.load(tmp_path / "reward", "reward")
    message = str(caught.value)
    assert "\n" not in message
    assert "reward" in message
    assert len(message) < 400
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_odd_sources() -> None:
    for source in ("", "no/such/folder", "../nowhere", "/dev/null", Path("nowhere")):
        with pytest.raises(ModelError, match="not a folder"):
            ScoreModel.load(source, "reward")


def test_only_a_decoder_with_one_label() -> None:
    with pytest.raises(ModelError, match="no scalar head"):
        ScoreModel(make_lm(), make_tokenizer(), "reward")
    with pytest.raises(ModelError, match="unknown kind"):
        make_score("price")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").touch()

    def fail() -> None:
        with new_directory(tmp_path / "old") as scratch:
            (scratch / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot write"), new_directory(tmp_path / "file" / "under"):
        pass
