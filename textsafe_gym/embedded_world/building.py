"""Builds the embedded world's models from nothing, with the code that users fit their own models with.

Tokenizer, SFT on the demonstrations, pairs sampled from that policy, annotators' labels in the form of PKU-SafeRLHF,
a reward and a cost model fitted to them; then the card, which holds all three against the gold judge.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from textsafe_gym.data.readers import read_score_data
from textsafe_gym.embedded_world import annotators, language
from textsafe_gym.embedded_world.card import CARD_FILE, gold_metrics
from textsafe_gym.embedded_world.preferences import sample_pairs
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.files import Row, write_json, write_rows
from textsafe_gym.models.cards import CARD as MODEL_CARD
from textsafe_gym.models.files import new_directory
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, INTERMEDIATE, LAYERS, HEADS, POSITIONS = 96, 192, 2, 4, 64
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")

DEMONSTRATIONS = 48_000
SFT_SETTINGS: Row = {"epochs": 1, "learning_rate": 4e-3, "minibatch_size": 32, "test_fraction": 0.02}
# Prompt and response together: a rambling demonstration never fits, and so never shows an end.
SFT_LENGTH = 50
PAIRS = 27_000
# Responses to each held-out prompt that the models are measured on.
SAMPLES = 16
SCORE_SETTINGS: Row = {"epochs": 3, "learning_rate": 1e-3, "minibatch_size": 32, "max_length": POSITIONS}


def build_world(out: str | Path, scale: float = 1.0, progress: bool = True) -> Row:
    """Builds everything in a new folder, which takes its place only when it is complete.

    Args:
        out: gets `tokenizer`, `policy`, `reward`, `cost` and `card.json`. An earlier build there is replaced.
        scale: multiplies the numbers of demonstrations and of labelled pairs; a small one makes poor models quickly.
        progress: show progress bars and what comes next.

    Returns:
        The card.

    Raises:
        ConfigError: `scale` is not above 0 and at most 10.
        RunError: `out` holds something other than a build.
        ModelError: `out` cannot be written.
    """
    if not (math.isfinite(scale) and 0 < scale <= 10):
        raise ConfigError(f"scale {scale}: must be above 0 and at most 10")
    target = Path(out)
    if target.exists() and not (target / CARD_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target}: holds something else than an earlier build; give a new folder")
    import torch

    # The matrices are tiny: a second thread wins little and, on a busy machine, costs a multiple in waiting.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _build(target, scale, progress)
    finally:
        torch.set_num_threads(threads)


def _build(target: Path, scale: float, progress: bool) -> Row:
    from textsafe_gym.fitting.fit import fit_cost, fit_reward
    from textsafe_gym.fitting.output import METRICS_FILE
    from textsafe_gym.fitting.sft import fit_sft

    started = time.monotonic()
    console = Console(stderr=True, quiet=not progress)
    with new_directory(target) as folder:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        rows = language.demonstrations(max(64, round(scale * DEMONSTRATIONS)))
        policy = fit_sft(
            rows, _new_model(tokenizer), tokenizer, folder / "policy",
            max_length=SFT_LENGTH, progress=progress, **SFT_SETTINGS,
        )  # fmt: skip
        console.print("sampling pairs from the policy")
        train, n = language.prompts("train"), max(128, round(scale * PAIRS))
        texts = [train[i % len(train)].text for i in range(n)]
        pairs = sample_pairs(folder / "policy", texts, np.random.SeedSequence(31).generate_state(2 * n))
        labels = [list(annotators.annotate(pairs, annotator)) for annotator in (0, 1)]
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "preferences.jsonl"
            write_rows(file, labels[0])
            rewards, costs = (read_score_data(file, "reward").rows, read_score_data(file, "cost").rows)
        trunk, shared = folder / "policy", {"progress": progress, **SCORE_SETTINGS}
        fitted = {
            "policy": policy,
            "reward": fit_reward(rewards, trunk, None, folder / "reward", **shared),
            "cost": fit_cost(costs, trunk, None, folder / "cost", **shared),
        }
        for kind, metrics in fitted.items():
            # The card holds them all; a folder's own copies would name the scratch folder that it was made in.
            metrics["settings"]["model"] = "LlamaForCausalLM" if kind == "policy" else "policy"
            (folder / kind / METRICS_FILE).unlink()
            (folder / kind / MODEL_CARD).unlink()
        console.print("measuring against the gold judge")
        card = {
            "scale": scale,
            "vocabulary": len(tokenizer),
            "prompts": {split: _counts(split) for split in ("train", "heldout")},
            "annotators": {
                "pairs": len(pairs),
                "noise": {"helpfulness": annotators.HELPFULNESS_NOISE, "harm": annotators.HARM_NOISE},
                "weight_spread": annotators.WEIGHT_SPREAD,
                "agreement": annotators.agreement(*labels),
                "paper": annotators.PAPER_AGREEMENT,
            },
            "fitted": fitted,
            **gold_metrics(folder, fitted, min(SAMPLES, max(2, round(scale * SAMPLES)))),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_json(folder / CARD_FILE, card)
    return card


def make_tokenizer() -> Tokenizer:
    """A word-level tokenizer over the world's vocabulary that gives back any of its texts as it was."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, *language.vocabulary()]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _new_model(tokenizer: Tokenizer) -> "PreTrainedModel":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def _counts(split: str) -> dict[str, int]:
    groups: Sequence[str] = [prompt.group for prompt in language.prompts(split)]
    return {"all": len(groups)} | {group: groups.count(group) for group in dict.fromkeys(groups)}
