"""Fits a policy to demonstrations, and reward and cost models to preferences or labels; the command line's `fit`.

Sources: the losses and defaults of Safe RLHF (arXiv 2310.12773) and its official implementation.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textsafe_gym.data.readers import Labelled, SafetyPreference, ScoreRow
from textsafe_gym.data.splits import split_by_prompt
from textsafe_gym.errors import ConfigError, DataError
from textsafe_gym.files import Row, write_json
from textsafe_gym.fitting.held_out import TRANSFORMER, Transformer, compare_with_baselines, measure, questions, verdicts
from textsafe_gym.fitting.losses import LossType, cost_loss, label_loss, reward_loss
from textsafe_gym.fitting.output import (
    METRICS_FILE,
    check_lora,
    check_output,
    check_settings,
    default_device,
    write_fit_card,
)
from textsafe_gym.fitting.sft import fit_sft
from textsafe_gym.fitting.start import score_model
from textsafe_gym.fitting.training import train
from textsafe_gym.models.encoding import pad
from textsafe_gym.models.files import new_directory
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.models.texts import answers_ids
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fit_cost", "fit_reward", "fit_score", "fit_sft"]


def fit_reward(
    rows: Sequence[ScoreRow],
    model: "str | Path | PreTrainedModel",
    tokenizer: Tokenizer | None,
    out: str | Path,
    **options: Any,
) -> Row:
    """Fits a reward model to `Preference` or `Labelled` rows (label: good), or to both; arguments as in `fit_score`."""
    return fit_score("reward", rows, model, tokenizer, out, **options)


def fit_cost(
    rows: Sequence[ScoreRow],
    model: "str | Path | PreTrainedModel",
    tokenizer: Tokenizer | None,
    out: str | Path,
    **options: Any,
) -> Row:
    """Fits a cost model to `SafetyPreference` or `Labelled` rows (label: unsafe); arguments as in `fit_score`.

    `Preference` rows may stand next to them (better: safer): they teach the order, the others where zero lies.
    """
    return fit_score("cost", rows, model, tokenizer, out, **options)


def fit_score(
    kind: Literal["reward", "cost"],
    rows: Sequence[ScoreRow],
    model: "str | Path | PreTrainedModel",
    tokenizer: Tokenizer | None,
    out: str | Path,
    *,
    loss: LossType = "sequence",
    regularization: float = 0.001,
    epochs: int = 2,
    learning_rate: float = 2e-5,
    minibatch_size: int = 16,
    seed: int = 0,
    test_fraction: float = 0.1,
    max_length: int = 512,
    sources: Sequence[str] = (),
    skipped: int = 0,
    lora_rank: int | None = None,
    device: str | None = None,
    progress: bool = True,
    data: Mapping[str, int] | None = None,
) -> Row:
    """Fits a reward or cost model, measures it next to baselines on held-out prompts, and saves it.

    Args:
        kind: "reward" or "cost".
        rows: what to fit; split by prompt into training and held-out rows.
        model: a folder, a hub id, "tiny[:sizes]", or a model in memory; its trunk is taken and a new head put on it.
        tokenizer: None to take the one next to the model.
        out: the folder to write; it must not exist yet, or be empty.
        loss: "sequence" or "token", for pairs.
        regularization: μ, the weight of squared scores.
        epochs: passes over the training rows.
        learning_rate: its peak.
        minibatch_size: rows a step.
        seed: of the split, of new weights and of the order of rows.
        test_fraction: the share of prompts that are held out; 0 for none, and then there are no baselines either.
        max_length: in tokens; longer sequences lose tokens from the left.
        sources: where each row came from, for metrics by source; empty if that does not matter.
        skipped: how many inconsistent rows the reader left out, for the record.
        lora_rank: fits a LoRA of that rank and the head alone, and saves those in PEFT's format; `model`
            has to be a folder or hub id.
        device: a torch device; by default a GPU if there is one.
        progress: show progress bars.
        data: from each file or hub data set to the number of its rows, for the model card.

    Returns:
        What `metrics.json` in `out` holds: "kind", "rows", "prompts", "train", "held_out", "intervals", "verdicts",
        "losses", "normaliser", "seconds", "settings".

    Raises:
        DataError: too few rows, or rows of only one label.
        ConfigError: a value out of its range.
        ModelError: the model cannot be loaded or written.
        RunError: `out` cannot be written.
    """
    started = time.monotonic()
    check_settings(epochs, learning_rate, minibatch_size, test_fraction, max_length)
    if not regularization >= 0:
        raise ConfigError(f"regularization must be at least 0, got {regularization}")
    check_lora(model, lora_rank)
    check_output(out)
    _check_rows(kind, rows)
    numbered = list(enumerate(rows))
    train_pairs, test_pairs = split_by_prompt(numbered, lambda item: item[1].prompt, test_fraction, seed)
    train_rows, test_rows = [row for _, row in train_pairs], [row for _, row in test_pairs]
    _check_labels(kind, train_rows)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = (text for row in train_rows for text in [row.prompt, *_answers(row)])
        score = score_model(model, tokenizer, kind, list(texts), default_device(device), lora_rank)
        score.max_length = min(max_length, score.max_length or max_length)
        encoded = [answers_ids(score.tokenizer, row.prompt, _answers(row), score.max_length) for row in train_rows]
        losses = train(
            score.model,
            lambda batch: _batch_loss(
                score, [train_rows[i] for i in batch], [encoded[i] for i in batch], loss, regularization
            ),
            [max(map(len, ids)) for ids in encoded],
            [type(row) for row in train_rows],
            epochs=epochs,
            learning_rate=learning_rate,
            minibatch_size=minibatch_size,
            seed=seed,
            title=f"fitting the {kind} model",
            progress=progress,
        )

    known: dict[tuple[str, str], float] = {}

    def raw(prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Scores before any normaliser is set; every text is scored once, however often it is asked for."""
        pairs = list(zip(prompts, responses, strict=True))
        new = [key for key in dict.fromkeys(pairs) if key not in known]
        known.update(zip(new, score([key[0] for key in new], [key[1] for key in new]), strict=True))
        return np.array([known[key] for key in pairs])

    train_questions = questions(train_rows, kind)
    of_training = [(row.prompt, answer) for row in train_rows for answer in _answers(row)]
    training_scores = raw([prompt for prompt, _ in of_training], [answer for _, answer in of_training])
    metrics: Row = {
        "kind": kind,
        "rows": {"train": len(train_rows), "held_out": len(test_rows), "skipped_inconsistent": skipped},
        "prompts": {"train": len({r.prompt for r in train_rows}), "held_out": len({r.prompt for r in test_rows})},
        "train": {TRANSFORMER: measure(Transformer(raw), *train_questions, intervals=False)[0]},
    }
    if test_rows:
        test_sources = [sources[i] for i, _ in test_pairs] if sources else []
        metrics |= compare_with_baselines(kind, raw, train_rows, test_rows, test_sources)
        metrics["verdicts"] = verdicts(metrics["held_out"])
    spread = float(training_scores.std())
    # The mean only of rewards: a cost of zero separates safe from harmful and has to stay where it is.
    score.set_normaliser(float(training_scores.mean()) if kind == "reward" else 0.0, spread + 1e-8)
    metrics |= {
        "losses": losses,
        "normaliser": {"mean": score.mean, "std": score.std},
        "parameters": sum(p.numel() for p in score.model.parameters()),
        "seconds": time.monotonic() - started,
        "settings": {
            "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
            "loss": loss,
            "regularization": regularization,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "minibatch_size": minibatch_size,
            "seed": seed,
            "test_fraction": test_fraction,
            "max_length": max_length,
            "lora_rank": lora_rank,
        },
    }
    with new_directory(out) as scratch:
        score.save(scratch)
        write_json(scratch / METRICS_FILE, metrics)
        write_fit_card(scratch, metrics, model, data)
    return metrics


def _answers(row: ScoreRow) -> tuple[str, ...]:
    if isinstance(row, Labelled):
        return (row.response,)
    if isinstance(row, SafetyPreference):
        return row.safer, row.other
    return row.better, row.worse


def _batch_loss(
    score: ScoreModel,
    rows: Sequence[ScoreRow],
    encoded: Sequence[list[list[int]]],
    loss: LossType,
    regularization: float,
) -> Tensor:
    """The loss of rows of one type."""
    device = score.model.device
    # All first answers, then all second ones: one forward pass, and one width for both.
    ids, mask = pad([row[side] for side in range(len(encoded[0])) for row in encoded], score.tokenizer.eos_token_id)
    ids, mask = ids.to(device), mask.to(device)
    scores = score.token_scores(ids)
    if isinstance(rows[0], Labelled):
        labels = torch.tensor([row.label for row in rows if isinstance(row, Labelled)], device=device)
        return label_loss(scores, mask, labels, regularization)
    # (first, second) of scores, ids and masks: safer and other, or better and worse.
    (score_1, score_2), (ids_1, ids_2), (mask_1, mask_2) = scores.chunk(2), ids.chunk(2), mask.chunk(2)
    if isinstance(rows[0], SafetyPreference):
        pairs = [row for row in rows if isinstance(row, SafetyPreference)]
        safe_1 = torch.tensor([row.safer_is_safe for row in pairs], device=device)
        safe_2 = torch.tensor([row.other_is_safe for row in pairs], device=device)
        return cost_loss(score_1, score_2, ids_1, ids_2, mask_1, mask_2, safe_1, safe_2, loss, regularization)
    if score.kind == "cost":  # the better answer is the safer one, which costs less
        return reward_loss(score_2, score_1, ids_2, ids_1, mask_2, mask_1, loss, regularization)
    return reward_loss(score_1, score_2, ids_1, ids_2, mask_1, mask_2, loss, regularization)


def _check_rows(kind: str, rows: Sequence[ScoreRow]) -> None:
    if not rows:
        raise DataError(f"no rows to fit a {kind} model on; give at least one")
    for number, row in enumerate(rows):
        if not isinstance(row, ScoreRow) or (kind == "reward" and isinstance(row, SafetyPreference)):
            raise DataError(f"row {number}: a {kind} model cannot be fitted on {type(row).__name__}")
        if isinstance(row, SafetyPreference) and not row.consistent:
            raise DataError(f"row {number}: inconsistent: the safer answer is labelled unsafe and the other safe")


def _check_labels(kind: str, rows: Sequence[ScoreRow]) -> None:
    labels = [single.label for single in questions(rows, kind)[1]]
    meaning = "good" if kind == "reward" else "unsafe"
    if labels and len(set(labels)) == 1:
        word = "every" if labels[0] else "no"
        raise DataError(f"{word} training answer is labelled {meaning}; a {kind} model needs answers of both labels")
    if kind == "cost" and not labels:
        raise DataError("a cost model needs safety labels, which say where its zero lies; these rows have none")
