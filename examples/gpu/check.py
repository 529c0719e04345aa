"""What a device computes next to what the CPU does: log-probs, rollouts, precision, repetition, every algorithm.

python examples/gpu/check.py [--device cuda] [--out DIR]

A line of JSON for each check goes to DIR/check.jsonl; `ok` holds it to the bound that stands with it. It needs no
network: the policy, the judges and the prompts are those of the embedded world.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import algos
import textsafe_gym  # noqa: F401  (registers the environments)
from textsafe_gym import experiments
from textsafe_gym.files import json_line, read_rows
from textsafe_gym.models import make_actor, make_critics
from textsafe_gym.rollouts import collect

EPISODES = 64
Check = dict[str, Any]


def world(device: str) -> gym.vector.VectorEnv:
    return gym.make_vec("SafeRLHF-v0", num_envs=EPISODES, device=device)


def bound(actor: Any, dtype: str) -> float:
    """Of a log-prob's error: the rounding of a logit of size 16, as a random walk of what is rounded on its way.

    In float32 that is each term of a sum over the hidden size; in bfloat16, whose products are summed in float32, the
    six tensors that a layer stores.
    """
    config = actor.model.config
    terms = config.hidden_size if dtype == "float32" else 6 * config.num_hidden_layers
    return 16 * torch.finfo(getattr(torch, dtype)).eps * terms**0.5


def likelihoods(device: str) -> Iterator[Check]:
    """The same tokens' log-probs on the device and on the CPU, in float32 and bfloat16."""
    env = world("cpu")
    actor = make_actor(env)
    rollout = collect(actor, env, 0)
    truth = actor.evaluate_in_chunks(rollout.observations, rollout.actions, rollout.mask).log_probs[rollout.mask]
    for dtype in ("float32", "bfloat16"):
        other = make_actor(env, device=device, dtype=dtype)
        found = other.evaluate_in_chunks(rollout.observations, rollout.actions, rollout.mask).log_probs.cpu()
        error = (found[rollout.mask] - truth).abs()
        limit = bound(other, dtype)
        yield {
            "check": "log-probs, device against CPU",
            "dtype": dtype,
            "max": float(error.max()),
            "mean": float(error.mean()),
            "bound": limit,
            "ok": bool(error.max() < limit),
        }


def first_ratios(device: str, compiled: tuple[bool, ...] = (False, True)) -> Iterator[Check]:
    """Whether the ratio of a rollout's tokens to the same policy's teacher-forced ones begins at 1, and the KL at 0."""
    for dtype in ("float32", "bfloat16"):
        for compile in compiled:
            env = world(device)
            actor = make_actor(env, device=device, dtype=dtype, compile=compile)
            critics = make_critics(actor, env, ("reward", "cost"))
            rollout = collect(actor, env, 0, critics=critics, reference=actor.reference())
            with torch.no_grad():
                again = actor.evaluate(rollout.observations, rollout.actions, rollout.mask, critics)
            error = (again.log_probs - rollout.log_probs)[rollout.mask].abs()
            kl = (rollout.log_probs - rollout.reference_log_probs)[rollout.mask].abs()
            limit = bound(actor, dtype)
            yield {
                "check": "rollout against teacher forcing",
                "dtype": dtype,
                "compile": compile,
                "max": float(error.max()),
                "mean": float(error.mean()),
                "bound": limit,
                "reference": float(kl.max()),
                "ok": bool(max(error.max(), kl.max()) < limit),
            }


def trained(algorithm: str, device: str, out: Path, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    given = {"policy": {"device": device}, "env": {"device": device}, "episodes_per_iteration": EPISODES, **settings}
    budget: dict[str, Any] = {"data": ["simulated:128"]} if algorithm == "dpo" else {"episodes": 2 * EPISODES}
    if algorithm == "dpo":
        del given["episodes_per_iteration"]
    experiments.train(algorithm, settings=given, seed=seed, out=out, quiet=True, **budget)
    return read_rows(out / "metrics.jsonl")


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in rows] for rows in (first, second)]
    return timeless[0] == timeless[1]


def repetition(device: str, folder: Path) -> Iterator[Check]:
    """Whether a run that is made twice gives the same numbers."""
    for dtype in ("float32", "bfloat16"):
        settings = {"policy": {"device": device, "dtype": dtype}}
        runs = [trained("ppo_lagrangian", device, folder / f"{dtype}-{i}", **settings) for i in (0, 1)]
        yield {"check": "a run made twice", "dtype": dtype, "ok": same(*runs)}


def every_algorithm(device: str, folder: Path) -> Iterator[Check]:
    """Two iterations of each; the first row is of the same policy in all, and next to what the CPU says."""
    for name in algos.available():
        if ":" not in name:
            yield from trains({"algorithm": name}, name, device, folder / name)


def every_option(device: str, folder: Path) -> Iterator[Check]:
    """Two iterations with each way to hold the weights."""
    half = {"device": device, "dtype": "bfloat16"}
    for number, (algorithm, settings) in enumerate(
        [
            ("ppo_lagrangian", {"policy": {**half, "lora_rank": 4}}),
            ("ppo_lagrangian", {"policy": {**half, "critics": "separate"}}),
            ("ppo_lagrangian", {"policy": {**half, "gradient_checkpointing": True}, "micro_batch_size": 4}),
            ("ppo_lagrangian", {"policy": {**half, "compile": True}}),
            ("ppo_lagrangian", {"policy": {**half, "last_layers": 1}}),
            ("grpo_lagrangian", {"policy": half}),
            ("cpo", {"policy": half}),
            ("trpo_lagrangian", {"policy": half}),
        ]
    ):
        yield from trains({"algorithm": algorithm, **settings}, algorithm, device, folder / str(number), **settings)


def trains(named: Check, algorithm: str, device: str, out: Path, **settings: Any) -> Iterator[Check]:
    try:
        start = time.perf_counter()
        rows = trained(algorithm, device, out, **settings)
        seconds = round(time.perf_counter() - start, 1)
        first = {key: rows[0][key] for key in ("reward", "cost", "kl") if key in rows[0]}
        yield {"check": "trains", **named, "ok": True, "seconds": seconds, **first}
    except Exception as error:  # a check that ends is a result; the others go on
        yield {"check": "trains", **named, "ok": False, "error": f"{type(error).__name__}: {error}"[:400]}


def guarded(check: Callable[..., Iterator[Check]], *arguments: Any) -> Iterator[Check]:
    try:
        yield from check(*arguments)
    except Exception as error:
        yield {"check": check.__name__, "ok": False, "error": f"{type(error).__name__}: {error}"[:400]}


def main(device: str = "cuda", out: str = "runs/gpu") -> list[Check]:
    path = Path(out, "check.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Check] = []
    with tempfile.TemporaryDirectory() as temporary, path.open("w", encoding="utf-8", buffering=1) as file:
        folder = Path(temporary)
        for checks in (
            guarded(likelihoods, device),
            guarded(first_ratios, device),
            guarded(repetition, device, folder / "twice"),
            guarded(every_option, device, folder / "options"),
            guarded(every_algorithm, device, folder / "each"),
        ):
            for row in checks:
                line = json_line(row)
                print(line, end="", flush=True)
                file.write(line)
                found.append(row)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default="runs/gpu")
    raise SystemExit(not all(row["ok"] for row in main(**vars(parser.parse_args()))))
