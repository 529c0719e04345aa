"""How far two computations of one number may lie apart on processors that add in different orders.

What tests ask for:
- Equal to the last bit: integers, texts, tensors that were only copied, the same computation twice in one process, and
  a resumed run against an uninterrupted one on the same machine.
- Within `rounding(...)`: one number computed in two ways, such as with a cache and without, in a batch and alone, by
  two instances of one model, in one process and in two.
- Learning, over several seeds: a last bit that is rounded otherwise can part two runs as another seed does.

A sampled token is an integer, and another one only where its uniform number lies within rounding of an edge of the
distribution: of V edges that move by 1e-7 each, about V·1e-7 a token, 3e-4 for 100 tokens of the 32 of these tests.
"""

import math
from typing import Any

import torch


def rounding(terms: int, depth: int = 1, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The most by which rounding moves a number that is computed in two ways.

    Each of `depth` sums of `terms` products rounds `terms` times, by at most eps/2 of the partial sum and to either
    side, so that the errors add up as a random walk does: eps/2·√(terms·depth) is its standard deviation, √2 times that
    of a difference of two (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019). Six
    standard deviations are passed once in 10⁹ numbers, and no test looks at 10⁶.

    Args:
        terms: of the longest sum: a layer's width.
        depth: how many sums follow one another: a layer's matrix products, times layers.
        scale: the size of the partial sums, where it is not about 1.
        dtype: that it is computed in.
    """
    return 6 * math.sqrt(2) * torch.finfo(dtype).eps / 2 * math.sqrt(terms * depth) * scale


# A number that is computed in float64 and kept in float32, as a share of it: rounded once, to the nearest.
FLOAT32 = torch.finfo(torch.float32).eps / 2

# Sums in float64 that a test writes out in another order: of up to 100 terms, up to 10 in size. About 1e-13.
FLOAT64 = rounding(terms=100, scale=10.0, dtype=torch.float64)

# The language and score models of `models_doubles`: 2 layers with sums over 16 numbers for query, key, value, output
# and up, over 8 of a head, over 14 positions, and over 64 on the way down (GPT-2's; the others have 32 there, and 16
# for a gate); and the head's sum over 16.
TINY = rounding(terms=2 * (5 * 16 + 8 + 14 + 64) + 16)


def tiny_gradient(tokens: int) -> float:
    """The same of a weight's gradient, whose sums go forth and back, and over `tokens`."""
    return TINY * math.sqrt(2 * tokens)


# A token's log-probability in `SafeRLHF-Exact-v0`: its model's logits of about ½ are sums of 64 products. What its two
# layers add to the embeddings of about 1 is under a tenth of them, and their rounding with it, since their weights
# begin with a standard deviation of 0.02.
EXACT_LM = rounding(terms=64, scale=0.5)

# An MLP of two hidden layers of 64, and the sum over an action's parts.
MLP = rounding(terms=64, depth=3)


def assert_same_updates(
    found: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    start: dict[str, torch.Tensor],
    gradient_error: float,
) -> None:
    """Two runs of Adam moved each part of a policy (`model`, `actor`, a critic) from `start` to the same place.

    Adam divides a gradient by its size, so that one which is as small as its rounding error moves its weight by a whole
    step in any direction: no bound on a single weight says anything. With gradients off by the share r of a typical
    one, a weight whose gradient is the share x of it errs by r/x of its step, at most by all of it. Where x is spread
    evenly, the mean square of that is r + r²·∫dx/x² from r to 1, under 2·r, and the whole vector is off by about the
    share √(2·r) of the way it went, where r is a standard deviation.

    Args:
        found: one run's tensors; the part is the name up to the first dot.
        expected: the other's.
        start: before both.
        gradient_error: six times r, as `rounding` has it.
    """
    assert found.keys() == expected.keys()
    for part in {name.partition(".")[0] for name in expected}:
        names = [name for name in expected if name.partition(".")[0] == part]
        apart = math.hypot(*(float((found[name] - expected[name]).norm()) for name in names))
        moved = math.hypot(*(float((expected[name] - start[name]).norm()) for name in names))

        assert apart <= math.sqrt(2 * gradient_error / 6) * moved, f"{part}: {apart / moved} of the way apart"


def same_tensors(ours: Any, theirs: Any) -> bool:
    """Whether two modules, or two dicts of tensors, hold the same names and bits."""
    one, other = (x if isinstance(x, dict) else x.state_dict() for x in (ours, theirs))
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())
