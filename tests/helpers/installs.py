"""Installations of this package from a wheel, for programs that run in another folder."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def install_wheel(folder: Path) -> Path:
    """Builds a wheel of a copy of the sources, so that nothing is left among them, and installs it alone."""
    source, target = folder / "source", folder / "site"
    for name in ("textsafe_gym", "algos", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def link_requirements(site: Path) -> None:
    """Adds links to all that the package in a folder requires without extras, and to all that this requires in turn.

    On PYTHONPATH of a Python without `site` the folder is then like a fresh environment's.
    """
    (own,) = metadata.distributions(name="textsafe-gym", path=[str(site)])
    waiting, seen = [Requirement(text) for text in own.requires or []], {"textsafe-gym"}
    while waiting:
        wanted = waiting.pop()
        if wanted.name.lower() in seen or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(wanted.name.lower())
        there = metadata.distribution(wanted.name)
        waiting += [Requirement(text) for text in there.requires or []]
        for name in {path.parts[0] for path in there.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(there.locate_file(name))).resolve())


def run(site: Path, cwd: Path, *arguments: object, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """A program of Python's in another folder, where the package is the one in `site`.

    Args:
        site: from `install_wheel`.
        cwd: the other folder.
        *arguments: what comes after `python`.
        alone: whether nothing else can be imported.
    """
    command = [sys.executable, *(["-S"] if alone else []), *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=variables)


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
