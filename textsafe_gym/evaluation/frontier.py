"""What any policy could attain, estimated from a reference policy's own samples: an optimum, a front, and best of n.

The families of policies are those of `textsafe_gym.evaluation.reweighting`. Of each, the one that meets the limit is
found on a grid of multipliers λ, between whose points everything is interpolated, and its numbers have intervals over
prompts: percentiles of draws of the prompts with replacement, in each of which the limit is met anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm
from scipy.stats import t as student

from textsafe_gym.evaluation.reweighting import (
    BOUNDED,
    CONSTRAINTS,
    KL,
    REWARD,
    Array,
    Constraint,
    Curves,
    Problem,
    Samples,
    best_of,
    corrected,
    draws,
    soft_best_of,
    tilt,
    tilted,
)
from textsafe_gym.files import Row

POINTS = 20  # of a front
TRUSTED = 20.0  # effective samples a prompt below which an estimate is not to be relied on
KL_COEFFICIENTS = 2.0 ** np.arange(
    1, 7
)  # times the first: weights at which the reward at the limit is listed by its KL
_STEPS = 2 * POINTS  # of what is bounded, between which everything is interpolated
_SOLVED = 200  # draws in which the multipliers of several limits are found anew
_NEVER = 1e12  # what an infeasible threshold lacks
_NAMES = ("reward", "cost", "kl", "bounded")


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
    """The policy of a family that meets a limit on average, or the first of it where that keeps the limit anyway.

    Args:
        curves: of a family.
        limit: on the mean of what is bounded.

    Returns:
        `multiplier`, `reward`, `cost`, `costs` (by name), `kl`, `bounded` (what is, where that is not the cost) and
        `effective_sample_size` (those that are known), `feasible`, `slack`; and `intervals`, from each of these
        numbers to the ends of its 95 % interval, percentiles of the draws.
    """
    means = curves.values.mean(-1)[None]
    place = _place(means[:, BOUNDED], limit)
    places = _place(curves.again[:, BOUNDED], limit)
    last = len(curves.multipliers) - 1
    feasible = bool((means[0, BOUNDED] <= limit).any())
    drawn = np.broadcast_to(curves.multipliers, (len(places), last + 1))
    inside = feasible and bool((places < last).all())
    multipliers = {"": (float(_at(curves.multipliers[None], place)[0]), _at(drawn, places) if inside else None)}
    found = _row(
        _at(means, place)[0], _at(curves.again, places), multipliers, _at(curves.sizes.T[None], place)[0], curves.costs
    )
    if not feasible:
        found["multiplier"] = None
    return {**found, "slack": bool(means[0, BOUNDED, 0] <= limit), "feasible": feasible}


def front(curves: Curves, points: int = POINTS) -> list[Row]:
    """Rows of a family at equal steps of what is bounded, from λ = 0 down: what `at_limit` has where each is the limit,
    without what a limit says."""
    costs = curves.values[BOUNDED].mean(-1)
    rows = [at_limit(curves, cost) for cost in np.linspace(costs[0], costs.min(), points)]
    return [{name: own for name, own in row.items() if name not in ("slack", "feasible")} for row in rows]


def _row(
    means: Array,
    again: Array,
    multipliers: Mapping[str, tuple[float, Array | None]],
    sizes: Array,
    costs: Sequence[str],
) -> Row:
    """What `at_limit` returns of numbers, with intervals: percentiles of the draws, which for M prompts are stretched
    about what was found as Student's interval is wider than that of a normal mean whose deviation is taken from the
    sample itself.

    Args:
        means: (R,), rows as `Curves.values` has them.
        again: (B, R), of the draws.
        multipliers: by the name of a cost, "" for all, λ and its draws (B,), if any.
        sizes: (M,), effective sample sizes.
        costs: names of the costs.
    """
    prompts = len(sizes)
    stretch = student.ppf(0.975, prompts - 1) / norm.ppf(0.975) * math.sqrt(prompts / (prompts - 1))

    def ends(value: float, column: Array, least: float = -math.inf) -> list[float]:
        low, high = (value + stretch * (np.percentile(column, [2.5, 97.5]) - value)).tolist()
        return [max(low, least), high]

    found: Row = {"multiplier": math.fsum(own for own, _ in multipliers.values())}
    own_ends: Row = {}
    known = [column for _, column in multipliers.values() if column is not None]
    if known:
        own_ends["multiplier"] = ends(found["multiplier"], np.sum(known, axis=0), 0.0)
    for name, value, column in zip(_NAMES, means.tolist(), again.T, strict=False):
        if not math.isnan(value):
            found[name] = value
            own_ends[name] = ends(value, column, 0.0 if name == "kl" else -math.inf)
    if costs:
        named = list(zip(costs, means[BOUNDED + 1 :].tolist(), again.T[BOUNDED + 1 :], strict=True))
        found["costs"] = {name: value for name, value, _ in named}
        own_ends["costs"] = {name: ends(value, column) for name, value, column in named}
    if "" not in multipliers:
        found["multipliers"] = {name: own for name, (own, _) in multipliers.items()}
        own_ends["multipliers"] = {
            name: ends(own, column, 0.0) for name, (own, column) in multipliers.items() if column is not None
        }
    if not np.isnan(sizes).any():
        found["effective_sample_size"] = float(1 / (1 / sizes).mean())
    return {**found, "intervals": own_ends}


def _scale(samples: Samples, problem: Problem) -> float:
    """A multiplier that weighs what is bounded as much as reward: the ratio of their deviations within a prompt."""
    spreads = float(samples.reward.std(1).mean()), float(problem.signal(samples).std(1).mean())
    return spreads[0] / spreads[1] if all(spreads) else 1.0


def _wide(samples: Samples, problem: Problem) -> Array:
    """(G,) multipliers: 0, and five orders of magnitude about `_scale`."""
    return np.concatenate([[0.0], _scale(samples, problem) * np.geomspace(1e-2, 1e3, 41)])


def grid(samples: Samples, problem: Problem) -> Array:
    """(G,) multipliers: 0, and from there on as far as what is bounded still falls, at equal ratios, at equal steps of
    what is bounded, and closer where the limit is met."""
    wide = _wide(samples, problem)
    costs = np.minimum.accumulate([tilt(samples, problem, own)[0][2, BOUNDED].mean() for own in wide])
    even = np.interp(np.linspace(costs[0], costs[-1], _STEPS), costs[::-1], wide[::-1])
    met = _at(wide[None], _place(costs[None], problem.limit))[0] if costs[-1] <= problem.limit else 0.0
    flat = wide[int((costs <= costs[-1] + 1e-3 * (costs[0] - costs[-1])).argmax())]
    near, last = met * np.linspace(0.6, 1.4, 41), max(flat, 6 * met)  # draws of the prompts may need more than all do
    inside = np.concatenate([wide, even, near])
    return np.unique(np.append(inside[inside < last], last))


def _each_prompt(samples: Samples, problem: Problem, rng: np.random.Generator) -> Row:
    """`at_limit` where each prompt has to keep the limit; `multiplier` is the mean of theirs."""
    half, prompts = samples.reward.shape[1] // 2, len(samples.reward)
    most = 1e3 * _scale(samples, problem)

    def solved(part: Samples) -> tuple[Array, Array, Array]:
        """(M, 1) multipliers by bisection, (R, M) values, (M,) sizes."""
        low, high = np.zeros((prompts, 1)), np.full((prompts, 1), most)
        high[tilt(part, problem, low)[0][2, BOUNDED] <= problem.limit] = 0.0
        for _ in range(60):
            middle = (low + high) / 2
            over = tilt(part, problem, middle)[0][2, BOUNDED, :, None] > problem.limit
            low, high = np.where(over, middle, low), np.where(over, high, middle)
        values, sizes = tilt(part, problem, high)
        return high, values[2], sizes

    parts = samples.part(slice(half)), samples.part(slice(half, None)), samples
    multipliers, values, sizes = (list(each) for each in zip(*map(solved, parts), strict=True))
    # Half a prompt's samples that cannot keep its limit tell nothing of the bias: there the whole stands uncorrected.
    odd = (multipliers[0] >= most) | (multipliers[1] >= most)
    multipliers = [np.where(odd, multipliers[2], own) for own in multipliers]
    values = [np.where(odd[:, 0], values[2], own) for own in values]
    shares = draws(prompts, rng)
    found, own = corrected(np.stack(values)).T, corrected(np.stack(multipliers))[:, 0]
    feasible = bool((multipliers[2] < most).all())
    pair = (float(own.mean()), shares @ own if feasible else None)
    row = _row(found.mean(0), shares @ found, {"": pair}, sizes[2], tuple(samples.named_costs))
    if not feasible:
        row["multiplier"] = None
    return {**row, "slack": bool((multipliers[2] == 0).all()), "feasible": feasible}


def _threshold(samples: Samples, problem: Problem) -> Problem:
    """A "cvar" problem with the η at which most is attainable; at a slack limit that at which S is lowest, the CVaR."""
    wide = _wide(samples, problem)

    def measured(threshold: float) -> tuple[bool, float, float]:
        """Whether a limit is active, what cannot be attained, and S."""
        own = replace(problem, threshold=threshold)
        means = np.array([tilt(samples, own, multiplier)[0][2].mean(-1) for multiplier in wide])[None]
        place = _place(means[..., BOUNDED], own.limit)
        found = _at(means.swapaxes(1, 2), place)[0]
        feasible = bool(means[..., BOUNDED].min() <= own.limit)
        attained = float(found[REWARD] - own.kl_coefficient * found[KL]) if feasible else -_NEVER
        return bool(place[0] > 0), -attained, float(found[BOUNDED])

    tried = np.unique(np.quantile(samples.cost, np.linspace(0, 1, 17)))
    at = [measured(own) for own in tried.tolist()]
    best = min(range(len(tried)), key=lambda i: at[i][1:])
    column = 1 if at[best][0] else 2
    ends = float(tried[max(best - 1, 0)]), float(tried[min(best + 1, len(tried) - 1)])
    near = minimize_scalar(lambda own: measured(own)[column], bounds=ends, method="bounded", options={"maxiter": 20})
    return replace(problem, threshold=float(near.x if near.fun < at[best][column] else tried[best]))


def _several(samples: Samples, problem: Problem, limits: Mapping[str, float], rng: np.random.Generator) -> Row:
    """`at_limit` where each named cost has a limit and a λ of its own, which are found anew in every draw."""
    names = list(limits)
    most = 1e3 * float(samples.reward.std(1).mean()) / min(samples.named_costs[k].std(1).mean() or 1.0 for k in names)

    def dual(multipliers: Array, part: Samples, shares: Array) -> tuple[float, Array]:
        """g(λ), and its slope: what is left of each limit."""
        excess = np.stack([part.named_costs[name] - limits[name] for name in names])
        logits = (part.reward - np.einsum("k,kmn->mn", multipliers, excess)) / problem.kl_coefficient
        top = logits.max(1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(1)
        slopes = -(weights * excess).sum(-1) / total
        return float(shares @ (problem.kl_coefficient * (top[:, 0] + np.log(total)))), slopes @ shares

    def solved(part: Samples, shares: Array, start: Array) -> Array:
        bounds = [(0.0, most)] * len(names)
        return np.asarray(minimize(dual, start, (part, shares), "L-BFGS-B", jac=True, bounds=bounds).x)

    def values(part: Samples, multipliers: Array) -> tuple[Array, Array]:
        weights = dict(zip(names, (multipliers / (multipliers.sum() or 1.0)).tolist(), strict=True))
        parts, size = tilt(part, replace(problem, weights=weights), float(multipliers.sum()))
        return parts[2], size

    prompts, half = samples.reward.shape[0], samples.reward.shape[1] // 2
    even, start = np.full(prompts, 1 / prompts), np.zeros(len(names))
    parts = samples.part(slice(half)), samples.part(slice(half, None)), samples
    tops = [solved(part, even, start) for part in parts]
    whole, sizes = values(samples, tops[2])
    found = corrected(np.stack([values(part, own)[0].mean(-1) for part, own in zip(parts, tops, strict=True)]))
    multipliers = np.maximum(corrected(np.stack(tops)), 0.0)
    correction, change = found - whole.mean(-1), multipliers - tops[2]
    shares = draws(prompts, rng, _SOLVED)
    solutions = np.stack([solved(samples, own, tops[2]) for own in shares])
    again = np.stack([values(samples, own)[0] @ share for own, share in zip(solutions, shares, strict=True)])
    columns = np.maximum(solutions + change, 0.0).T
    feasible = bool((tops[2] < most).all())
    pairs = {
        name: (value, column if feasible else None)
        for name, value, column in zip(names, multipliers.tolist(), columns, strict=True)
    }
    row = _row(found, again + correction, pairs, sizes, tuple(samples.named_costs))
    return {**row, "slack": bool((multipliers == 0).all()), "feasible": feasible}


def _choice(
    rule: Callable[..., Curves],
    samples: Samples,
    problem: Problem,
    n: int,
    limit: float | Mapping[str, float],
    rng: np.random.Generator,
) -> Row:
    """A row of best of n, at the λ that meets the limit; several limits are met as they are weighed, or not each."""
    multipliers = np.concatenate([[0.0], _scale(samples, problem) * np.geomspace(1e-2, 1e2, 48)])
    row = at_limit(rule(samples, problem, n, multipliers, rng), problem.limit)
    if isinstance(limit, Mapping):
        row["feasible"] = all(row["costs"][name] <= own + 1e-9 for name, own in limit.items())
    return {"n": n, **row, "kl_bound": math.log(n) - (n - 1) / n, "judge_calls": 2 * n}


def reference_frontier(
    samples: Samples,
    limit: float | Mapping[str, float],
    kl_coefficients: Sequence[float],
    sizes: Sequence[int],
    constraint: Constraint = "mean",
    cvar_level: float = 0.9,
    seed: int = 0,
) -> Row:
    """All that samples say of what is attainable.

    Args:
        samples: at least four a prompt.
        limit: on what is bounded; or by name, on the mean of several costs.
        kl_coefficients: weights β > 0 of the KL; the first is that of `front` and `at_limit`.
        sizes: the n of best of n, each at most the samples of a prompt.
        constraint: see the module; with several limits "mean".
        cvar_level: of "cvar".
        seed: of the draws with replacement.

    Returns:
        For `frontier.json`: `constraint`, `cost_limit` or `cost_limits`, `prompts`, `samples`, `kl_coefficient`,
        `cost_range` (least and most among the samples), `smallest_cost` (the mean over prompts of the least that was
        seen of what is bounded), `reference` (reward and cost of the policy that was sampled), `at_limit`, `front`,
        `by_kl_coefficient` (an `at_limit` for each β, and for multiples of the first), `by_constraint` (an `at_limit`
        for "mean", "kl_in_cost" and "per_prompt", where one limit is on a mean), `best_of_n` and `soft_best_of_n` (of
        each n, with the λ that meets the limit on the mean, the probability or the CVaR), `trusted`, and
        `samples_needed` for that.
    """
    rng = np.random.default_rng(seed)
    beta, count = float(kl_coefficients[0]), samples.reward.shape[1]

    def problem_at(kl_coefficient: float, kind: Constraint = constraint) -> Problem:
        problem = Problem(kind, 0.0 if isinstance(limit, Mapping) else limit, kl_coefficient, cvar_level)
        return _threshold(samples, problem) if kind == "cvar" else problem

    def optimum(problem: Problem) -> Row:
        if isinstance(limit, Mapping):
            return _several(samples, problem, limit, rng)
        if problem.constraint == "per_prompt":
            return _each_prompt(samples, problem, rng)
        return at_limit(tilted(samples, problem, grid(samples, problem), rng), problem.limit)

    problem = problem_at(beta)
    found = optimum(problem)
    if isinstance(limit, Mapping):  # from here on the costs count as they do at the limit
        total = found["multiplier"]
        weights = {name: own / total if total else 1 / len(limit) for name, own in found["multipliers"].items()}
        problem = replace(problem, weights=weights, limit=sum(weights[name] * limit[name] for name in limit))
    family = replace(problem, constraint="mean") if constraint == "per_prompt" else problem
    plain = replace(problem, constraint="mean") if constraint in CONSTRAINTS[:3] else problem
    every_beta = [float(own) for own in dict.fromkeys((*kl_coefficients, *(beta * KL_COEFFICIENTS)))]
    kinds = CONSTRAINTS[:3] if constraint in CONSTRAINTS[:3] and not isinstance(limit, Mapping) else ()
    size = found["effective_sample_size"]
    return {
        "constraint": constraint,
        **({"cvar_level": cvar_level} if constraint == "cvar" else {}),
        **({"cost_limits": dict(limit)} if isinstance(limit, Mapping) else {"cost_limit": limit}),
        "prompts": len(samples.reward),
        "samples": count,
        "kl_coefficient": beta,
        "cost_range": [float(samples.cost.min()), float(samples.cost.max())],
        "smallest_cost": float(problem.signal(samples).min(1).mean()),
        "reference": {"reward": float(samples.reward.mean()), "cost": float(samples.cost.mean())},
        "at_limit": found,
        "front": front(tilted(samples, family, grid(samples, family), rng)),
        "by_kl_coefficient": [{"kl_coefficient": own, **optimum(problem_at(own))} for own in every_beta],
        "by_constraint": [{"constraint": kind, **optimum(problem_at(beta, kind))} for kind in kinds],
        "best_of_n": [_choice(best_of, samples, plain, n, limit, rng) for n in sizes],
        "soft_best_of_n": [_choice(soft_best_of, samples, plain, n, limit, rng) for n in sizes],
        "trusted": size >= TRUSTED,
        "samples_needed": math.ceil(count * TRUSTED / size),
    }
