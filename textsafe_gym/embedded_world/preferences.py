"""Pairs of responses sampled from a policy, and what a simulated annotator prefers of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from textsafe_gym.data.readers import Preference
from textsafe_gym.embedded_world import ASSETS, MAX_RESPONSE_LENGTH, annotators, language


def simulated_preferences(count: int, seed: int) -> list[Preference]:
    """Pairs of the shipped policy's responses to training prompts, as one annotator prefers them in helpfulness.

    Args:
        count: how many.
        seed: of prompts, responses and the annotator's noise.
    """
    train = language.prompts("train")
    draws = np.random.default_rng([seed, 37])
    pairs: list[annotators.Pair] = []
    while len(pairs) < count:  # pairs of equal responses are left out
        n = count - len(pairs)
        prompts = [train[i].text for i in draws.integers(len(train), size=n)]
        pairs += sample_pairs(ASSETS / "policy", prompts, draws.integers(2**32, size=2 * n, dtype=np.uint64))
    return [
        Preference(row["prompt"], row[f"response_{better}"], row[f"response_{1 - better}"])
        for row in annotators.annotate(pairs, seed=seed)
        for better in [row["better_response_id"]]
    ]


def sample_pairs(policy: Path, prompts: Sequence[str], seeds: np.ndarray) -> list[annotators.Pair]:
    """Pairs of different responses, sampled from a policy at temperature 1.

    Args:
        policy: its folder.
        prompts: n prompts; of one whose two responses are equal there is no pair.
        seeds: (2n,), of the first and then of the second responses.
    """
    from transformers import AutoModelForCausalLM

    from textsafe_gym.models.files import load_pretrained, load_tokenizer
    from textsafe_gym.models.sampling import sample_responses

    model = load_pretrained(AutoModelForCausalLM, policy, "policy")
    first, second = (
        sample_responses(model, load_tokenizer(policy, "policy"), prompts, MAX_RESPONSE_LENGTH, part.tolist())
        for part in (seeds[: len(prompts)], seeds[len(prompts) :])
    )
    return [pair for pair in zip(prompts, first, second, strict=True) if pair[1] != pair[2]]
