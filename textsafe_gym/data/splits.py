"""Splits by prompt, so that no prompt is both trained on and tested on."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from textsafe_gym.errors import DataError

T = TypeVar("T")


def prompt_position(prompt: str, seed: int = 0) -> float:
    """Where a prompt lies in [0, 1): a hash of its text and the seed, the same on every machine and in any order."""
    return text_hash(f"{seed}\n{prompt.strip()}") / 2**64


def text_hash(text: str) -> int:
    """A text's own number in [0, 2**64), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_by_prompt(
    rows: Sequence[T], prompt_of: Callable[[T], str], test_fraction: float, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Training and held-out rows; all rows of one prompt fall on one side, and adding rows never moves others.

    Args:
        rows: what to split.
        prompt_of: the prompt's text of a row.
        test_fraction: the expected share of *prompts* that are held out, in [0, 1).
        seed: another seed is another split.

    Raises:
        DataError: a side that should have rows has none.
    """
    train: list[T] = []
    test: list[T] = []
    for row in rows:
        (test if prompt_position(prompt_of(row), seed) < test_fraction else train).append(row)
    if not train or (test_fraction > 0 and not test):
        side = "held-out" if train else "training"
        raise DataError(
            f"splitting {len(rows)} rows by prompt at test fraction {test_fraction:g} leaves no {side} rows; "
            "give more prompts or another fraction"
        )
    return train, test
