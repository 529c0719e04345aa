"""A folder with tensors, JSON values and the policy, which appears whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from textsafe_gym.errors import RunError
from textsafe_gym.files import new_directory, read_json, recover_directory, write_json
from textsafe_gym.protocols import Actor, State

TENSORS, VALUES, POLICY = "state.safetensors", "state.json", "policy"


def save_checkpoint(directory: Path, actor: Actor, state: Mapping[str, object]) -> None:
    """Writes `policy/` in the policy's public format, and all of `state`, as one folder.

    What a crash leaves, `load_checkpoint` finds; see `new_directory`.

    Args:
        directory: replaced where it exists.
        actor: its own `state_dict` belongs into `state`, since the public format may leave something out.
        state: tensors, and values that JSON holds exactly.

    Raises:
        RunError: the folder cannot be written.
    """
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in state.items() if isinstance(x, Tensor)}
    values = {name: x for name, x in state.items() if not isinstance(x, Tensor)}
    try:
        with new_directory(directory) as new:
            actor.save(new / POLICY)
            save_file(tensors, new / TENSORS)
            write_json(new / VALUES, values)
    except OSError as error:
        raise RunError(f"cannot write a checkpoint to '{directory}': {error.strerror or error}") from None


def load_checkpoint(directory: Path) -> State:
    """The `state` of `save_checkpoint`, tensors on the CPU.

    Raises:
        RunError: there is no checkpoint, or it is damaged.
    """
    recover_directory(directory)
    if not (directory / VALUES).is_file():
        raise RunError(f"'{directory}' holds no checkpoint ({VALUES} is missing); give the folder that `save` wrote")
    try:
        values = read_json(directory / VALUES)
        tensors: dict[str, Tensor] = load_file(directory / TENSORS)
    except Exception as error:  # safetensors raises a type of its own, JSON and the file system others
        raise RunError(f"the checkpoint '{directory}' is damaged: {' '.join(str(error).split())}") from None
    return {**values, **tensors}


def split_off(state: Mapping[str, object], prefix: str) -> State:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
