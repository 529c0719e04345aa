"""What `textsafe doctor` tries out: a few seconds of the real thing, each step with an outcome that is known."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textsafe_gym.config import Values
from textsafe_gym.errors import TextsafeError

_SMALL = {"episodes_per_iteration": 16, "minibatch_size": 8, "learning_rate": 1e-3, "critic_learning_rate": 1e-3}
_ITERATIONS = 2


class Wrong(TextsafeError):
    """A step came out otherwise than it has to."""


def known_scores() -> str:
    """The shipped models score the responses on their card as they did when they were built."""
    from textsafe_gym.embedded_world import ASSETS
    from textsafe_gym.embedded_world.card import read_card
    from textsafe_gym.models.score import ScoreModel

    rows = read_card(ASSETS)["samples"]
    prompts, responses = ([row[name] for row in rows] for name in ("prompt", "response"))
    off = 0.0
    for kind in ("reward", "cost"):
        scores = ScoreModel.load(ASSETS / kind, kind)(prompts, responses)
        off = max(off, *(abs(float(score) - row[kind]) for score, row in zip(scores, rows, strict=True)))
    if not off < 0.01:
        raise Wrong(f"scores differ from the card's by up to {off:.3g}")
    return f"{len(rows)} responses are scored as on the card, to {off:.0e}"


def training() -> str:
    """Two iterations; the checkpoint gives the same policy back."""
    import torch

    import algos

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make: Values = {"episodes": _ITERATIONS * 16, "seed": 0, **_SMALL}
        trainer = algos.make("ppo_lagrangian", "SafeRLHF-v0", **make)
        before = {name: x.clone() for name, x in trainer.actor.state_dict().items()}
        rows = trainer.learn()
        odd = sorted({name for row in rows for name, value in row.items() if not math.isfinite(value)})
        if len(rows) != _ITERATIONS or odd:
            raise Wrong(f"{len(rows)} iterations, not finite: {', '.join(odd) or 'nothing'}")
        after = trainer.actor.state_dict()
        if all(torch.equal(before[name], x) for name, x in after.items()):
            raise Wrong("training changed nothing")
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(Path(folder) / "saved")
            loaded = algos.load(Path(folder) / "saved", "SafeRLHF-v0").actor.state_dict()
        apart = [name for name, x in after.items() if not torch.equal(loaded[name], x)]
        if apart:
            raise Wrong(f"loading the checkpoint changed {', '.join(apart[:3])}")
    finally:
        torch.set_num_threads(threads)
    last = rows[-1]
    return (
        f"{_ITERATIONS} iterations, reward {last['reward']:.2f}, cost {last['cost']:.2f}; the checkpoint loads the same"
    )


def optimum() -> str:
    """The enumerable task's optimum spends exactly the cost that it may."""
    import gymnasium as gym

    import textsafe_gym  # noqa: F401 (registers the environments)

    env: Any = gym.make("SafeRLHF-Exact-v0", cost_limit=0.0, kl_coefficient=0.2).unwrapped
    solved = env.solve()
    if not (abs(solved.cost) < 1e-3 and solved.multiplier > 0):
        raise Wrong(f"cost {solved.cost:.3g} at a limit of 0, multiplier {solved.multiplier:.3g}")
    return f"optimum at the limit, multiplier {solved.multiplier:.2f}"


STEPS: dict[str, Callable[[], str]] = {"scores": known_scores, "optimum": optimum, "training": training}
