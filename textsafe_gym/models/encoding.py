"""Padded batches of token ids, and whether two tokenizers agree on what ids mean; `texts` makes the ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from textsafe_gym.errors import ModelError
from textsafe_gym.models.texts import pair_ids, prompt_ids
from textsafe_gym.protocols import Tokenizer


def pad(rows: Sequence[Sequence[int]], fill: int, left: bool = False, width: int = 0) -> tuple[Tensor, Tensor]:
    """Stacks rows of ids.

    Args:
        rows: n lists of ids.
        fill: the id in the gaps; what it is does not matter, since the mask says where they are.
        left: pad on the left.
        width: at least so many columns.

    Returns:
        ids: (n, L) int64, L the longest row's length or `width`.
        mask: (n, L) int64, 1 on the rows' own ids.
    """
    width = max([width, *(len(row) for row in rows)])
    ids = torch.full((len(rows), width), fill, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
        mask[i, where] = 1
    return ids, mask


def encode_pairs(
    tokenizer: Tokenizer, prompts: Sequence[str], responses: Sequence[str], max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The rows of `pair_ids`, right-padded.

    Returns:
        input_ids, attention_mask: (n, L) int64.
    """
    return pad(pair_ids(tokenizer, prompts, responses, max_length), tokenizer.eos_token_id)


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The rows of `prompt_ids`, left-padded, for generation.

    Returns:
        input_ids, attention_mask: (n, L) int64.

    Raises:
        ModelError: a prompt has no tokens, or the chat template leaves it no room.
    """
    rows = prompt_ids(tokenizer, prompts, max_length)
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ModelError(f"the prompt {prompt!r} has no tokens; give at least one word")
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pad(rows, fill, left=True)


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give every id the same meaning, the end of sequence included."""
    if one is other:
        return True
    return one.eos_token_id == other.eos_token_id and one.get_vocab() == other.get_vocab()


def vocabulary_name(tokenizer: Tokenizer) -> str:
    """A tokenizer's origin and size, for messages."""
    where = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return f"'{where}' ({len(tokenizer.get_vocab())} tokens)"


def vocabularies_differ(policy: Tokenizer, env: Tokenizer) -> str:
    """What to say of a policy whose tokenizer is not the environment's."""
    return (
        f"the policy's tokenizer {vocabulary_name(policy)} and the environment's {vocabulary_name(env)} differ; "
        "give both the same one, for example tokenizer=<the policy's folder>"
    )


def rows_at_once(length: int, device: torch.device) -> int:
    """How many sequences of so many tokens a pass without gradients takes best: what a cache holds, or fills a GPU."""
    return max(1, (2**11 if device.type == "cpu" else 2**15) // length)
