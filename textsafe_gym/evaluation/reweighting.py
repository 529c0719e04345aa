"""Policies that are made of a reference policy's samples: reweighted by reward and cost, or the best of n of them.

With N responses y_j to a prompt from the reference, the policy that maximises E[R] - λ·E[S] - τ·KL weighs them by
w_j ∝ exp((R_j - λ·S_j) / τ): self-normalised importance weights of the tilted policy, whose reward, cost and KL are
Σ w·R, Σ w·C and Σ w·log w + log N. All of them are biased by terms of order 1/N, which go where the same is
computed on both halves of the samples: 2·(all) - (mean of the halves). The λ of a limit is where the mean over prompts
meets it; see `textsafe_gym.envs.optimum` for the dual that this solves. What a limit bounds says what S and τ are:

- "mean": E[C]; S = C, τ = β. With named costs, each has a limit and a λ of its own.
- "kl_in_cost": E[C] + β·KL, as PPO-Lagrangian states it; S = C, τ = β·(1 + λ).
- "per_prompt": E[C] for each prompt, each with a λ of its own, as RePO states it.
- "probability": P(C > 0); S = 1[C > 0].
- "cvar": the mean of the worst 1 - level of the costs. S = η + (C - η)⁺ / (1 - level) bounds it for every η
  (Rockafellar & Uryasev 2000), and the best policy is the best over η, each of which is a problem of the first kind.

What is not among the samples has no weight: where the optimum lives on responses that the reference hardly ever gives,
N of them say nothing of it. The effective sample size 1 / Σ w² shows that (Kish 1965).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

Array = NDArray[np.float64]
Constraint = Literal["mean", "kl_in_cost", "per_prompt", "probability", "cvar"]
CONSTRAINTS: tuple[Constraint, ...] = get_args(Constraint)

RESAMPLES = 1000
_SPLITS = 2  # random partitions of a prompt's samples into choices of n
REWARD, COST, KL, BOUNDED = range(4)  # rows of `Curves.values`; named costs follow


@dataclass(frozen=True)
class Samples:
    """N responses of the reference policy to each of M prompts.

    Attributes:
        reward, cost: (M, N) float64.
        named_costs: by name, (M, N) float64.
    """

    reward: Array
    cost: Array
    named_costs: Mapping[str, Array] = field(default_factory=dict)

    def part(self, columns: slice) -> "Samples":
        """Some of each prompt's responses."""
        named = {name: own[:, columns] for name, own in self.named_costs.items()}
        return Samples(self.reward[:, columns], self.cost[:, columns], named)


@dataclass(frozen=True)
class Problem:
    """What is bounded, and by how much.

    Attributes:
        constraint: see the module.
        limit: on it; of several named costs the sum of their limits as `weights` weigh them.
        kl_coefficient: β > 0.
        cvar_level: of "cvar".
        threshold: its η.
        weights: by name, what each named cost counts in the one that is bounded; empty: that is the whole cost.
    """

    constraint: Constraint
    limit: float
    kl_coefficient: float
    cvar_level: float = 0.9
    threshold: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def signal(self, samples: Samples) -> Array:
        """(M, N): S of the module."""
        if self.weights:
            return np.sum([weight * samples.named_costs[name] for name, weight in self.weights.items()], axis=0)
        if self.constraint == "probability":
            return (samples.cost > 0).astype(np.float64)
        if self.constraint == "cvar":
            return self.threshold + np.maximum(samples.cost - self.threshold, 0.0) / (1 - self.cvar_level)
        return samples.cost

    def temperature(self, multiplier: float | Array) -> float | Array:
        """τ of the module."""
        return self.kl_coefficient * (1 + multiplier if self.constraint == "kl_in_cost" else 1)


@dataclass(frozen=True)
class Curves:
    """A family of policies, one for each of G multipliers, prompt by prompt.

    Attributes:
        multipliers: (G,), rising from 0.
        values: (4 + named costs, G, M): reward, cost, KL and what the limit bounds; NaN where it is not known.
        sizes: (G, M), the effective sample size 1 / Σ w²; NaN where there are no weights.
        again: (B, 4 + named costs, G), means over prompts in B draws of the prompts with replacement.
        costs: names of the costs.
    """

    multipliers: Array
    values: Array
    sizes: Array
    again: Array
    costs: tuple[str, ...] = ()


def tilt(samples: Samples, problem: Problem, multiplier: float | Array) -> tuple[Array, Array]:
    """Of the tilted policy (3, 4 + named costs, M), from each half of the samples and from the whole: reward, cost, KL,
    what is bounded, and the named costs; and the whole's effective sample size (M,). λ is one, or (M, 1)."""
    count = samples.reward.shape[1]
    signal, temperature = problem.signal(samples), problem.temperature(multiplier)
    columns = [samples.reward, samples.cost, (samples.reward - multiplier * signal) / temperature, signal]
    columns += samples.named_costs.values()
    found, normalisers, squares = [], [], []
    for half in (slice(count // 2), slice(count // 2, None)):
        logits = columns[KL][:, half]
        top = logits.max(1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(1)
        found.append(np.stack([(weights * x[:, half]).sum(1) / total for x in columns]))
        normalisers.append(top[:, 0] + np.log(total))
        squares.append(np.square(weights).sum(1) / total**2)
    together = np.logaddexp(*normalisers)
    shares = np.exp(np.array(normalisers) - together)
    found.append(sum(share * own for share, own in zip(shares, found, strict=True)))
    counts = (count // 2, count - count // 2, count)
    for own, normaliser, size in zip(found, (*normalisers, together), counts, strict=True):
        own[KL] += math.log(size) - normaliser
        if problem.constraint == "kl_in_cost":
            own[BOUNDED] += problem.kl_coefficient * own[KL]
    return np.stack(found), 1 / (shares**2 * squares).sum(0)


def corrected(parts: Array) -> Array:
    """(...) of (3, ...): twice the whole less the mean of the halves, which has no term of order 1/N."""
    return 2 * parts[2] - parts[:2].mean(0)


def tilted(samples: Samples, problem: Problem, multipliers: Array, rng: np.random.Generator) -> Curves:
    """The policies that are optimal at each multiplier.

    Args:
        samples: at least four a prompt.
        problem: what the multiplier weighs, and β.
        multipliers: (G,), rising from 0.
        rng: draws prompts with replacement.
    """
    found = [tilt(samples, problem, multiplier) for multiplier in multipliers]
    values = np.stack([corrected(parts) for parts, _ in found], 1)
    return _with_draws(multipliers, values, np.stack([size for _, size in found]), samples, rng)


def _with_draws(multipliers: Array, values: Array, sizes: Array, samples: Samples, rng: np.random.Generator) -> Curves:
    again = np.einsum("bm,kgm->bkg", draws(values.shape[-1], rng), values)
    return Curves(multipliers, values, sizes, again, tuple(samples.named_costs))


def draws(prompts: int, rng: np.random.Generator, count: int = RESAMPLES) -> Array:
    """(B, M): the share of each prompt in draws with replacement."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), count) / prompts


def best_of(samples: Samples, problem: Problem, n: int, multipliers: Array, rng: np.random.Generator) -> Curves:
    """The best of n responses by R - λ·S, for each λ: the mean over all choices of n among the N, without bias.

    Its KL is log n - (n - 1)/n where no two responses score the same (Beirami et al., arXiv 2401.01879), and less
    where some do: what scores the same makes one atom of the distribution of scores, whose size is its share of N.

    Args:
        samples: at least n a prompt.
        problem: gives S; a KL in the cost, and prompts that have limits of their own, do not count here.
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
    columns = _columns(samples, problem)
    values = np.full((len(columns) + 1, len(multipliers), prompts), np.nan)
    for g, multiplier in enumerate(multipliers):
        score = samples.reward - multiplier * problem.signal(samples)
        order = np.argsort(score, axis=1, kind="stable")
        for row, column in columns.items():
            values[row, g] = np.take_along_axis(column, order, 1) @ share
        values[KL, g] = [_atoms_kl(own, n) for own in np.take_along_axis(score, order, 1)]
    return _with_draws(multipliers, values, np.full((len(multipliers), prompts), np.nan), samples, rng)


def _columns(samples: Samples, problem: Problem) -> dict[int, Array]:
    """By row of `Curves.values`, what is averaged to it."""
    named = enumerate(samples.named_costs.values(), BOUNDED + 1)
    return {REWARD: samples.reward, COST: samples.cost, BOUNDED: problem.signal(samples), **dict(named)}


def _atoms_kl(scores: Array, n: int) -> float:
    """KL of the best of n from N rising scores (N,), of which equal ones are an atom and the others a continuum."""
    _, counts = np.unique(scores, return_counts=True)
    ends = np.cumsum(counts) / len(scores)
    starts = ends - counts / len(scores)
    mass = ends**n - starts**n
    atoms = counts > 1
    # ∫ n·u^(n - 1)·log(n·u^(n - 1)) du = u^n·(log n - (n - 1)/n) + (n - 1)/n·(u^n·log u^n)
    smooth = mass * (math.log(n) - (n - 1) / n) + (n - 1) / n * (xlogy(ends**n, ends**n) - xlogy(starts**n, starts**n))
    return float(np.where(atoms, xlogy(mass, mass / (ends - starts)), smooth).sum())


def soft_best_of(samples: Samples, problem: Problem, n: int, multipliers: Array, rng: np.random.Generator) -> Curves:
    """One of n responses, each with probability ∝ exp((R - λ·S) / β) (Verdun et al., arXiv 2505.03156), for each λ.

    The mean over random choices of n among the N. By Border's theorem no rule that takes one of n is farther from the
    reference than the best of n, so that its KL is the bound here too.

    Args:
        samples: at least n a prompt.
        problem: as for `best_of`, and β.
        n: at least 1.
        multipliers: (G,), rising from 0.
        rng: as for `tilted`; draws the choices too.
    """
    prompts, count = samples.reward.shape
    blocks = count // n
    picked = np.stack([rng.permutation(count)[: blocks * n] for _ in range(_SPLITS)]).ravel()
    columns = {row: own[:, picked].reshape(prompts, -1, n) for row, own in _columns(samples, problem).items()}
    values = np.full((len(columns) + 1, len(multipliers), prompts), np.nan)
    for g, multiplier in enumerate(multipliers):
        logits = (columns[REWARD] - multiplier * columns[BOUNDED]) / problem.kl_coefficient
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        for row, column in columns.items():
            values[row, g] = (weights * column).sum(-1).mean(-1)
    return _with_draws(multipliers, values, np.full((len(multipliers), prompts), np.nan), samples, rng)


def _log_choose(n: Array | float, k: float) -> Array:
    return gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)
