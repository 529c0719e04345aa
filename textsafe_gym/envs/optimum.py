"""The exact optimum of an enumerable constrained MDP over whole responses, with or without a KL penalty.

max E[R] - β·KL(π‖ref) subject to E[C] <= limit, where prompts x have fixed probabilities. For β > 0 by the convex dual
in λ >= 0: π ∝ ref·exp((R - λ·C)/β) and g(λ) = β·E_x log E_ref[exp((R - λ(C - limit))/β)]. With the KL in the cost as
well, the problem that PPO-Lagrangian states, the constraint is E[C] + β·KL <= limit and β becomes β(1 + λ) in both
formulas. For β = 0 it is a linear program.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from scipy.optimize import brentq, linprog
from scipy.sparse import csr_array
from scipy.special import xlogy

from textsafe_gym.errors import ConfigError

_MULTIPLIER_MAX = 1e9


@dataclass(frozen=True)
class Responses:
    """Every response that can end an episode.

    Attributes:
        prompt: (n,) int64 from 0, the number of its prompt.
        prompt_probability: (prompts,) float64, sums to 1.
        reference_log_prob: (n,) float64; over each prompt's responses the probabilities sum to 1.
        reward: (n,) float64.
        cost: (n,) float64.
    """

    prompt: np.ndarray
    prompt_probability: np.ndarray
    reference_log_prob: np.ndarray
    reward: np.ndarray
    cost: np.ndarray

    def log_normaliser(self, logits: np.ndarray) -> np.ndarray:
        """(prompts,) log Σ_y exp(logits) over each prompt's responses."""
        top = np.full(len(self.prompt_probability), -np.inf)
        np.maximum.at(top, self.prompt, logits)
        sums = np.bincount(self.prompt, np.exp(logits - top[self.prompt]), len(top))
        return top + np.log(sums)

    def mean(self, policy: np.ndarray, x: np.ndarray) -> float:
        """E over prompts and `policy` (n,) of `x` (n,)."""
        return float((self.prompt_probability[self.prompt] * policy) @ x)

    def least(self, x: np.ndarray) -> float:
        """The smallest mean of `x` (n,) that any policy attains."""
        low = np.full(len(self.prompt_probability), np.inf)
        np.minimum.at(low, self.prompt, x)
        return float(self.prompt_probability @ low)

    def divergence(self, policy: np.ndarray) -> float:
        """KL(policy‖reference) in nats, averaged over prompts; 0·log 0 is 0."""
        surprise = xlogy(policy, policy) - policy * self.reference_log_prob
        return float(self.prompt_probability[self.prompt] @ surprise)


@dataclass(frozen=True)
class Optimum:
    """A solution, or what comes nearest to one.

    Attributes:
        policy: (n,) float64 probabilities of the responses, each prompt's summing to 1. Where the limit is infeasible,
            the policy of least constrained cost.
        reward: its mean reward.
        cost: its mean cost, without any KL.
        kl: its divergence from the reference, in nats.
        multiplier: the λ that attains the dual's minimum; infinite where the limit is infeasible.
        feasible: whether some policy meets the limit.
        smallest_cost: the least of what the limit bounds: cost, or cost plus β·KL where the KL is in the cost.
        objective: reward - β·kl.
        dual: g(λ), which equals `objective` where the limit is feasible.
    """

    policy: np.ndarray
    reward: float
    cost: float
    kl: float
    multiplier: float
    feasible: bool
    smallest_cost: float
    objective: float
    dual: float


def solve(responses: Responses, cost_limit: float, kl_coefficient: float, kl_in_cost: bool = False) -> Optimum:
    """The best policy whose mean cost keeps the limit.

    Args:
        responses: the whole MDP.
        cost_limit: on the mean cost, or on mean cost + kl_coefficient·KL with `kl_in_cost`.
        kl_coefficient: β >= 0.
        kl_in_cost: whether the KL burdens the cost as it does the reward, the problem that arXiv 2310.12773 states.

    Raises:
        ConfigError: a number is not finite, or kl_coefficient is negative.
    """
    if not _is_finite(cost_limit):
        raise ConfigError(f"cost_limit = {cost_limit!r:.60}: expected a finite number")
    kl_coefficient = checked_kl_coefficient(kl_coefficient)
    if kl_coefficient == 0:
        return _linear(responses, cost_limit)
    return _regularised(responses, cost_limit, kl_coefficient, kl_in_cost)


def solve_each(responses: Responses, cost_limit: float, kl_coefficient: float) -> Optimum:
    """As `solve`, where each prompt's mean cost has to keep the limit by itself (RePO's problem, arXiv 2410.19933).

    The multiplier is the mean of the prompts' own; `smallest_cost` is that of the prompt where it is largest.

    Args:
        responses: the whole MDP.
        cost_limit: on each prompt's mean cost.
        kl_coefficient: β >= 0.

    Raises:
        ConfigError: a number is not finite, or kl_coefficient is negative.
    """
    weight = responses.prompt_probability
    parts = []
    for prompt in range(len(weight)):
        own = responses.prompt == prompt
        columns = (responses.reference_log_prob[own], responses.reward[own], responses.cost[own])
        parts.append(
            solve(Responses(np.zeros(own.sum(), dtype=np.int64), np.ones(1), *columns), cost_limit, kl_coefficient)
        )
    policy = np.empty(len(responses.prompt))
    for prompt, part in enumerate(parts):
        policy[responses.prompt == prompt] = part.policy

    smallest = max(part.smallest_cost for part in parts)
    feasible = all(part.feasible for part in parts)
    multiplier = float(weight @ [part.multiplier for part in parts])
    dual = float(weight @ [part.dual for part in parts])
    return _optimum(responses, policy, multiplier, feasible, smallest, kl_coefficient, dual)


def solve_weighted(responses: Responses, cost_weight: float, kl_coefficient: float) -> Optimum:
    """The policy that maximises E[R] - ν·E[C] - β·KL; `objective` and `dual` are its reward - β·KL.

    Args:
        responses: the whole MDP.
        cost_weight: ν, what a unit of cost weighs in units of reward, at least 0.
        kl_coefficient: β > 0.

    Raises:
        ConfigError: a number is not finite or negative, or kl_coefficient is 0.
    """
    if not _is_finite(cost_weight) or cost_weight < 0:
        raise ConfigError(f"cost_weight = {cost_weight!r:.60}: expected a finite number, at least 0")
    if checked_kl_coefficient(kl_coefficient) == 0:
        raise ConfigError(
            "kl_coefficient = 0: the optimum of a cost weight alone is one response a prompt; use a positive one"
        )
    policy = tilted(responses, cost_weight, kl_coefficient)
    found = _optimum(responses, policy, cost_weight, True, responses.least(responses.cost), kl_coefficient, math.nan)
    return replace(found, dual=found.objective)


def checked_kl_coefficient(kl_coefficient: float) -> float:
    """The coefficient itself.

    Raises:
        ConfigError: it is not a finite number, or negative.
    """
    if not _is_finite(kl_coefficient) or kl_coefficient < 0:
        raise ConfigError(f"kl_coefficient = {kl_coefficient!r:.60}: expected a finite number, at least 0")
    return float(kl_coefficient)


def _is_finite(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)


def tilted(responses: Responses, multiplier: float, kl_coefficient: float, kl_in_cost: bool = False) -> np.ndarray:
    """The policy that is optimal at a given λ: ref·exp((R - λ·C)/β), normalised for each prompt.

    Args:
        responses: the whole MDP, of n responses.
        multiplier: λ >= 0.
        kl_coefficient: β > 0.
        kl_in_cost: whether the KL is in the cost too; then β(1 + λ) stands for β.

    Returns:
        (n,) float64 probabilities, each prompt's summing to 1.
    """
    logits = responses.reference_log_prob + _exponent(responses, multiplier, kl_coefficient, kl_in_cost)
    return np.exp(logits - responses.log_normaliser(logits)[responses.prompt])


def dual(
    responses: Responses, multiplier: float, cost_limit: float, kl_coefficient: float, kl_in_cost: bool = False
) -> float:
    """g(λ) of the module's formula: convex, and at its minimum over λ >= 0 equal to the best objective.

    Args:
        responses: the whole MDP.
        multiplier: λ >= 0.
        cost_limit: on the mean cost, or on mean cost + β·KL with `kl_in_cost`.
        kl_coefficient: β > 0.
        kl_in_cost: whether the KL is in the cost too; then β(1 + λ) stands for β.
    """
    logits = responses.reference_log_prob + _exponent(responses, multiplier, kl_coefficient, kl_in_cost)
    temperature = kl_coefficient * (1 + multiplier) if kl_in_cost else kl_coefficient
    value = temperature * (responses.prompt_probability @ responses.log_normaliser(logits))
    return float(value) + multiplier * cost_limit


def _exponent(responses: Responses, multiplier: float, kl_coefficient: float, kl_in_cost: bool) -> np.ndarray:
    temperature = kl_coefficient * (1 + multiplier) if kl_in_cost else kl_coefficient
    return (responses.reward - multiplier * responses.cost) / temperature


def _regularised(responses: Responses, cost_limit: float, kl_coefficient: float, kl_in_cost: bool) -> Optimum:
    def excess(multiplier: float) -> float:
        """What the limit bounds, less the limit: minus the slope of the dual, and falling in λ."""
        policy = tilted(responses, multiplier, kl_coefficient, kl_in_cost)
        burden = kl_coefficient * responses.divergence(policy) if kl_in_cost else 0.0
        return responses.mean(policy, responses.cost) + burden - cost_limit

    if kl_in_cost:
        best = responses.reference_log_prob - responses.cost / kl_coefficient
        normaliser = responses.log_normaliser(best)
        smallest = -kl_coefficient * float(responses.prompt_probability @ normaliser)
        safest = np.exp(best - normaliser[responses.prompt])
    else:
        smallest = responses.least(responses.cost)
        safest = None
    high = 1.0
    while excess(high) > 0 and high < _MULTIPLIER_MAX:
        high *= 4.0
    feasible = excess(high) <= 0
    if not feasible:
        policy = tilted(responses, high, kl_coefficient) if safest is None else safest
        multiplier = math.inf
    else:
        multiplier = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, high, xtol=1e-14, rtol=1e-14))
        policy = tilted(responses, multiplier, kl_coefficient, kl_in_cost)
    bound = dual(responses, multiplier, cost_limit, kl_coefficient, kl_in_cost) if feasible else -math.inf
    return _optimum(responses, policy, multiplier, feasible, smallest, kl_coefficient, bound)


def _linear(responses: Responses, cost_limit: float) -> Optimum:
    weight = responses.prompt_probability[responses.prompt]
    n = len(weight)
    one_policy_a_prompt: Any = csr_array((np.ones(n), (responses.prompt, np.arange(n))))
    smallest = responses.least(responses.cost)
    feasible = smallest <= cost_limit
    # Infeasible: the most reward among the policies of the least cost, by moving the limit there.
    limit = cost_limit if feasible else smallest
    found: Any = linprog(
        -weight * responses.reward,
        A_ub=(weight * responses.cost)[None, :],
        b_ub=[limit],
        A_eq=one_policy_a_prompt,
        b_eq=np.ones(len(responses.prompt_probability)),
        method="highs",
    )
    policy = found.x
    multiplier = -float(found.ineqlin.marginals[0]) if feasible else math.inf
    bound = -float(found.fun) if feasible else -math.inf
    return _optimum(responses, policy, multiplier, feasible, smallest, 0.0, bound)


def _optimum(
    responses: Responses,
    policy: np.ndarray,
    multiplier: float,
    feasible: bool,
    smallest: float,
    kl_coefficient: float,
    bound: float,
) -> Optimum:
    reward, cost = responses.mean(policy, responses.reward), responses.mean(policy, responses.cost)
    kl = responses.divergence(policy)
    return Optimum(policy, reward, cost, kl, multiplier, feasible, smallest, reward - kl_coefficient * kl, bound)
