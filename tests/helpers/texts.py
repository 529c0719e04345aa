"""Small tokenizers and scorers that tests of several parts share."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
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


def digest_scorer(salt: str) -> Any:
    """Scores in [-1, 1) that depend on every character of prompt and response, and on nothing else."""

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [f"{salt}|{prompt}|{response}" for prompt, response in zip(prompts, responses, strict=True)]
        words = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.array(words) / 2**31 - 1

    return score
