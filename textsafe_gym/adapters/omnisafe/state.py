"""What objects of OmniSafe's remember, as tensors and JSON values for a checkpoint."""

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from textsafe_gym.protocols import State

_FLEETING = {"_fvp_obs"}  # made anew by each update


def state_of(holders: Mapping[str, object]) -> State:
    """Numbers, tensors, queues, optimisers and schedules that objects hold, under "HOLDER.NAME"."""
    state: State = {}
    for holder, name, value in _held(holders):
        key = f"{holder}.{name}"
        if isinstance(value, torch.optim.Optimizer):
            for number, entry in value.state_dict()["state"].items():
                state |= {f"{key}.{number}.{part}": x for part, x in entry.items()}
            state[f"{key}.lr"] = [group["lr"] for group in value.param_groups]
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            state[key] = [value.last_epoch, value._step_count, value._last_lr]
        elif isinstance(value, deque):
            parts = list(value)
            state[key] = torch.stack(parts) if parts and isinstance(parts[0], Tensor) else parts
        else:
            state[key] = value.detach() if isinstance(value, Tensor) else value
    return state


def restore(holders: Mapping[str, object], state: State) -> None:
    """Gives them back what `state_of` found."""
    for holder, name, value in _held(holders):
        key = f"{holder}.{name}"
        if isinstance(value, torch.optim.Optimizer):
            entries: dict[int, dict[str, Tensor]] = {}
            for path, x in state.items():
                if path.startswith(f"{key}.") and path != f"{key}.lr":
                    number, part = path.removeprefix(f"{key}.").split(".")
                    entries.setdefault(int(number), {})[part] = x
            value.load_state_dict({"state": entries, "param_groups": value.state_dict()["param_groups"]})
            for group, rate in zip(value.param_groups, state[f"{key}.lr"], strict=True):
                group["lr"] = rate
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            value.last_epoch, value._step_count, value._last_lr = state[key]
        elif isinstance(value, deque):
            value.clear()
            value.extend(state[key])
        elif isinstance(value, nn.Parameter):
            value.data.copy_(state[key])
        else:
            setattr(holders[holder], name, state[key])


def _held(holders: Mapping[str, object]) -> Iterator[tuple[str, str, object]]:
    kinds = (bool, int, float, Tensor, deque, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    for holder, thing in holders.items():
        values = thing if isinstance(thing, dict) else vars(thing)
        for name, value in list(values.items()):
            if isinstance(value, kinds) and name not in _FLEETING:
                yield holder, name, value
