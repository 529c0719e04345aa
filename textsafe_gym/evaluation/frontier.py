"""What any policy could attain, estimated from a reference policy's own samples: an optimum, a front, and best of n.

With N responses y_j to a prompt from the reference, the policy that maximises E[R] - λ·E[C] - β·KL weighs them by
w_j ∝ exp((R_j - λ·C_j) / β): self-normalised importance weights of the tilted policy, whose reward, cost and KL are
Σ w·R, Σ w·C and Σ w·log w + log N. All of them are biased by terms of order 1/N, which go where the same is
computed on both halves of the samples: 2·(all) - (mean of the halves). The λ of a limit is where the mean cost over
prompts meets it; see `textsafe_gym.envs.optimum` for the dual that this solves.

What is not among the samples has no weight: where the optimum lives on responses that the reference hardly ever gives,
N of them say nothing of it. The effective sample size 1 / Σ w² shows that (Kish 1965).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import norm
from scipy.stats import t as student

from textsafe_gym.files import Row

Array = NDArray[np.float64]

RESAMPLES = 1000
POINTS = 20  # of a front
TRUSTED = 20.0  # effective samples a prompt below which an estimate is not to be relied on
_GRID = 97  # multipliers between which everything is interpolated
_NAMES = ("reward", "cost", "kl")


@dataclass(frozen=True)
class Samples:
    """N responses of the reference policy to each of M prompts.

    Attributes:
        reward, cost: (M, N) float64.
    """

    reward: Array
    cost: Array

    def part(self, columns: slice) -> "Samples":
        """Some of each prompt's responses."""
        return Samples(self.reward[:, columns], self.cost[:, columns])

    @property
    def scale(self) -> float:
        """A multiplier that weighs cost as much as reward: the ratio of their deviations within a prompt."""
        spread = float(self.cost.std(1).mean())
        return float(self.reward.std(1).mean()) / spread if spread else 1.0


@dataclass(frozen=True)
class Curves:
    """A family of policies, one for each of G multipliers, prompt by prompt.

    Attributes:
        multipliers: (G,), rising from 0.
        values: (3, G, M): reward, cost and KL; KL is NaN where it is not known.
        sizes: (G, M), the effective sample size 1 / Σ w²; NaN where there are no weights.
        again: (B, 3, G), means over prompts in B draws of the data with replacement.
    """

    multipliers: Array
    values: Array
    sizes: Array
    again: Array


def _tilt(samples: Samples, multiplier: float, kl_coefficient: float) -> tuple[Array, Array, Array]:
    """Of the tilted policy, from both halves of the samples: (2, 3, M) of each half, (3, M) of the whole, reward, cost
    and KL; and the whole's effective sample size (M,)."""
    halves = samples.part(slice(samples.reward.shape[1] // 2)), samples.part(slice(samples.reward.shape[1] // 2, None))
    found, normalisers, squares = [], [], []
    for half in halves:
        logits = (half.reward - multiplier * half.cost) / kl_coefficient
        top = logits.max(1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(1)
        found.append(np.stack([(weights * x).sum(1) / total for x in (half.reward, half.cost, logits)]))
        normalisers.append(top[:, 0] + np.log(total))
        squares.append(np.square(weights).sum(1) / total**2)
    together = np.logaddexp(*normalisers)
    shares = np.exp(np.array(normalisers) - together)
    whole = sum(share * own for share, own in zip(shares, found, strict=True))
    counts = [half.reward.shape[1] for half in halves]
    for own, normaliser, count in zip((*found, whole), (*normalisers, together), (*counts, sum(counts)), strict=True):
        own[2] += math.log(count) - normaliser
    return np.stack(found), whole, 1 / (shares**2 * squares).sum(0)


def tilted(samples: Samples, kl_coefficient: float, multipliers: Array, rng: np.random.Generator) -> Curves:
    """The policies that are optimal at each multiplier under the weight β of the KL.

    Args:
        samples: at least four a prompt.
        kl_coefficient: β > 0.
        multipliers: (G,), rising from 0.
        rng: draws prompts with replacement.
    """
    shape = len(multipliers), len(samples.reward)
    values, sizes = np.empty((3, *shape)), np.empty(shape)
    for g, multiplier in enumerate(multipliers):
        halves, whole, sizes[g] = _tilt(samples, multiplier, kl_coefficient)
        values[:, g] = 2 * whole - halves.mean(0)
    return _with_draws(multipliers, values, sizes, rng)


def _with_draws(multipliers: Array, values: Array, sizes: Array, rng: np.random.Generator) -> Curves:
    prompts = values.shape[-1]
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES) / prompts
    return Curves(multipliers, values, sizes, np.einsum("bm,kgm->bkg", drawn, values))


def best_of(samples: Samples, n: int, multipliers: Array, rng: np.random.Generator) -> Curves:
    """The best of n responses by R - λ·C, for each λ: the mean over all choices of n among the N, without bias.

    Args:
        samples: at least n a prompt.
        n: at least 1.
        multipliers: (G,), rising from 0.
        rng: as for `tilted`.
    """
    prompts, count = samples.reward.shape
    rank = np.arange(1, count + 1)
    # P(the k-th worst of N is the best of n) = C(k - 1, n - 1) / C(N, n)
    share = np.zeros(count)
    own = rank >= n
    share[own] = np.exp(_log_choose(rank[own] - 1, n - 1) - _log_choose(count, n))
    values = np.full((3, len(multipliers), prompts), np.nan)
    for g, multiplier in enumerate(multipliers):
        order = np.argsort(samples.reward - multiplier * samples.cost, axis=1, kind="stable")
        values[0, g] = np.take_along_axis(samples.reward, order, 1) @ share
        values[1, g] = np.take_along_axis(samples.cost, order, 1) @ share
    return _with_draws(multipliers, values, np.full((len(multipliers), prompts), np.nan), rng)


def _log_choose(n: Array | float, k: float) -> Array:
    return gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)


def _place(costs: Array, limit: float) -> Array:
    """(B,) places on a grid, whole numbers at its points, of where rows (B, G) of falling costs first meet a limit; 0
    where they are below it from the first, and the last point where they never are."""
    below = costs <= limit
    first = np.where(below.any(1), below.argmax(1), costs.shape[1] - 1)
    rows, before = np.arange(len(costs)), np.maximum(first - 1, 0)
    over, under = costs[rows, before] - limit, costs[rows, first] - limit
    step = np.where(over > under, over / np.where(over > under, over - under, 1.0), 1.0)
    return np.where(first == 0, 0.0, before + np.clip(step, 0.0, 1.0))


def _at(curves: Array, places: Array) -> Array:
    """(B, ...) of (B, ..., G) at places (B,) of the grid."""
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, curves.shape[-1] - 1)
    rest = (places - low).reshape(-1, *[1] * (curves.ndim - 2))
    rows = np.arange(len(curves))
    return curves[rows, ..., low] * (1 - rest) + curves[rows, ..., high] * rest


def at_limit(curves: Curves, limit: float) -> Row:
    """The policy of a family whose mean cost meets a limit, or the first of it where that keeps the limit anyway.

    Args:
        curves: of a family.
        limit: on the mean cost.

    Returns:
        `multiplier`, `reward`, `cost`, `kl` and `effective_sample_size` (those that are known), `feasible`, `slack`;
        and `intervals`, from each of these numbers to the ends of its 95 % interval, percentiles of the draws.
    """
    means = curves.values.mean(-1)[None]
    place = _place(means[:, 1], limit)
    found = _row(curves, means, place)
    last = len(curves.multipliers) - 1
    slack, feasible = bool(means[0, 1, 0] <= limit), bool((means[0, 1] <= limit).any())
    places = _place(curves.again[:, 1], limit)
    if not feasible:
        found["multiplier"] = None
    intervals = _intervals(curves, places, found, bool((places < last).all()))
    return {**found, "slack": slack, "feasible": feasible, "intervals": intervals}


def front(curves: Curves, points: int = POINTS) -> list[Row]:
    """Rows of a family at equal steps of cost, from λ = 0 down: what `at_limit` has where each is the limit, without
    what a limit says."""
    costs = curves.values[1].mean(-1)
    rows = [at_limit(curves, cost) for cost in np.linspace(costs[0], costs.min(), points)]
    return [{name: own for name, own in row.items() if name not in ("slack", "feasible")} for row in rows]


def _row(curves: Curves, means: Array, place: Array) -> Row:
    found: Row = {"multiplier": float(_at(curves.multipliers[None], place)[0])}
    found |= dict(zip(_NAMES, _at(means, place)[0].tolist(), strict=True))
    with np.errstate(divide="ignore"):
        found["effective_sample_size"] = float(1 / (1 / _at(curves.sizes.T[None], place)[0]).mean())
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _intervals(curves: Curves, places: Array, found: Row, with_multiplier: bool) -> Row:
    """By name, percentiles of the draws, which for M prompts are stretched about what was found as Student's interval
    is wider than that of a normal mean whose deviation is taken from the sample itself."""
    columns = dict(zip(_NAMES, _at(curves.again, places).T, strict=True))
    if with_multiplier:
        columns["multiplier"] = _at(np.broadcast_to(curves.multipliers, (len(places), len(curves.multipliers))), places)
    prompts = curves.values.shape[-1]
    stretch = student.ppf(0.975, prompts - 1) / norm.ppf(0.975) * math.sqrt(prompts / (prompts - 1))
    ends: Row = {}
    for name, column in columns.items():
        if found.get(name) is not None:
            around = np.percentile(column, [2.5, 97.5]) - found[name]
            ends[name] = (found[name] + stretch * around).tolist()
    for name in {"multiplier", "kl"} & ends.keys():  # neither is ever negative
        ends[name][0] = max(ends[name][0], 0.0)
    return ends


def grid(samples: Samples, kl_coefficient: float, limit: float) -> Array:
    """(G,) multipliers: 0, and from there on as far as the tilted cost still falls, closer where the limit is met."""
    wide = np.concatenate([[0.0], samples.scale * np.geomspace(1e-2, 1e3, 41)])
    costs = np.array([_tilt(samples, multiplier, kl_coefficient)[1][1].mean() for multiplier in wide])
    met = _at(wide[None], _place(costs[None], limit))[0]
    lowest = costs.min() + 1e-3 * (costs[0] - costs.min())
    last = wide[int((costs <= lowest).argmax())]
    around = [0, 0.25, 0.5, *np.linspace(0.6, 1.4, 41), *np.linspace(1.5, 3, 16)]  # closer where it is needed
    near = (met or 0.2 * samples.scale) * np.array(around)
    far = np.geomspace(near[-1], max(last, 2 * near[-1]), _GRID - len(near) + 1)[1:]
    return np.concatenate([near, far])


def reference_frontier(
    samples: Samples, limit: float, kl_coefficients: Sequence[float], sizes: Sequence[int], seed: int = 0
) -> Row:
    """All that samples say of what is attainable.

    Args:
        samples: at least four a prompt.
        limit: on the mean cost.
        kl_coefficients: weights β > 0 of the KL; the first is that of `front` and `at_limit`.
        sizes: the n of best of n, each at most the samples of a prompt.
        seed: of the draws with replacement.

    Returns:
        For `frontier.json`: `cost_limit`, `prompts`, `samples`, `kl_coefficient`, `smallest_cost` (the mean over
        prompts of the least that was seen), `reference` (reward and cost of the policy that was sampled), `at_limit`,
        `front`, `by_kl_coefficient` (an `at_limit` for each), `best_of_n` (of each n the responses of most
        reward - λ·cost with the λ that meets the limit), `trusted`, and `samples_needed` for that.
    """
    rng = np.random.default_rng(seed)
    families = {beta: tilted(samples, beta, grid(samples, beta, limit), rng) for beta in map(float, kl_coefficients)}
    found = {beta: at_limit(curves, limit) for beta, curves in families.items()}
    beta = next(iter(families))
    best = []
    for n in sizes:
        curves = best_of(samples, n, np.concatenate([[0.0], samples.scale * np.geomspace(1e-2, 1e2, 64)]), rng)
        bound = math.log(n) - (n - 1) / n
        best.append({"n": n, **at_limit(curves, limit), "kl_bound": bound, "judge_calls": 2 * n})
    size, count = found[beta]["effective_sample_size"], samples.reward.shape[1]
    return {
        "cost_limit": limit,
        "prompts": len(samples.reward),
        "samples": count,
        "kl_coefficient": beta,
        "smallest_cost": float(samples.cost.min(1).mean()),
        "reference": {"reward": float(samples.reward.mean()), "cost": float(samples.cost.mean())},
        "at_limit": found[beta],
        "front": front(families[beta]),
        "by_kl_coefficient": [{"kl_coefficient": own, **row} for own, row in found.items()],
        "best_of_n": best,
        "trusted": size >= TRUSTED,
        "samples_needed": math.ceil(count * TRUSTED / size),
    }
