"""Sampling whole responses from a causal LM with a preallocated key-value cache."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from textsafe_gym.errors import ModelError
from textsafe_gym.models.encoding import encode_prompts
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows that have ended are dropped from the batch once they are this fraction of it.
_COMPACT_AT = 0.25
_BLOCK = 64  # tokens that are summed up together to find the one that was drawn


class PreallocatedLayer(DynamicLayer):
    """One layer's cache that writes into a buffer of fixed capacity instead of concatenating at every step."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
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
        """Keeps the rows of an index, in its order; one may come several times."""
        self.key_buffer, self.value_buffer = (
            self._rows(self.key_buffer, beam_idx),
            self._rows(self.value_buffer, beam_idx),
        )
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    def _rows(self, buffer: Tensor, index: Tensor) -> Tensor:
        picked = buffer.new_empty(len(index), *buffer.shape[1:])
        picked[:, :, : self.length] = buffer[index, :, : self.length]
        return picked


def make_cache(model: "PreTrainedModel", capacity: int) -> DynamicCache:
    """An empty cache for `model`; layers that transformers treats specially (sliding, linear) stay its own."""
    empty = DynamicCache(config=model.config)
    empty.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in empty.layers]
    return empty


def positions(attention_mask: Tensor) -> Tensor:
    """(B, L) int64: each token's place in its own sequence, so that padding moves nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def model_inputs(model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """A forward pass's inputs: ids (B, L), the mask of all so far (B, >= L), and positions if it takes them.

    Without padding the ids alone say it all, and every layer is spared the mask.
    """
    if bool(attention_mask.all()):
        return {"input_ids": input_ids}
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if _takes_positions(type(model).forward):
        inputs["position_ids"] = positions(attention_mask)[:, -input_ids.shape[1] :]
    return inputs


@cache
def _takes_positions(forward: Callable[..., object]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


def logits_at(model: "PreTrainedModel", where: Tensor, **inputs: object) -> tuple[Tensor, Tensor]:
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
    with packing(model, lambda states: states[where]) as packed:
        return model(**inputs).logits, packed[0]


def states_at(model: "PreTrainedModel", where: Tensor, **inputs: object) -> Tensor:
    """`hidden` of `logits_at`, without computing any logits."""
    with packing(model, lambda states: states[where], logits=False) as packed:
        model(**inputs)
    return packed[0]


@contextmanager
def packing(model: "PreTrainedModel", pick: Callable[[Tensor], Tensor], logits: bool = True) -> Iterator[list[Tensor]]:
    """In the block, passes compute logits of what `pick` takes of the states (B, L, H) alone, or no logits at all.

    Yields:
        A list that each pass replaces by one tensor, what `pick` took.
    """
    packed: list[Tensor] = []

    def pack(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        packed[:] = [pick(args[0])]
        return (packed[0] if logits else packed[0][:0], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pack)
    try:
        yield packed
    finally:
        handle.remove()


def last(states: Tensor) -> Tensor:
    """(B, H) of (B, L, H): the state at the last position of each row."""
    return states[:, -1]


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """(n, steps) float64 in [0, 1); a row follows from its own seed alone."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(steps) for seed in seeds]))


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Samples softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits: (n, V).
        uniform: (n,) float64 in [0, 1).
        temperature: above 0.

    Returns:
        tokens: (n,) int64.
        log_probs: (n,) float32, of the tokens under that softmax.

    Raises:
        ModelError: the logits are not finite.
    """
    p = torch.softmax(logits.float() if temperature == 1 else logits.float() / temperature, dim=-1)
    # In float64, as the tail of a large vocabulary would be rounded away; by blocks, so that such sums are few.
    missing = -p.shape[-1] % _BLOCK
    blocks = (torch.nn.functional.pad(p, (0, missing)) if missing else p).view(len(p), -1, _BLOCK)
    sums = blocks.sum(-1).double()
    upto = sums.cumsum(-1)
    total = upto[:, -1:]
    if not torch.isfinite(total).all():
        raise ModelError("the policy's logits are not finite; it has diverged or its weights are damaged")
    target = uniform[:, None] * total
    block = torch.searchsorted(upto, target, right=True)
    inside = blocks[torch.arange(len(p), device=p.device), block.squeeze(-1)].cumsum(-1, dtype=torch.float64)
    # Within the block's sum despite all rounding, so that the token is one that has a probability.
    end = inside[:, -1:]
    rest = (target - upto.gather(-1, block) + sums.gather(-1, block)).clamp_min(0).minimum(end.nextafter(0 * end))
    token = block * _BLOCK + torch.searchsorted(inside, rest, right=True)
    return token.squeeze(-1), p.gather(-1, token).squeeze(-1).log()


@dataclass(frozen=True)
class Generated:
    """B responses of at most T tokens.

    Attributes:
        tokens: (B, T) int64, EOS after the end.
        lengths: (B,) int64, the EOS included.
        log_probs: (B, T) float32, of the tokens under the distribution that they were sampled from, 0 after the end.
        states: (B, T, H), those before the output embedding that each token was predicted from; none unless asked for.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    states: Tensor | None


def generate(
    model: "PreTrainedModel",
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    vocab_size: int | None = None,
    keep_states: bool = False,
    lockstep: bool = False,
) -> Generated:
    """Samples one response a row until EOS or the budget.

    Row b's draws follow from `seeds[b]` alone, so a response does not depend on what else is in the batch, up to
    rounding in the model. A prompt that several rows share is read once.

    Args:
        model: a causal LM in eval mode.
        input_ids: (B, P) int64, left-padded prompts.
        attention_mask: (B, P), 1 on tokens.
        max_new_tokens: the budget T.
        eos_token_id: the token that ends a response; it counts as part of it.
        seeds: B non-negative integers.
        temperature: of the softmax.
        vocab_size: ids at or above it are never drawn (embeddings padded beyond the tokenizer).
        keep_states: whether to return the states.
        lockstep: a pass needs all processes, so that each goes on until the last of them has ended.

    Raises:
        ModelError: the logits are not finite, or prompt and budget exceed the model's positions.
    """
    arguments = (input_ids, attention_mask, max_new_tokens, eos_token_id, seeds, temperature, vocab_size)
    # Weights that are gathered in inference mode would be of no use outside of it.
    with torch.no_grad() if lockstep else torch.inference_mode(), packing(model, last) as packed:
        generated = _generate(model, packed, *arguments, keep_states, lockstep)
    # Tensors of inference mode are not good for what comes after, such as gradients.
    states = None if generated.states is None else generated.states.clone()
    return Generated(generated.tokens.clone(), generated.lengths.clone(), generated.log_probs.clone(), states)


def _generate(
    model: "PreTrainedModel",
    packed: list[Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_token_id: int,
    seeds: Sequence[int],
    temperature: float,
    vocab_size: int | None,
    keep_states: bool,
    lockstep: bool,
) -> Generated:
    device = model.device
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
    log_probs = torch.zeros(batch, max_new_tokens, device=device)
    chance = uniforms(seeds, max_new_tokens).to(device)
    past = make_cache(model, prompt + max_new_tokens)
    distinct, sharing = torch.unique(torch.stack([ids, mask], 1), dim=0, return_inverse=True)
    if len(distinct) == batch:
        distinct, sharing = torch.stack([ids, mask], 1), torch.arange(batch, device=device)
    inputs = model_inputs(model, distinct[:, 0], distinct[:, 1])
    logits = model(**inputs, past_key_values=past, use_cache=True).logits[sharing]
    hidden = packed[0][sharing]
    if len(distinct) < batch:
        for layer in past.layers:
            layer.reorder_cache(sharing)
    padded = not bool(mask.all())
    states = hidden.new_zeros(batch, max_new_tokens, hidden.shape[-1]) if keep_states else None
    # The mask of the whole episode: a row that has ended is never read again, so one that grows for all will do.
    mask = torch.cat([mask, mask.new_ones(batch, max_new_tokens)], 1)
    rows = torch.arange(batch, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        token, log_prob = draw(logits[:, :vocab_size], chance[rows, step], temperature)
        tokens[rows, step] = torch.where(done, eos_token_id, token)
        log_probs[rows, step] = log_prob.masked_fill(done, 0.0)
        if states is not None:
            states[rows, step] = hidden
        ended = (token == eos_token_id) & ~done
        lengths[rows[ended]] = step + 1
        done |= ended
        over = int(done.sum())
        going = over < len(rows)
        if step + 1 == max_new_tokens or not (_in_any(going, device) if lockstep else going):
            break
        if over >= _COMPACT_AT * len(rows) and len(rows) > 1:
            keep: Any = (~done).nonzero().squeeze(1) if going else rows.new_zeros(1)
            for layer in past.layers:
                layer.reorder_cache(keep)
            rows, mask, token, done = rows[keep], mask[keep], token[keep], done[keep]
        ids = token[:, None]
        inputs = model_inputs(model, ids, mask[:, : prompt + step + 1]) if padded else {"input_ids": ids}
        logits = model(**inputs, past_key_values=past, use_cache=True).logits
        hidden = packed[0]
    return Generated(tokens, lengths, log_probs, states)


def _in_any(so: bool, device: torch.device) -> bool:
    """Whether it is so in any process."""
    flag = torch.tensor(float(so), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def sample_responses(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    max_prompt_length: int | None = None,
    prompts_at_once: int = 256,
) -> list[str]:
    """Responses as text, to so many prompts at once; arguments as in `generate`, prompts truncated from the left."""
    responses: list[str] = []
    for start in range(0, len(prompts), prompts_at_once):
        part = slice(start, start + prompts_at_once)
        ids, mask = encode_prompts(tokenizer, prompts[part], max_prompt_length)
        generated = generate(
            model, ids, mask, max_new_tokens, tokenizer.eos_token_id, seeds[part], temperature, len(tokenizer)
        )
        rows = [row[:length] for row, length in zip(generated.tokens.tolist(), generated.lengths.tolist(), strict=True)]
        # As the environment decodes: without the final EOS, and with whatever other special token was generated.
        rows = [row[:-1] if row[-1] == tokenizer.eos_token_id else row for row in rows]
        responses += tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return responses
