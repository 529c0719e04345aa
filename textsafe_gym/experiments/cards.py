"""The model card of a run's policy, from what the run's files and its environment say."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.config import Values
from textsafe_gym.errors import TextsafeError
from textsafe_gym.evaluation.records import data_units
from textsafe_gym.evaluation.report import UNITS
from textsafe_gym.experiments.spec import RunSpec
from textsafe_gym.files import Row
from textsafe_gym.models import task_of
from textsafe_gym.models.cards import public, write_card
from textsafe_gym.protocols import PromptTask, TextTask

if TYPE_CHECKING:
    import gymnasium as gym

_BOUNDS = {
    "mean": "mean cost of {one} <= {limit:g}",
    "probability": "P(cost > 0) <= {limit:g}",
    "cvar": "mean cost of the worst {episodes} <= {limit:g}",
}


def write_policy_card(directory: Path, spec: RunSpec, summary: Row, env: "gym.vector.VectorEnv") -> None:
    """Writes it next to the policy.

    Args:
        directory: of the policy.
        spec: the run.
        summary: of `summary.json`.
        env: the environment, which knows its prompts.
    """
    from textsafe_gym.envs.view import TaskView

    read = data_units([summary])
    kwargs, config, found = spec.env["kwargs"], spec.config, summary["evaluation"]
    task = task_of(env)
    text = isinstance(task, TextTask)
    units = UNITS["text" if text else "other"]
    one, episodes = f"{'a' if text else 'an'} {units.episode}", units.episodes
    world = "the embedded world's" if text else None
    sources = [str(kwargs[name]) for name in ("prompts", "evaluation_prompts", "demonstrations") if name in kwargs]
    facts = {
        "algorithm": spec.algorithm if spec.label == spec.algorithm else f"{spec.algorithm}, as {_label(spec.label)}",
        "environment": spec.env["id"],
        "prompts": _data(kwargs.get("prompts"), task.prompts if isinstance(task, TaskView) else None, world),
        "reward model": _model(kwargs.get("reward_model"), world),
        "cost model": _model(kwargs.get("cost_model"), world),
        "constraint": _constraint(spec, summary["cost_limit"], one, episodes),
        "KL to the starting policy": _kl(config),
        f"{episodes} {'generated' if text else 'played'}": summary["episodes"],
        **{what: f"{summary[key]}: {', '.join(spec.data)}" for key, what in read.items() if summary[key]},
        "seed": spec.seed,
        "LoRA of rank": spec.policy.get("lora_rank"),
    }
    judged = f"{found['episodes']} {episodes}"
    if text:
        source = kwargs.get("evaluation_prompts", kwargs.get("prompts"))
        prompts = _data(source, task.evaluation_prompts if isinstance(task, PromptTask) else None, world)
        judged += f" to the evaluation prompts ({prompts})"
    limit = summary["cost_limit"]
    measured = {
        "on": judged,
        "reward, mean": found.get("reward"),
        "cost, mean": found.get("cost"),
        "cost above the limit": None if limit is None else f"{found['cost_violation']:.4g} (limit {limit:g})",
        **{
            f"cost '{name}' above its limit": f"{own['cost_violation']:.4g} (limit {own['cost_limit']:g})"
            for name, own in found.get("costs", {}).items()
            if "cost_limit" in own
        },
        f"{episodes} with cost > 0": f"{100 * found['harmful_rate']:.1f} %" if "harmful_rate" in found else None,
        "KL to the starting policy, nats": found.get("kl"),
    }
    base = spec.policy.get("model")
    write_card(
        directory,
        "policy" if text else "mlp",
        {"base model": "the embedded world's starting policy"} | facts if text and base is None else facts,
        measured,
        base=base,
        sources=sources,
        tags=[spec.algorithm],
    )


def _label(label: str) -> str:
    """A label whose values are shown as all others are: ppo[reward_model=/models/a] -> ppo[reward_model=a]."""
    return re.sub(r"=([^,\]]+)", lambda value: f"={public(value[1])}" if "/" in value[1] else value[0], label)


def _constraint(spec: RunSpec, limit: float | None, one: str, episodes: str) -> str | None:
    config = spec.config
    if config.get("cost_limits"):
        return "; ".join(f"mean {name} <= {bound:g}" for name, bound in config["cost_limits"].items())
    bound = config.get("cost_limit")
    bound = limit if bound is None else bound
    kind = config["constraint"] if "constraint" in config else _constraint_of(spec.algorithm)
    if kind is None:
        return "none kept by the algorithm" if bound is None else f"none kept by the algorithm; judged at {bound:g}"
    if bound is None:
        return None
    harm = " (a cost above 0 is harmful)" if one == "a response" else ""
    return _BOUNDS[kind].format(limit=bound, one=one, episodes=episodes) + harm


def _constraint_of(algorithm: str) -> str | None:
    """What an algorithm bounds whose settings do not say it; nothing where it cannot be imported."""
    import algos

    with suppress(TextsafeError):
        return algos.definition(algorithm).constraint
    return None


def _kl(config: Values) -> str | None:
    if "kl_coefficient" not in config:
        return None
    where = {True: ", counted in the cost as well", False: ", counted in the cost as well, but not in its limit"}
    return f"coefficient {config['kl_coefficient']:g}{where.get(config.get('limit_includes_kl'), '')}"  # type: ignore[arg-type]


def _data(source: object, rows: Sequence[object] | None, default: str | None) -> str | None:
    if rows is None:
        return None
    name = public(source) if isinstance(source, str) else "given in memory" if source is not None else default
    return f"{name}, {len(rows)} rows"


def _model(source: object, default: str | None) -> str | None:
    if isinstance(source, Mapping):
        return ", ".join(f"{name}: {_model(one, None)}" for name, one in source.items())
    return default if source is None else public(source)
