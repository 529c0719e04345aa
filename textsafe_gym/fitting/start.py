"""What a fit starts from: a saved model, one in memory, or a new tiny one with a tokenizer learned from the data."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.fitting.output import is_tiny
from textsafe_gym.models import lora
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.protocols import Tokenizer
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = {"hidden": 128, "layers": 4, "heads": 4, "vocab": 4096, "length": 512}
"""Sizes of a new model, and of its tokenizer's vocabulary; "length" is the longest sequence that it takes."""


def causal_model(
    model: "str | Path | PreTrainedModel", tokenizer: Tokenizer | None, texts: Sequence[str], device: str
) -> "tuple[PreTrainedModel, Tokenizer]":
    """A causal language model and its tokenizer.

    Args:
        model: a folder or hub id, "tiny" or "tiny:hidden=128,layers=4" (see `TINY`), or a model in memory (which is
            trained in place).
        tokenizer: None to take the one next to the model, or to learn one from `texts` for a tiny model.
        texts: training texts.
        device: a torch device.

    Raises:
        ConfigError: malformed sizes.
        ModelError: the model is missing, corrupt or needs a tokenizer.
    """
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ModelError(f"a {type(model).__name__} in memory has no tokenizer; give one")
        given: Any = model  # whose `to` is typed as a method of no object
        return given.to(device), tokenizer
    if is_tiny(model):
        return _tiny(str(model), tokenizer, texts, device)
    tokenizer = tokenizer or lora.tokenizer_of(model, "language model")
    return lora.load_causal_lm(model, "language model", device, "float32"), tokenizer


def score_model(
    model: "str | Path | PreTrainedModel",
    tokenizer: Tokenizer | None,
    kind: Literal["reward", "cost"],
    texts: Sequence[str],
    device: str,
    lora_rank: int | None = None,
) -> ScoreModel:
    """A score model with a head at zero on the trunk of what `model` names; arguments as in `causal_model`.

    With `lora_rank` the trunk is frozen and has a LoRA of that rank; see `check_lora` for what it needs.
    """
    if lora_rank is not None:
        assert isinstance(model, str | Path)  # see `check_lora`
        return ScoreModel.on_lora(model, kind, lora_rank, device)
    if isinstance(model, str | Path) and not is_tiny(model) and not lora.is_lora(model):
        return ScoreModel.on_trunk(model, kind, device)
    from transformers import AutoModelForSequenceClassification

    causal, tokenizer = causal_model(model, tokenizer, texts, device)
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    try:
        classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ModelError(f"{type(causal).__name__} has no sequence classifier in transformers; take another") from None
    classifier.base_model.load_state_dict(causal.base_model.state_dict())
    score = ScoreModel(classifier.to(device), tokenizer, kind)
    nn.init.zeros_(score.model.score.weight)
    return score


def _tiny(
    spec: str, tokenizer: Tokenizer | None, texts: Sequence[str], device: str
) -> "tuple[PreTrainedModel, Tokenizer]":
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = _sizes(spec)
    tokenizer = tokenizer or _byte_pair_tokenizer(texts, sizes["vocab"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes["hidden"],
        intermediate_size=4 * sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["length"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network: Any = LlamaForCausalLM(config)
    return network.to(device), tokenizer


def _sizes(spec: str) -> dict[str, int]:
    sizes = dict(TINY)
    for part in filter(None, spec.removeprefix("tiny").removeprefix(":").split(",")):
        key, _, value = (x.strip() for x in part.partition("="))
        if key not in sizes:
            raise ConfigError(f"model '{spec}': unknown size '{key}'; {nearest(key, list(sizes))}")
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise ConfigError(f"model '{spec}': {key} must be a positive whole number, got '{value}'")
        sizes[key] = int(value)
    if sizes["hidden"] % (2 * sizes["heads"]):
        raise ConfigError(f"model '{spec}': hidden must be a multiple of twice the heads ({sizes['heads']})")
    if sizes["vocab"] < 258:
        raise ConfigError(f"model '{spec}': vocab must be at least 258 (256 bytes, <pad> and <eos>)")
    return sizes


def _byte_pair_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE tokenizer (no text is unknown to it) with <pad> and <eos> apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
