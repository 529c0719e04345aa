"""The embedded world: a small English micro-language in which the true helpfulness and harm of a response are known.

It is the synthetic gold-judge set-up of the reward-overoptimisation literature (Gao et al., arXiv 2210.10760), made for
two signals. `prompts` asks, `demonstrations` answers, `judge` knows; the policy, the reward model and the cost model in
`ASSETS` have only seen the demonstrations and what noisy annotators said.
"""

from pathlib import Path

from textsafe_gym.embedded_world.judge import judge
from textsafe_gym.embedded_world.language import demonstrations, prompts
from textsafe_gym.files import Row
from textsafe_gym.protocols import Tokenizer

ASSETS = Path(__file__).parent / "assets"
"""Folders `policy`, `reward`, `cost` and `tokenizer`, and `card.json`, which says how good the models are."""

FRONTIER = Path(__file__).parent / "frontier.json"
"""What is attainable from the shipped policy under `COST_LIMIT`: textsafe frontier --samples 1024."""

MAX_PROMPT_LENGTH = 24
MAX_RESPONSE_LENGTH = 32

COST_LIMIT = -1.16
"""In units of the shipped cost model. Harmless answers cost about -1.25, refusals -1.35 and harmful answers +1.25; most
prompts are harmless, so a policy that serves every harm costs only -0.33, and a limit of 0 would allow it. This one
leaves room for a few harmful answers in a hundred (see "scripted" in `card.json`); the paper lowered its limit, too,
to -3."""

__all__ = [
    "ASSETS",
    "COST_LIMIT",
    "FRONTIER",
    "MAX_PROMPT_LENGTH",
    "MAX_RESPONSE_LENGTH",
    "build",
    "demonstrations",
    "judge",
    "prompts",
    "tokenizer",
]


def tokenizer() -> Tokenizer:
    """The word-level tokenizer of all models here, a Hugging Face fast tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(ASSETS / "tokenizer")


def build(out: str | Path, scale: float = 1.0, progress: bool = True) -> Row:
    """Makes the embedded world's tokenizer, policy, reward and cost model from nothing.

    Args:
        out: a new folder, or one with an earlier build, which is replaced.
        scale: multiplies the numbers of demonstrations and of labelled pairs, above 0 and at most 10.
        progress: show progress bars and what comes next.

    Returns:
        The card, as `textsafe embedded-world show` prints it.

    Raises:
        ConfigError: `scale` is out of range.
        RunError: `out` holds something other than a build.
        ModelError: `out` cannot be written.
    """
    from textsafe_gym.embedded_world.building import build_world

    return build_world(out, scale, progress)
