"""What OmniSafe's CPO makes of the quadratic program that each of its steps is to solve, on random small problems.

    pip install "textsafe-gym[omnisafe]"
    pip install --no-deps omnisafe==0.5.0
    python examples/omnisafe/cpo_step.py

OmniSafe's own methods are called with the products that they are given in training, before its line search; `cpo_step`
of `algos/cpo.py`, which the tests hold to sequential quadratic programming, has the solution.
"""

import argparse
import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

MAX_KL, SIZE = 0.01, 8
KINDS = {1: "violated", 2: "kept"}


def omnisafes_step(x: np.ndarray, p: np.ndarray, g: np.ndarray, b: np.ndarray, c: float) -> tuple[int, np.ndarray]:
    """Its case, 1 or 2 where the limit is within the step's reach, and its step."""
    import torch

    from textsafe_gym.adapters.omnisafe.library import library  # OmniSafe, importable without Safety-Gymnasium

    cpo = library.algorithms.on_policy.CPO
    given = SimpleNamespace(
        _cfgs=SimpleNamespace(algo_cfgs=SimpleNamespace(target_kl=MAX_KL)),
        _logger=SimpleNamespace(log=lambda *words: None),
    )
    x_, p_, g_, b_, c_ = (torch.as_tensor(own, dtype=torch.float64) for own in (x, p, g, b, c))
    q, r, s = g_.dot(x_), g_.dot(p_), b_.dot(p_)
    case, a, rest = cpo._determine_case(given, b_grads=b_, ep_costs=c_, q=q, r=r, s=s)
    step, *_ = cpo._step_direction(given, optim_case=case, xHx=q, x=x_, A=a, B=rest, q=q, p=p_, r=r, s=s, ep_costs=c_)
    return case, step.numpy()


def compare(problems: int, seed: int) -> dict[str, dict[str, float]]:
    """Over those problems in which the limit is within reach, by whether it is kept before the step."""
    from algos.cpo import cpo_step

    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[bool, ...]]] = defaultdict(list)
    for _ in range(problems):
        matrix = rng.normal(size=(SIZE, SIZE))
        fisher = matrix @ matrix.T + 0.1 * np.eye(SIZE)
        g, b = rng.normal(size=(2, SIZE))
        x, p = np.linalg.solve(fisher, g), np.linalg.solve(fisher, b)
        reach = np.sqrt(2 * MAX_KL * (b @ p))  # by how much one step can move the cost
        c = float(rng.uniform(-1, 1) * reach)
        case, step = omnisafes_step(x, p, g, b, c)
        _, alpha, beta = cpo_step(g @ x, g @ p, b @ p, c, MAX_KL)
        best = alpha * x - beta * p
        outside = 0.5 * step @ fisher @ step > 1.01 * MAX_KL
        broken = c + b @ step > 0.01 * reach
        backwards = step @ fisher @ best < 0
        solved = np.abs(step - best).max() < 1e-3 * np.abs(best).max()
        found[KINDS[case]].append((solved, outside, broken, backwards))
    names = "solved", "outside_region", "limit_broken", "backwards"
    return {
        kind: {"problems": len(rows), **dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))}
        for kind, rows in sorted(found.items())
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.problems, arguments.seed), indent=2))
