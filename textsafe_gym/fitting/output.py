"""What all fits check before they start, and what they write."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.files import Row
from textsafe_gym.models.cards import public, write_card
from textsafe_gym.models.files import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS_FILE = "metrics.json"


def check_output(out: str | Path) -> None:
    """Makes sure, before any work is done and without writing anything, that `out` can become a new folder.

    Raises:
        RunError: it exists and is not an empty folder, or the folder above it cannot be written.
    """
    path = Path(out)
    try:
        if path.exists() and not path.is_dir():
            raise RunError(f"--out {out}: is a file; give a new folder")
        if path.is_dir() and any(path.iterdir()):
            raise RunError(f"--out {out}: the folder is not empty; give a new one or remove it")
        above = path.absolute().parent
        while not above.exists():
            above = above.parent
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RunError(f"--out {out}: '{above}' is not a folder that can be written; give another")


def check_settings(
    epochs: int, learning_rate: float, minibatch_size: int, test_fraction: float, max_length: int
) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: names the setting and its value.
    """
    if epochs < 0:
        raise ConfigError(f"epochs must be at least 0, got {epochs}")
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning-rate must be a positive number, got {learning_rate}")
    if minibatch_size < 1:
        raise ConfigError(f"minibatch-size must be at least 1, got {minibatch_size}")
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test-fraction must be at least 0 and below 1, got {test_fraction}")
    if max_length < 2:
        raise ConfigError(f"max-length must be at least 2, got {max_length}")


def is_tiny(model: "str | Path | PreTrainedModel") -> bool:
    """Whether `model` asks for a new tiny model: "tiny" or "tiny:hidden=128,layers=4"."""
    return isinstance(model, str) and (model == "tiny" or model.startswith("tiny:"))


def check_lora(model: "str | Path | PreTrainedModel", rank: int | None) -> None:
    """Refuses a LoRA of a model that has no place to refer to.

    Raises:
        ConfigError: a rank is given, and it is not positive or the model is a new one or one in memory.
    """
    if rank is None:
        return
    if rank < 1:
        raise ConfigError(f"lora-rank must be at least 1, got {rank}")
    if is_tiny(model) or not isinstance(model, str | Path):
        name = f"'{model}'" if isinstance(model, str) else f"a {type(model).__name__} in memory"
        raise ConfigError(
            f"lora-rank: a LoRA is saved without its base model, and {name} lies nowhere; "
            "give a model's folder or hub id"
        )


def default_device(device: str | None) -> str:
    """The device asked for, or a GPU if there is one, or the CPU.

    Raises:
        ConfigError: torch has no such device here.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"no device '{device}' here: {one_line(error)}") from None
    return device


def write_fit_card(
    directory: Path, metrics: Row, model: "str | Path | PreTrainedModel", data: Mapping[str, int] | None
) -> None:
    """The model card of a fit.

    Args:
        directory: holds the model.
        metrics: of `metrics.json`.
        model: what the fit started from.
        data: from each file or hub data set to its rows; None for rows that were given in memory.
    """
    settings, rows, prompts = metrics["settings"], metrics["rows"], metrics["prompts"]
    base = str(model) if isinstance(model, str | Path) and not is_tiny(model) else None
    new = {} if base else {"base model": "none: a new one" if is_tiny(model) else type(model).__name__}
    facts = {
        **new,
        "data": "; ".join(f"{public(name)}, {count} rows" for name, count in (data or {}).items()) or "given in memory",
        "fitted to": f"{rows['train']} rows of {prompts['train']} prompts",
        "held out": f"{rows['held_out']} rows of {prompts['held_out']} prompts",
        "LoRA of rank": settings["lora_rank"],
        **{
            name.replace("_", " "): settings.get(name)
            for name in ("loss", "epochs", "learning_rate", "minibatch_size", "max_length")
        },
        "seed": settings["seed"],
    }
    if "normaliser" in metrics:
        mean, std = metrics["normaliser"]["mean"], metrics["normaliser"]["std"]
        facts["normaliser"] = f"score = (raw - {mean:.4g}) / {std:.4g}"
    measured = {
        f"{judge}: {name.replace('_', ' ')}": value
        for judge, found in metrics.get("held_out", {}).items()
        for name, value in found.items()
    }
    if measured:
        measured = {"on": f"{rows['held_out']} held-out rows", **measured}
    write_card(directory, metrics["kind"], facts, measured, base=base, sources=list(data or {}))
