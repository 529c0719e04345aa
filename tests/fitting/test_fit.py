"""Fits on small made-up data: they learn what is there, save what can be loaded, and leave nothing when they fail."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.helpers.rounding import FLOAT64, rounding
from textsafe_gym.cli.main import main
from textsafe_gym.data.readers import Labelled, Preference, SafetyPreference
from textsafe_gym.errors import ConfigError, DataError, ModelError, RunError
from textsafe_gym.files import write_rows
from textsafe_gym.fitting.fit import fit_cost, fit_reward, fit_sft
from textsafe_gym.fitting.losses import cost_loss, differing_window, end_scores, label_loss, reward_loss
from textsafe_gym.fitting.metrics import auc, interval_by_prompt, ranking_accuracy, sign_accuracy
from textsafe_gym.fitting.sft import encode_demonstration, ngram_losses
from textsafe_gym.fitting.training import length_batches
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.models.texts import answers_ids

TINY = "tiny:hidden=32,layers=1,heads=2,vocab=300,length=64"
# A score of it, in standard deviations of the scores, computed twice; a mean and a standard deviation move by no more.
# One layer: sums over 32 numbers for query, key, value, output, gate and up, over 16 of a head, over up to 64 positions
# and over 128 on the way down; and the head's sum over 32.
TINY_SCORE = rounding(terms=6 * 32 + 16 + 64 + 128 + 32)
FAST = {
    "epochs": 3,
    "learning_rate": 5e-3,
    "minibatch_size": 8,
    "test_fraction": 0.25,
    "max_length": 64,
    "progress": False,
}
PLACES = ["park", "shop", "bank", "yard", "lake", "farm", "town", "road"]
DEMONSTRATIONS = [(f"{i} where is the {PLACES[i % 8]}?", f" the {PLACES[i % 8]} is here") for i in range(64)]


class Letters:
    """A tokenizer of single characters."""

    eos_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def safety_pairs() -> list[SafetyPreference]:
    """Answers that are unsafe exactly when they say "boom"; a third of the pairs have two safe answers."""
    rows = []
    for i in range(120):
        other = f"boom {i % 7}" if i % 3 else f"perhaps {i % 7}"
        rows.append(SafetyPreference(f"question {i}", f"calm {i % 5}", other, True, not i % 3))
    return rows


def test_losses_by_hand() -> None:
    scores = torch.tensor([[9.0, 2.0, 7.0], [9.0, 9.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert end_scores(scores, mask).tolist() == [2.0, 1.0]
    labels = torch.tensor([True, False])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2 + 0.1 * (4 + 1) / 2
    assert label_loss(scores, mask, labels, 0.1).item() == pytest.approx(expected, abs=FLOAT64)


def test_end_scores_read_either_padding() -> None:
    scores = torch.arange(8.0).reshape(2, 4)
    assert end_scores(scores, torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])).tolist() == [3.0, 5.0]


def test_window_runs_from_first_difference_to_later_end() -> None:
    first, second = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 0, 0, 0]]), torch.tensor([[5, 8, 7, 9, 0], [5, 6, 0, 0, 0]])
    masks = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    window = differing_window(first, masks[0], second, masks[1])
    assert window.tolist() == [[False, True, True, True, False], [False, False, True, False, False]]


@pytest.mark.parametrize("loss_type", ["sequence", "token"])
def test_losses_have_right_gradients(loss_type: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(1, 9, (2, 3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    scores = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    safe = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    rest = (*ids, mask, mask.flip(0))
    assert torch.autograd.gradcheck(lambda x: reward_loss(x[0], x[1], *rest, loss_type, 0.1), scores)
    assert torch.autograd.gradcheck(lambda x: cost_loss(x[0], x[1], *rest, *safe, loss_type, 0.1), scores)


def test_metrics_by_hand() -> None:
    assert ranking_accuracy(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])) == 0.5
    scores, labels = np.array([0.5, -0.5, 0.0, 2.0]), np.array([True, False, True, False])
    assert sign_accuracy(scores, labels) == 0.5
    assert auc(scores, labels) == 0.5
    assert auc(np.array([0.0, 0.0, 1.0]), np.array([False, True, True])) == 0.75
    assert math.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))


def test_interval_counts_prompts_not_rows() -> None:
    right = np.repeat(np.arange(10) % 2, 100).astype(float)
    once = interval_by_prompt(lambda i: right[i].mean(), [f"p{i}" for i in range(10) for _ in range(100)])
    apart = interval_by_prompt(lambda i: right[i].mean(), [f"p{i}" for i in range(1000)])
    assert once[0] < 0.3 < 0.7 < once[1]  # ten prompts: a standard error of 0.16
    assert 0.45 < apart[0] < apart[1] < 0.55


def test_batches_hold_each_row_once_and_one_kind() -> None:
    lengths, kinds = list(range(50)), [i % 3 == 0 for i in range(50)]
    batches = length_batches(lengths, kinds, 4, np.random.default_rng(0))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(len({kinds[i] for i in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert all(max(batch) - min(batch) <= 9 for batch in batches)


def test_truncation_keeps_pairs_aligned_and_ends_whole() -> None:
    row = "abcdef", ("xy", "z")
    assert answers_ids(Letters(), *row, 9) == [[*map(ord, "abcdefxy"), 0], [*map(ord, "abcdefz"), 0]]
    assert answers_ids(Letters(), *row, 6) == [[*map(ord, "defxy"), 0], [*map(ord, "defz"), 0]]
    assert answers_ids(Letters(), *row, 2) == [[ord("y"), 0], [ord("z"), 0]]


def test_demonstrations_lose_their_end_first_and_then_the_prompts_beginning() -> None:
    assert encode_demonstration(Letters(), "ab", "cd", 9) == ([97, 98], [99, 100, 0])
    assert encode_demonstration(Letters(), "ab", "cdefgh", 6) == ([97, 98], [99, 100, 101, 102])
    assert encode_demonstration(Letters(), "abcdef", "xyz", 4) == ([101, 102], [120, 121])


def test_ngram_losses_by_hand() -> None:
    found = ngram_losses([[1, 1], [1, 2]], [[1, 2]], 4)
    assert found["unigram"] == pytest.approx(-(math.log(4 / 8) + math.log(2 / 8)) / 2, abs=FLOAT64)
    # After the start: 1 twice of 2, one follower; after 1: 1 and 2 once each, two followers.
    expected = -(math.log((2 + 1 * 4 / 8) / 3) + math.log((1 + 2 * 2 / 8) / 4)) / 2
    assert found["bigram"] == pytest.approx(expected, abs=FLOAT64)


def test_sft_learns_and_can_be_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = fit_sft(DEMONSTRATIONS, TINY, None, tmp_path / "sft", **FAST | {"epochs": 12})
    held_out = metrics["held_out"]
    assert held_out["transformer"]["loss"] < 0.5 * held_out["before fitting"]["loss"]
    assert held_out["transformer"]["loss"] < held_out["unigram"]["loss"]
    assert metrics["losses"][-1] < metrics["losses"][0]
    assert metrics == json.loads((tmp_path / "sft" / "metrics.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    text = "\n\nHuman: naïve “quotes” 🙂?\n\nAssistant: x  y."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


@pytest.mark.parametrize("loss", ["sequence", "token"])
def test_cost_model_learns_order_and_zero(tmp_path: Path, loss: str) -> None:
    metrics = fit_cost(safety_pairs(), TINY, None, tmp_path / "cost", loss=loss, **FAST | {"epochs": 8})
    transformer = metrics["held_out"]["transformer"]
    assert transformer["sign_accuracy"] > 0.95
    assert transformer["ranking_accuracy"] > 0.9
    assert metrics["held_out"]["tfidf"]["sign_accuracy"] > 0.95
    assert metrics["held_out"]["majority"]["ranking_accuracy"] == 0.5
    cost = ScoreModel.load(tmp_path / "cost", "cost")
    safe, unsafe = cost(["question 500"] * 2, ["calm 1", "boom 3"])
    assert safe < 0 < unsafe
    assert cost.mean == 0.0
    with pytest.raises(ModelError, match="swapped"):
        ScoreModel.load(tmp_path / "cost", "reward")


def test_reward_model_from_a_policys_trunk_is_normalised(tmp_path: Path) -> None:
    fit_sft(DEMONSTRATIONS, TINY, None, tmp_path / "sft", **FAST)
    rows = [Preference(prompt, answer, " no") for prompt, answer in DEMONSTRATIONS]
    rows += [
        Labelled(prompt, answer, bool(i % 2)) for prompt, _ in DEMONSTRATIONS for i, answer in enumerate((" no", "x"))
    ]
    sources = ["pairs"] * 64 + ["labels"] * 128
    options = FAST | {"test_fraction": 0.2, "seed": 3}
    metrics = fit_reward(rows, tmp_path / "sft", None, tmp_path / "reward", sources=sources, **options)
    assert set(metrics["held_out"]["transformer"]) == {"ranking_accuracy", "sign_accuracy", "auc"}
    assert set(metrics["by_source"]["pairs"]["tfidf"]) == {"ranking_accuracy"}
    reward = ScoreModel.load(tmp_path / "reward", "reward")
    assert reward.tokenizer.get_vocab() == ScoreModel.on_trunk(tmp_path / "sft", "reward").tokenizer.get_vocab()
    everything = fit_reward(rows, tmp_path / "sft", None, tmp_path / "all", **FAST | {"test_fraction": 0.0})
    assert "held_out" not in everything
    reward = ScoreModel.load(tmp_path / "all", "reward")
    answers = [
        (row.prompt, text)
        for row in rows
        for text in ([row.better, row.worse] if isinstance(row, Preference) else [row.response])
    ]
    scores = reward([prompt for prompt, _ in answers], [text for _, text in answers])
    assert scores.mean() == pytest.approx(0.0, abs=TINY_SCORE)
    assert scores.std() == pytest.approx(1.0, abs=TINY_SCORE)


def test_same_seed_same_model_whatever_went_before(tmp_path: Path) -> None:
    one = fit_cost(safety_pairs(), TINY, None, tmp_path / "one", **FAST | {"epochs": 1})
    torch.rand(3)
    state = torch.random.get_rng_state()
    two = fit_cost(safety_pairs(), TINY, None, tmp_path / "two", **FAST | {"epochs": 1})
    assert one["losses"] == two["losses"]
    assert torch.equal(state, torch.random.get_rng_state())
    three = fit_cost(safety_pairs(), TINY, None, tmp_path / "three", **FAST | {"epochs": 1, "seed": 1})
    assert three["losses"] != one["losses"]


def test_model_in_memory_keeps_its_weights_where_a_trunk_is_taken(tmp_path: Path) -> None:
    from textsafe_gym.fitting.start import causal_model

    model, tokenizer = causal_model(TINY, None, [answer for _, answer in DEMONSTRATIONS], "cpu")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fit_cost(safety_pairs(), model, tokenizer, tmp_path / "cost", **FAST | {"epochs": 1})
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    fit_sft(DEMONSTRATIONS, model, tokenizer, tmp_path / "sft", **FAST | {"epochs": 1})
    assert not all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ModelError, match="tokenizer"):
        fit_sft(DEMONSTRATIONS, model, None, tmp_path / "no", **FAST)


def test_a_plain_sentence_where_tfidf_is_better() -> None:
    from textsafe_gym.fitting.held_out import verdicts

    held_out = {"transformer": {"ranking_accuracy": 0.6, "auc": 0.9}, "tfidf": {"ranking_accuracy": 0.7, "auc": 0.8}}
    assert verdicts(held_out) == [
        "TF-IDF with logistic regression beats the transformer in ranking accuracy: 0.700 against 0.600."
    ]


@pytest.mark.parametrize(
    ("error", "rows", "model", "options"),
    [
        (DataError, [], TINY, {}),
        (DataError, [Labelled("p", "r", True)] * 2 + [Labelled("q", "r", True)], TINY, {"test_fraction": 0.0}),
        (DataError, [Preference("p", "a", "b")], TINY, {"test_fraction": 0.0}),
        (DataError, [SafetyPreference("p", "a", "b", False, True)], TINY, {}),
        (DataError, [("p", "r")], TINY, {}),
        (ConfigError, safety_pairs(), "tiny:hiden=3", {}),
        (ConfigError, safety_pairs(), "tiny:hidden=30", {}),
        (ConfigError, safety_pairs(), "tiny:vocab=100", {}),
        (ConfigError, safety_pairs(), TINY, {"learning_rate": 0.0}),
        (ConfigError, safety_pairs(), TINY, {"learning_rate": float("nan")}),
        (ConfigError, safety_pairs(), TINY, {"epochs": -1}),
        (ConfigError, safety_pairs(), TINY, {"minibatch_size": 0}),
        (ConfigError, safety_pairs(), TINY, {"test_fraction": 1.0}),
        (ConfigError, safety_pairs(), TINY, {"regularization": -1.0}),
        (ConfigError, safety_pairs(), TINY, {"learning_rate": 1e30}),
        (ModelError, safety_pairs(), "/no/such/folder", {}),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, error: type[Exception], rows: list, model: str, options: dict) -> None:
    with pytest.raises(error) as caught:
        fit_cost(rows, model, None, tmp_path / "deep" / "out", **FAST | options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_output_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("x")
    for name in ("file", "full", "file/below"):
        with pytest.raises(RunError):
            fit_sft(DEMONSTRATIONS, TINY, None, tmp_path / name, **FAST)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thing"]
    (tmp_path / "empty").mkdir()
    fit_sft(DEMONSTRATIONS, TINY, None, tmp_path / "empty", **FAST | {"epochs": 0})
    assert (tmp_path / "empty" / "metrics.json").is_file()


def test_command_line(tmp_path: Path) -> None:
    pair = {"prompt": "p", "response_0": "calm", "response_1": "boom", "safer_response_id": 0}
    labels = {"is_response_0_safe": True, "is_response_1_safe": False}
    rows = [pair | labels | {"prompt": f"question {i}"} for i in range(40)]
    inconsistent = pair | {"is_response_0_safe": False, "is_response_1_safe": True}
    data = tmp_path / "pairs.jsonl"
    write_rows(data, [*rows, inconsistent])
    command = ["fit", "cost", "--data", str(data), "--model", TINY, "--out", str(tmp_path / "out"), "--epochs", "1"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert f"{data}:41" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, [*command, "--skip-inconsistent", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["skipped_inconsistent"] == 1
    shown = CliRunner().invoke(main, [*command[:-3], str(tmp_path / "again"), "--epochs", "1", "--skip-inconsistent"])
    assert "tfidf" in shown.stdout
    assert "1 inconsistent rows were left out" in shown.stdout
