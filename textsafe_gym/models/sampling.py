"""Sampling whole responses from a causal LM with a preallocated key-value cache."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from textsafe_gym.errors import ModelError
from textsafe_gym.models.encoding import encode_prompts

# Rows that have ended are dropped from the batch once they are this fraction of it.
_COMPACT_AT = 0.25


class PreallocatedLayer(DynamicLayer):
    """One layer's cache that writes into a buffer of fixed capacity instead of concatenating at every step."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, new, head_dim) states and returns views of all that is written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            size = (*key_states.shape[:2], self.capacity)
            self.key_buffer = key_states.new_empty(*size, key_states.shape[-1])
            self.value_buffer = value_states.new_empty(*size, value_states.shape[-1])
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows of an index, in its order."""
        self.key_buffer, self.value_buffer = self.key_buffer[beam_idx], self.value_buffer[beam_idx]
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]


def make_cache(model: Any, capacity: int) -> DynamicCache:
    """An empty cache for `model`; layers that transformers treats specially (sliding, linear) stay its own."""
    empty = DynamicCache(config=model.config)
    empty.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in empty.layers]
    return empty


def positions(attention_mask: Tensor) -> Tensor:
    """(B, L) int64: each token's place in its own sequence, so that padding moves nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def model_inputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """A forward pass's inputs: ids (B, L), the mask of all so far (B, >= L), and positions if it takes them."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if _takes_positions(type(model).forward):
        inputs["position_ids"] = positions(attention_mask)[:, -input_ids.shape[1] :]
    return inputs


@cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


def logits_at(model: Any, where: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    """A forward pass that computes logits only where they are needed.

    The hidden states are packed just before they enter the output embedding; whatever the architecture does to
    logits afterwards (scaling, soft-capping) still happens.

    Args:
        model: a causal LM.
        where: (B, L) bool over the positions of `input_ids`, with N true.
        **inputs: of the model's forward.

    Returns:
        logits: (N, vocabulary).
        hidden: (N, hidden size), the states that they were computed from.
    """
    packed: list[Tensor] = []

    def pack(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        packed.append(args[0][where])
        return (packed[0], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pack)
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    return logits, packed[0]


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """(n, steps) float64 in [0, 1); a row follows from its own seed alone."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(steps) for seed in seeds]))


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """Samples softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits: (n, V).
        uniform: (n,) float64 in [0, 1).
        temperature: above 0.

    Returns:
        (n,) int64.

    Raises:
        ModelError: the logits are not finite.
    """
    # Summed in float64: in float32 the tail of a large vocabulary would be rounded away.
    cdf = torch.softmax(logits.float() / temperature, dim=-1).cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    if not torch.isfinite(total).all():
        raise ModelError("the policy's logits are not finite; it has diverged or its weights are damaged")
    return torch.searchsorted(cdf, uniform[:, None] * total, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples one response a row until EOS or the budget.

    Row b's draws follow from `seeds[b]` alone, so a response does not depend on what else is in the batch, up to
    rounding in the model.

    Args:
        model: a causal LM in eval mode.
        input_ids: (B, P) int64, left-padded prompts.
        attention_mask: (B, P), 1 on tokens.
        max_new_tokens: the budget.
        eos_token_id: the token that ends a response; it counts as part of it.
        seeds: B non-negative integers.
        temperature: of the softmax.
        vocab_size: ids at or above it are never drawn (embeddings padded beyond the tokenizer).

    Returns:
        tokens: (B, max_new_tokens) int64, EOS after the end.
        lengths: (B,) int64.

    Raises:
        ModelError: the logits are not finite, or prompt and budget exceed the model's positions.
    """
    device = model.get_input_embeddings().weight.device
    pad = int(attention_mask.any(0).int().argmax())
    ids, mask = input_ids[:, pad:].to(device), attention_mask[:, pad:].to(device).long()
    batch, prompt = ids.shape
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt + max_new_tokens > limit:
        raise ModelError(
            f"a prompt of {prompt} tokens and a response of {max_new_tokens} exceed the model's {limit} positions; "
            "lower max_prompt_length or max_response_length"
        )
    tokens = torch.full((batch, max_new_tokens), eos_token_id, device=device)
    lengths = torch.full((batch,), max_new_tokens, device=device)
    chance = uniforms(seeds, max_new_tokens).to(device)
    past = make_cache(model, prompt + max_new_tokens)
    # The mask of the whole episode: a row that has ended is never read again, so one that grows for all will do.
    mask = torch.cat([mask, mask.new_ones(batch, max_new_tokens)], 1)
    rows = torch.arange(batch, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        where = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        where[:, -1] = True
        inputs = model_inputs(model, ids, mask[:, : prompt + step])
        logits, _ = logits_at(model, where, **inputs, past_key_values=past, use_cache=True)
        token = draw(logits[:, :vocab_size], chance[rows, step], temperature)
        tokens[rows, step] = torch.where(done, eos_token_id, token)
        ended = (token == eos_token_id) & ~done
        lengths[rows[ended]] = step + 1
        done |= ended
        over = int(done.sum())
        if over == len(rows):
            break
        if over >= _COMPACT_AT * len(rows):
            keep: Any = (~done).nonzero().squeeze(1)
            for layer in past.layers:
                layer.reorder_cache(keep)
            rows, mask, token, done = rows[keep], mask[keep], token[keep], done[keep]
        ids = token[:, None]
    return tokens, lengths


def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    max_prompt_length: int | None = None,
    batch_size: int = 256,
) -> list[str]:
    """Answers prompts with text; arguments as in `generate`, prompts truncated from the left."""
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        ids, mask = encode_prompts(tokenizer, prompts[part], max_prompt_length)
        tokens, lengths = generate(
            model, ids, mask, max_new_tokens, tokenizer.eos_token_id, seeds[part], temperature, len(tokenizer)
        )
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        # As the environment decodes: without the final EOS, and with whatever other special token was said.
        rows = [row[:-1] if row[-1] == tokenizer.eos_token_id else row for row in rows]
        answers += tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return answers
