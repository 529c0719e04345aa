"""The memory of a run, planned before anything is loaded, and refused where no device has room for it."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.config import Values
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import DEFAULT_ENV, RunSpec
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from textsafe_gym.parallel.process_group import ProcessGroup

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def memory_plan(spec: RunSpec, processes: "ProcessGroup") -> Row:
    """The plan of one process of a run, from the configs of its models alone.

    Args:
        spec: the run.
        processes: the processes that do it together.

    Returns:
        "parts": what takes memory, see `textsafe_gym.planning.memory.Part`; "peaks": for each device the "phase" that
        takes most, its "bytes", on the CPU for all processes of this machine, and the device's "capacity" in bytes.

    Raises:
        ConfigError: the run does not train a language model, or does so by another library's algorithm.
        ModelError: a config is missing or damaged, or there is no such device.
    """
    import algos
    from textsafe_gym.parallel.deepspeed import DeepSpeedProcesses
    from textsafe_gym.planning import memory, sharding

    if spec.env["id"] != DEFAULT_ENV:
        raise ConfigError(f"--memory: plans are for language models on {DEFAULT_ENV}, not for '{spec.env['id']}'")
    kwargs, options, config = spec.env["kwargs"], spec.policy, spec.config
    if "minibatch_size" not in config:
        raise ConfigError(f"--memory: plans are for this project's own algorithms, not for {spec.algorithm}")
    sources, prompt, response = _resolved(kwargs)
    start = options.get("model") or sources["policy"]
    if start is None:
        raise ConfigError("--memory: set policy.model; the environment's tokenizer is not the embedded world's")
    policy = memory.policy_size(start, options.get("lora_rank"), options.get("last_layers"))
    scores = [memory.score_size(source, what) for what, source in sources.items() if what != "policy"]
    own = algos.definition(spec.algorithm)
    critics: list[memory.Size | None] = [None] * len(own.critics)
    if options.get("critics") == "separate":
        for number, kind in enumerate(own.critics):
            source = options.get(f"{kind}_critic") or sources.get(f"{kind} model")
            if source is None:
                raise ConfigError(f"--memory: critics=separate with several costs needs policy.{kind}_critic")
            critics[number] = memory.score_size(source, f"{kind} critic")
    score_dtype = str(kwargs.get("dtype", "float32"))
    if score_dtype not in memory.WIDTHS:
        raise ConfigError(f"dtype: expected one of {', '.join(memory.WIDTHS)}, got {score_dtype!r:.60}")
    rows = math.ceil(max(spec.num_envs, spec.evaluation_envs) / processes.world_size)
    small = math.ceil(config["minibatch_size"] / processes.world_size)
    at_once = min(config.get("micro_batch_size") or small, small)
    responses = own.kind.responses if own.offline else 1
    batch = memory.Batch(
        rows=rows,
        group_size=config.get("group_size", 1),
        at_once=at_once * responses if own.offline else min(at_once, rows),
        prompt=prompt,
        response=response,
    )
    dtype, device = options.get("dtype", "float32"), options.get("device", "cpu")
    parts = memory.plan(
        policy,
        scores,
        batch,
        dtype=dtype,
        device=device,
        score_dtype=score_dtype,
        score_device=str(kwargs.get("device", "cpu")),
        critics=critics,
        gradient_checkpointing=bool(options.get("gradient_checkpointing")),
    )
    if isinstance(processes, DeepSpeedProcesses):
        parts = sharding.sharded(
            parts, policy, critics, dtype, device, sharding.zero_of(processes.config, processes.world_size)
        )
    peaks = {}
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for place in dict.fromkeys(part.device for part in parts):
        phase, number = memory.peak(parts, place)
        total = number * (1 if place.startswith("cuda") else here)
        peaks[place] = {"phase": phase, "bytes": total, "capacity": memory.capacity(place)}
    return {"parts": [asdict(part) for part in parts], "peaks": peaks}


def check_room(plan: Row) -> None:
    """Refuses a plan that no device has the memory for.

    Raises:
        ConfigError: names the device, the phase and what is missing.
    """
    for device, peak in plan["peaks"].items():
        if peak["bytes"] > peak["capacity"]:
            raise ConfigError(
                f"--memory: the {peak['phase']} phase needs {readable(peak['bytes'])} on {device}, which has "
                f"{readable(peak['capacity'])}; lower micro_batch_size or episodes_per_iteration, set "
                "policy.gradient_checkpointing=true or policy.lora_rank, or take a smaller model"
            )


def readable(number: int) -> str:
    """A number of bytes in the unit that suits it."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"


def _resolved(kwargs: Values) -> tuple[Values, int, int]:
    """Where the policy and the score models lie by default or by the environment's settings, and both budgets."""
    from textsafe_gym import embedded_world
    from textsafe_gym.envs.task import DEFAULT_BUDGET

    own = kwargs.get("tokenizer") is None
    budgets = (
        (embedded_world.MAX_PROMPT_LENGTH, embedded_world.MAX_RESPONSE_LENGTH)
        if own
        else (DEFAULT_BUDGET, DEFAULT_BUDGET)
    )
    sources: Values = {"policy": embedded_world.ASSETS / "policy" if own else None}
    for kind in ("reward", "cost"):
        given = kwargs.get(f"{kind}_model")
        if isinstance(given, dict):
            sources |= {f"{kind} model {name}": source for name, source in given.items()}
        else:
            sources[f"{kind} model"] = embedded_world.ASSETS / kind if given is None else given
    for what, source in sources.items():
        if not isinstance(source, str | Path | None):
            raise ConfigError(f"--memory: {what}: expected a path or a hub id, got {source!r:.60}")
    names = ("max_prompt_length", "max_response_length")
    given = [kwargs.get(name, budget) for name, budget in zip(names, budgets, strict=True)]
    for name, value in zip(names, given, strict=True):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected a whole number of tokens of at least 1, got {value!r:.60}")
    return sources, given[0], given[1]
