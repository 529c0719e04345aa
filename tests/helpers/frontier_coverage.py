"""How often the intervals of `textsafe frontier` cover the exact optimum, and how often they are said to be trusted.

python -m tests.helpers.frontier_coverage [--seeds 2000] [--samples 1024] [--prompts 48] [--beta 0.5 ...]

Prompts and responses are drawn anew for every seed from the enumeration of `SafeRLHF-Exact-v0`.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

import textsafe_gym  # noqa: F401 (registers the environment)
from textsafe_gym.evaluation.frontier import TRUSTED, at_limit, front, grid
from textsafe_gym.evaluation.reweighting import Constraint, Problem, Samples, tilted

NAMES = ("multiplier", "reward", "cost", "kl")


@cache
def exact() -> Any:
    return gym.make("SafeRLHF-Exact-v0").unwrapped


def drawn(prompts: int, count: int, seed: int) -> Samples:
    """Prompts of the exact environment, and responses of its reference policy to each."""
    known, draws = exact().exact_task.responses, np.random.default_rng(seed)
    reward, cost = np.empty((2, prompts, count))
    for i, prompt in enumerate(draws.integers(len(known.prompt_probability), size=prompts)):
        own = np.flatnonzero(known.prompt == prompt)
        share = np.exp(known.reference_log_prob[own])
        picked = draws.choice(own, size=count, p=share / share.sum())
        reward[i], cost[i] = known.reward[picked], known.cost[picked]
    return Samples(reward, cost)


def hits(
    seed: int, beta: float, limit: float, prompts: int, count: int, constraint: Constraint = "mean"
) -> dict[str, bool] | None:
    """Which of the exact values lie in their intervals; None where the estimate is not trusted."""
    env = exact()
    best = env.solve(limit, beta, constraint == "kl_in_cost")
    samples, problem = drawn(prompts, count, seed), Problem(constraint, limit, beta)
    curves = tilted(samples, problem, grid(samples, problem), np.random.default_rng(seed))
    found = at_limit(curves, limit)
    if found["effective_sample_size"] < TRUSTED:
        return None
    ends = found["intervals"]
    covered = {k: bool(ends[k][0] - 1e-9 <= getattr(best, k) <= ends[k][1] + 1e-9) for k in NAMES}
    if constraint != "mean":
        return covered
    rows = [row for row in front(curves) if row["effective_sample_size"] >= TRUSTED]
    middle = rows[len(rows) // 2]
    low, high = middle["intervals"]["reward"]
    return {**covered, "front": bool(low <= env.solve(middle["cost"], beta).reward <= high)}


def shares(found: list[dict[str, bool] | None]) -> dict[str, float]:
    """Of the trusted cases, in how many each value was covered; and the share that was trusted."""
    known = [one for one in found if one is not None]
    return {"trusted": len(known) / len(found)} | {
        name: sum(one[name] for one in known) / len(known) for name in known[0]
    }


def main(seeds: int, samples: int, prompts: int, betas: list[float], limits: list[float]) -> None:
    with ProcessPoolExecutor(2) as pool:
        for beta in betas:
            for limit in limits:
                arguments = [(seed, beta, limit, prompts, samples) for seed in range(seeds)]
                found = list(pool.map(hits, *zip(*arguments, strict=True), chunksize=20))
                print(json.dumps({"beta": beta, "limit": limit, "seeds": seeds, **shares(found)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.5, 1.0], dest="betas")
    parser.add_argument("--limit", type=float, nargs="+", default=[0.0], dest="limits")
    main(**vars(parser.parse_args()))
