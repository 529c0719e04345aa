"""Small tokenizers and scorers that tests of several parts share."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["how", "do", "i", "bake", "bread", "fix", "a", "bike", "make", "poison", "first", "mix", "the", "flour"]
WORDS += ["sorry", "no", "yes", "please", "and", "water", ".", "?"]
PROMPTS = ["how do i bake bread ?", "fix a bike", "how do i make poison ?", "please"]


def word_tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """A word is a token, so texts and tokens correspond one to one."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", pad_token=pad)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """What a test says of processes that work together is not true of the next one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """22 words and <pad>, <eos>, <unk>."""
    return word_tokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges, like GPT-2's: one token is both padding and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token=None
    )


def digest_scorer(salt: str) -> Any:
    """Scores in [-1, 1) that depend on every character of prompt and response, and on nothing else."""

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [f"{salt}|{prompt}|{response}" for prompt, response in zip(prompts, responses, strict=True)]
        words = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.array(words) / 2**31 - 1

    return score


@pytest.fixture(scope="session")
def task_options(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Arguments of a small SafeRLHF-v0 that needs no model."""
    return {
        "prompts": PROMPTS,
        "tokenizer": tokenizer,
        "reward_model": digest_scorer("reward"),
        "cost_model": digest_scorer("cost"),
        "max_prompt_length": 7,
        "max_response_length": 5,
    }
