"""A memory plan for one of many processes with ZeRO (Rajbhandari et al., arXiv 1910.02054, section 5).

Stage 1 leaves each of N processes 1/N of the optimiser, stage 2 of the gradients too, stage 3 of the weights too. As
DeepSpeed does it: from stage 1 on there are float32 copies of what is trained, whatever its precision; with bfloat16
all of the policy is bfloat16, LoRAs and heads included; gradients pass through a bucket that is gathered at once.
Shares are exact up to padding, the gathered weights of a pass an upper bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textsafe_gym.files import Row
from textsafe_gym.planning.memory import PHASES, WIDTHS, Part, Size, of_critics


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed config says of memory.

    Attributes:
        processes: N.
        stage: 0 to 3.
        optimizer_device: where the optimiser's share lies, none: with the policy.
        weights_device: where the weights' share lies, none: with the policy.
        bucket: of gradients, in numbers.
        live: of gathered weights, in numbers, at most.
        gather_for_generation: whether a process generates with all weights.
    """

    processes: int
    stage: int
    optimizer_device: str | None
    weights_device: str | None
    bucket: int
    live: int
    gather_for_generation: bool


def zero_of(config: Row, processes: int) -> Zero:
    """Reads a DeepSpeed config, whose defaults are filled in, for so many processes."""
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    doubled = stage in (1, 2) and zero.get("overlap_comm", False)

    def device(key: str) -> str | None:
        found = (zero.get(key) or {}).get("device", "none")
        return None if found == "none" else str(found)

    return Zero(
        processes=processes,
        stage=stage,
        optimizer_device=device("offload_optimizer"),
        weights_device=device("offload_param") if stage == 3 else None,
        bucket=int(zero.get("reduce_bucket_size", 5e8)) * (2 if doubled else 1) if stage else 0,
        live=int(zero.get("stage3_max_live_parameters", 1e9)),
        gather_for_generation=config.get("textsafe", {}).get("gather_for_generation", True),
    )


def sharded(
    parts: Sequence[Part], policy: Size, critics: Sequence[Size | None], dtype: str, device: str, zero: Zero
) -> list[Part]:
    """The plan of one process.

    Args:
        parts: of `textsafe_gym.planning.memory.plan`, for what this process does at once.
        policy: as there.
        critics: as there.
        dtype: as there.
        device: as there.
        zero: what is spread.
    """
    width, processes = WIDTHS[dtype], zero.processes
    values = sum(of_critics(policy, critics)[1:])
    weights, trained = policy.base + policy.lora + values, policy.trained + values

    def share(numbers: int, bytes_of_one: int, from_stage: int) -> int:
        return bytes_of_one * (math.ceil(numbers / processes) if zero.stage >= from_stage else numbers)

    def note(from_stage: int) -> str:
        return f"1/{processes} of {trained / 1e6:.1f} M trained" if zero.stage >= from_stage else "not spread"

    place, host = zero.weights_device or device, zero.optimizer_device or device
    name = "weights: policy and critics" if critics else "weights: policy"
    found = [Part(name, share(weights, width, 3), place, note=f"of {weights / 1e6:.1f} M")]
    if zero.stage == 3:
        live = width * min(weights, zero.live)
        if zero.gather_for_generation:
            playing = ("rollout", "scoring")
            found.append(Part("weights, gathered", width * weights, device, playing, "to generate with"))
        phases = ("update",) if zero.gather_for_generation else PHASES
        found.append(Part("weights, gathered", live, device, phases, "stage3_max_live_parameters"))
    found += [
        x for x in parts if x.name.startswith("weights") and x.name not in ("weights: policy", "weights: critics")
    ]
    found.append(Part("optimiser: two moments", share(trained, 8, 1), host, note=note(1)))
    if zero.stage:
        found.append(Part("optimiser: float32 copies", share(trained, 4, 1), host, note=note(1)))
    found.append(Part("gradients", share(trained, 4 if zero.stage > 1 else width, 2), host, ("update",), note(2)))
    if zero.bucket:
        found.append(Part("a bucket of gradients", zero.bucket * width, device, ("update",), "reduce_bucket_size"))
    learning = ("weights", "optimiser", "gradients")
    return [*found, *(x for x in parts if not x.name.startswith(learning))]
