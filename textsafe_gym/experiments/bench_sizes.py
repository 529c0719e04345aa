"""The sizes of what `textsafe bench` times; this loads no torch."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A job's sizes: episodes, tokens, and those of a Llama.

    The defaults are a job that other libraries have been timed on: 1.3 M parameters, 64 prompts of 32 tokens, 64 new
    tokens each.
    """

    batch: int = 64
    prompt_length: int = 32
    response_length: int = 64
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 344
    vocab: int = 2048

    def replace(self, **changes: int) -> "Sizes":
        """The same job but for some sizes."""
        return dataclasses.replace(self, **changes)

    @property
    def new_tokens(self) -> int:
        """Tokens that one iteration generates."""
        return self.batch * self.response_length
