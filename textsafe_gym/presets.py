"""The files in `configs/` that go by their name."""

import importlib
from pathlib import Path

_CONFIGS = Path(importlib.import_module("configs").__path__[0])


def presets(folder: str) -> dict[str, Path]:
    """From name to file of one folder of `configs/`: "algo", "deepspeed", "env", "paper", "study"."""
    found = [path for path in sorted((_CONFIGS / folder).iterdir()) if path.suffix in (".yaml", ".json")]
    return {path.stem: path for path in found}


def first_comment(path: Path) -> str:
    """The comment that a file begins with, if it does."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
