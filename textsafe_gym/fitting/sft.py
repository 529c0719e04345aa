"""Supervised fine-tuning of a policy on demonstrations, next to n-gram baselines."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from textsafe_gym.data.splits import split_by_prompt
from textsafe_gym.errors import DataError
from textsafe_gym.files import Row, write_json
from textsafe_gym.fitting.output import (
    METRICS_FILE,
    check_lora,
    check_output,
    check_settings,
    default_device,
    write_fit_card,
)
from textsafe_gym.fitting.start import causal_model
from textsafe_gym.fitting.training import chunks_by_length, train
from textsafe_gym.models import lora
from textsafe_gym.models.encoding import pad
from textsafe_gym.models.files import new_directory, quiet
from textsafe_gym.models.sampling import logits_at
from textsafe_gym.models.texts import encode, prompt_ids
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LORA = "sft"
_IGNORED = -100
_EVALUATION_BATCH = 32


def fit_sft(
    rows: Sequence[tuple[str, str]],
    model: "str | Path | PreTrainedModel",
    tokenizer: Tokenizer | None,
    out: str | Path,
    *,
    epochs: int = 3,
    learning_rate: float = 2e-5,
    minibatch_size: int = 16,
    seed: int = 0,
    test_fraction: float = 0.1,
    max_length: int = 512,
    lora_rank: int | None = None,
    device: str | None = None,
    progress: bool = True,
    data: Mapping[str, int] | None = None,
) -> Row:
    """Fits a causal language model to the responses of demonstrations and saves it in Hugging Face's format.

    Args:
        rows: (prompt, response) pairs; split by prompt into training and held-out rows.
        model: a folder, a hub id, "tiny[:sizes]", or a model in memory (which is trained in place).
        tokenizer: None to take the one next to the model, or to learn one from the training rows for "tiny".
        out: the folder to write; it must not exist yet, or be empty.
        epochs: passes over the training rows.
        learning_rate: its peak.
        minibatch_size: rows a step.
        seed: of the split, of new weights and of the order of rows.
        test_fraction: the share of prompts that are held out; 0 for none.
        max_length: in tokens, of prompt and response; see `encode_demonstration`.
        lora_rank: fits a LoRA of that rank alone and saves it in PEFT's format; `model` has to be a folder
            or hub id.
        device: a torch device; by default a GPU if there is one.
        progress: show a progress bar.
        data: from each file or hub data set to the number of its rows, for the model card.

    Returns:
        What `metrics.json` in `out` holds; "held_out" has, for the transformer (before and after) and for unigram and
        bigram baselines, "loss" in nats a response token (its end included) and "perplexity".

    Raises:
        DataError: no rows.
        ConfigError: a value out of its range.
        ModelError: the model cannot be loaded or written.
        RunError: `out` cannot be written.
    """
    started = time.monotonic()
    check_settings(epochs, learning_rate, minibatch_size, test_fraction, max_length)
    check_lora(model, lora_rank)
    check_output(out)
    if not rows:
        raise DataError("no demonstrations to fit on; give at least one")
    train_rows, test_rows = split_by_prompt(rows, lambda row: row[0], test_fraction, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, tokenizer = causal_model(
            model, tokenizer, [text for row in train_rows for text in row], default_device(device)
        )
        if lora_rank is not None:
            lora.add_new(network, _LORA, lora_rank, 2 * lora_rank)
            lora.train(network, _LORA)
        limit = min(max_length, getattr(network.config, "max_position_embeddings", None) or max_length)
        encoded = [encode_demonstration(tokenizer, *row, limit) for row in train_rows]
        held_out = [encode_demonstration(tokenizer, *row, limit) for row in test_rows]
        before = evaluate_loss(network, held_out) if held_out else None
        losses = train(
            network,
            lambda batch: response_loss(network, [encoded[i] for i in batch]),
            [len(prompt) + len(response) for prompt, response in encoded],
            [None] * len(encoded),
            epochs=epochs,
            learning_rate=learning_rate,
            minibatch_size=minibatch_size,
            seed=seed,
            title="fitting the policy",
            progress=progress,
        )
    network.eval()
    metrics: Row = {
        "kind": "sft",
        "rows": {"train": len(train_rows), "held_out": len(test_rows)},
        "prompts": {"train": len({row[0] for row in train_rows}), "held_out": len({row[0] for row in test_rows})},
    }
    if before is not None:
        found = {"transformer": evaluate_loss(network, held_out), "before fitting": before}
        found |= ngram_losses([r for _, r in encoded], [r for _, r in held_out], len(tokenizer))
        metrics["held_out"] = {name: {"loss": x, "perplexity": math.exp(x)} for name, x in found.items()}
        metrics["verdicts"] = [
            f"The {name} baseline beats the transformer: {found[name]:.3f} nats a token against "
            f"{found['transformer']:.3f}."
            for name in ("unigram", "bigram")
            if found[name] <= found["transformer"]
        ]
    metrics |= {
        "losses": losses,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": time.monotonic() - started,
        "settings": {
            "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "minibatch_size": minibatch_size,
            "seed": seed,
            "test_fraction": test_fraction,
            "max_length": max_length,
            "lora_rank": lora_rank,
        },
    }
    with new_directory(out) as scratch, quiet():
        if lora_rank is None:
            network.save_pretrained(scratch)
        else:
            lora.save_lora(network, _LORA, scratch, "CAUSAL_LM", {})
        tokenizer.save_pretrained(scratch)
        write_json(scratch / METRICS_FILE, metrics)
        write_fit_card(scratch, metrics, model, data)
    return metrics


def encode_demonstration(
    tokenizer: Tokenizer, prompt: str, response: str, max_length: int
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, the latter with its EOS.

    What is too long for `max_length` loses the response's end (and then has no EOS to learn) until half of the room
    is left for the prompt, which loses its beginning as in `prompt_ids`.
    """
    (before,), (after,) = prompt_ids(tokenizer, [prompt]), encode(tokenizer, [response])
    after = [*after, tokenizer.eos_token_id][: max_length - min(len(before), max_length // 2)]
    return prompt_ids(tokenizer, [prompt], max_length - len(after))[0], after


def response_loss(
    network: "PreTrainedModel", rows: Sequence[tuple[list[int], list[int]]], reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of the responses' tokens, in nats; the mean over all of the batch, or their sum.

    Args:
        network: a causal language model.
        rows: (prompt ids, response ids).
        reduction: "mean" or "sum".
    """
    ids, mask = pad([prompt + response for prompt, response in rows], 0)
    labels, _ = pad([[_IGNORED] * len(prompt) + response for prompt, response in rows], _IGNORED)
    device = network.device
    wanted = (labels[:, 1:] != _IGNORED).to(device)
    # Logits only where a response token is predicted: they are the bulk of memory and time.
    where = torch.cat([wanted, torch.zeros_like(wanted[:, :1])], dim=1)
    logits, _ = logits_at(network, where, input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return cross_entropy(logits.float(), labels[:, 1:].to(device)[wanted], reduction=reduction)


@torch.no_grad()
def evaluate_loss(network: "PreTrainedModel", rows: Sequence[tuple[list[int], list[int]]]) -> float:
    """Mean cross-entropy over all response tokens of (prompt ids, response ids), in nats."""
    network.eval()
    total = 0.0
    for chunk in chunks_by_length([len(prompt) + len(response) for prompt, response in rows], _EVALUATION_BATCH):
        total += response_loss(network, [rows[i] for i in chunk], "sum").item()
    return total / sum(len(response) for _, response in rows)


def ngram_losses(train: Sequence[list[int]], test: Sequence[list[int]], vocabulary: int) -> dict[str, float]:
    """Mean cross-entropy of an add-one unigram model and of a bigram model that backs off to it (Witten-Bell).

    Args:
        train: response ids to count.
        test: response ids to predict.
        vocabulary: number of tokens.
    """
    start = -1
    singles = Counter(token for row in train for token in row)
    pairs = Counter(pair for row in train for pair in pairwise([start, *row]))
    contexts, followers = Counter[int](), Counter[int]()
    for (first, _), count in pairs.items():
        contexts[first] += count
        followers[first] += 1
    total = sum(singles.values())
    losses = {"unigram": 0.0, "bigram": 0.0}
    for row in test:
        for first, second in pairwise([start, *row]):
            unigram = (singles[second] + 1) / (total + vocabulary)
            seen = contexts[first] + followers[first]
            bigram = (pairs[first, second] + followers[first] * unigram) / seen if seen else unigram
            losses["unigram"] -= math.log(unigram)
            losses["bigram"] -= math.log(bigram)
    tokens = sum(map(len, test))
    return {name: loss / tokens for name, loss in losses.items()}
