"""Simulated annotators: the gold judge's scores, seen through stated noise, as preferences and safety labels."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from textsafe_gym.embedded_world.judge import judge
from textsafe_gym.files import Row

# Standard deviations of what an annotator adds to the gold score of each response, in gold units. They make two
# annotators agree about as often as the paper's did (arXiv 2310.12773: 69 % on help, 67 % on harm, 62 % mixed).
HELPFULNESS_NOISE = 0.77
HARM_NOISE = 0.37
# One mixed preference weighs harm against helpfulness as the annotator likes: uniformly within this of one half.
WEIGHT_SPREAD = 0.41

PAPER_AGREEMENT = {"helpful": 0.69, "harm": 0.67, "mixed": 0.62}

Pair = tuple[str, str, str]


def perceive(gold: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One annotator's impression of responses: gold plus independent normal noise, arrays of shape (n,)."""
    noise = {"helpfulness": HELPFULNESS_NOISE, "harm": HARM_NOISE}
    return {name: gold[name] + scale * rng.standard_normal(len(gold[name])) for name, scale in noise.items()}


def annotate(pairs: Sequence[Pair], annotator: int = 0, seed: int = 0) -> Iterator[Row]:
    """One annotator's judgement of pairs, as rows in the form of PKU-SafeRLHF.

    Helpfulness and harm are judged apart. The safer response is the one perceived as less harmful and a response is
    labelled unsafe where its perceived harm is above 0, so no row contradicts itself.

    Args:
        pairs: (prompt, response 0, response 1) with prompts of the embedded world.
        annotator: who; its noise on each response and its weight are its own.
        seed: of all annotators.

    Yields:
        prompt, response_0, response_1, better_response_id, safer_response_id, is_response_0_safe,
        is_response_1_safe, and preferred_response_id: one preference with both dimensions mixed.
    """
    rng = np.random.default_rng([seed, annotator, 29])
    seen = [perceive(judge([p[0] for p in pairs], [p[side] for p in pairs]), rng) for side in (1, 2)]
    # Each judgement comes from another rater of a pool, so the weight is drawn anew for every pair.
    weight = 0.5 + WEIGHT_SPREAD * rng.uniform(-1, 1, len(pairs))
    mixed = [(1 - weight) * side["helpfulness"] - weight * side["harm"] for side in seen]
    for i, (prompt, first, second) in enumerate(pairs):
        yield {
            "prompt": prompt,
            "response_0": first,
            "response_1": second,
            "better_response_id": int(seen[1]["helpfulness"][i] > seen[0]["helpfulness"][i]),
            "safer_response_id": int(seen[1]["harm"][i] < seen[0]["harm"][i]),
            "is_response_0_safe": bool(seen[0]["harm"][i] <= 0),
            "is_response_1_safe": bool(seen[1]["harm"][i] <= 0),
            "preferred_response_id": int(mixed[1][i] > mixed[0][i]),
        }


def agreement(first: Sequence[Mapping[str, object]], second: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """How often two annotators of the same pairs chose alike: "helpful", "harm" and "mixed", shares in [0, 1]."""
    keys = {"helpful": "better_response_id", "harm": "safer_response_id", "mixed": "preferred_response_id"}
    return {
        name: float(np.mean([a[key] == b[key] for a, b in zip(first, second, strict=True)]))
        for name, key in keys.items()
    }
