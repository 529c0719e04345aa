"""A folder with tensors, JSON values and the policy, which appears whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from textsafe_gym.errors import RunError
from textsafe_gym.protocols import Actor

TENSORS, VALUES, POLICY = "state.safetensors", "state.json", "policy"


def save_checkpoint(directory: Path, actor: Actor, state: Mapping[str, Any]) -> None:
    """Writes `policy/` in the policy's public format, and all of `state`, as one folder.

    The new folder is written beside the old one and renamed into its place; what a crash between the two renames
    leaves, `load_checkpoint` finds.

    Args:
        directory: replaced where it exists.
        actor: its own `state_dict` belongs into `state`, since the public format may leave something out.
        state: tensors, and values that JSON holds exactly.

    Raises:
        RunError: the folder cannot be written.
    """
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in state.items() if isinstance(x, Tensor)}
    values = {name: x for name, x in state.items() if not isinstance(x, Tensor)}
    scratch = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Holds the finished folder under its own name, since a temporary folder is its owner's alone to read.
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        new, old = scratch / "new", _aside(directory)
        new.mkdir()
        actor.save(new / POLICY)
        save_file(tensors, new / TENSORS)
        (new / VALUES).write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(directory, old)
        os.replace(new, directory)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write a checkpoint to '{directory}': {error.strerror or error}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load_checkpoint(directory: Path) -> dict[str, Any]:
    """The `state` of `save_checkpoint`, tensors on the CPU.

    Raises:
        RunError: there is no checkpoint, or it is damaged.
    """
    if not directory.exists() and _aside(directory).exists():
        os.replace(_aside(directory), directory)
    if not (directory / VALUES).is_file():
        raise RunError(f"'{directory}' holds no checkpoint ({VALUES} is missing); give the folder that `save` wrote")
    try:
        values = dict(json.loads((directory / VALUES).read_text(encoding="utf-8")))
        tensors: dict[str, Tensor] = load_file(directory / TENSORS)
    except Exception as error:  # safetensors raises a type of its own, JSON and the file system others
        raise RunError(f"the checkpoint '{directory}' is damaged: {' '.join(str(error).split())}") from None
    return {**values, **tensors}


def split_off(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def _aside(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.old"
