"""`textsafe doctor`: versions, devices, optional parts, this directory, and a test of a few seconds."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import click

from textsafe_gym.cli.options import json_option, print_json
from textsafe_gym.cli.terminal import output

_EXAMPLE = """\b
Examples:
  textsafe doctor
  textsafe doctor --json
"""
_PACKAGE = "textsafe-gym"
_OMNISAFE = "omnisafe==0.5.0"  # which no extra names, as its own requirements cannot be met
_NEEDED = "train"  # the extra that the commands themselves are a part of
_NOT_PARTS = {_NEEDED, "dev", "docs"}  # the latter are for those who work on the package itself
_LITTLE = 2**30  # bytes of free space below which a run with checkpoints may not fit
_COLOURS = {"ok": "green", "missing": "yellow", "FAILED": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        section: "versions", "devices", "optional", "here" or "self-test".
        name: what was looked at.
        status: "ok", "missing" or "FAILED".
        detail: what was found.
        advice: a command that puts it right, or nothing.
        required: whether the package does not work without it.
    """

    section: str
    name: str
    status: str
    detail: str
    advice: str = ""
    required: bool = True


@click.command(epilog=_EXAMPLE)
@json_option
def doctor(as_json: bool) -> int:
    """Says what is installed here, and tests in a few seconds that it works.

    Exit code 1 if something that is required is missing or failed; optional parts come with the command that adds
    them.
    """
    checks = [*versions(), *devices(), *optional(), *here()]
    if not any(check.required and check.status != "ok" for check in checks if check.section == "versions"):
        from textsafe_gym.experiments.selftest import STEPS

        checks += [_tested(name, step) for name, step in STEPS.items()]
    well = all(check.status == "ok" for check in checks if check.required)
    if as_json:
        print_json({"ok": well, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks, well)
    return 0 if well else 1


def versions() -> Iterator[Check]:
    """Python, the package, and what it requires."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        own = metadata.metadata(_PACKAGE)
    except metadata.PackageNotFoundError:
        yield Check("versions", _PACKAGE, "FAILED", "not installed", f"pip install '{_PACKAGE}[{_NEEDED}]'")
        return
    yield Check("versions", _PACKAGE, "ok", own["Version"])
    wanted = SpecifierSet(own["Requires-Python"])
    fits = "ok" if platform.python_version() in wanted else "FAILED"
    yield Check("versions", "python", fits, f"{platform.python_version()} ({sys.executable})")
    for text in metadata.requires(_PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": _NEEDED}):
            status, found = _installed(text)
            advice = "" if status == "ok" else f"pip install '{requirement.name}{requirement.specifier}'"
            yield Check("versions", requirement.name, status, found, advice)


def devices() -> Iterator[Check]:
    """Processors, memory, and GPUs, each of which is made to compute something."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch

        from textsafe_gym.planning.memory import capacity
    except ModuleNotFoundError:
        return  # which `versions` says
    except Exception as error:  # such as a library of its that the system lacks
        told = " ".join(str(error).split())[:200]
        yield Check("devices", "torch", "FAILED", f"cannot be imported: {type(error).__name__}: {told}")
        return
    yield Check(
        "devices", "cpu", "ok", f"{cores} cores, torch on {torch.get_num_threads()} of them, {_size(capacity('cpu'))}"
    )
    if not torch.cuda.is_available():
        what = (
            "torch sees none" if torch.version.cuda or torch.version.hip else f"torch {torch.__version__} has no CUDA"
        )
        yield Check("devices", "gpu", "missing", what, required=False)
    for number in range(torch.cuda.device_count()):
        place = f"cuda:{number}"
        try:
            right = torch.ones(8, 8, device=place).mm(torch.ones(8, 8, device=place)).sum().item() == 512
            status = "ok" if right else "FAILED"
            detail = f"{torch.cuda.get_device_name(number)}, {_size(capacity(place))}"
        except RuntimeError as error:
            status, detail = "FAILED", " ".join(str(error).split())[:200]
        yield Check("devices", place, status, detail)


def optional() -> Iterator[Check]:
    """The package's extras, each with what it still lacks."""
    from packaging.requirements import Requirement

    try:
        extras = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    requirements = [(Requirement(text), text) for text in metadata.requires(_PACKAGE) or []]
    for extra in sorted(set(extras) - _NOT_PARTS):
        of_it = [
            text
            for requirement, text in requirements
            if requirement.marker
            and "extra" in str(requirement.marker)
            and requirement.marker.evaluate({"extra": extra})
        ]
        advice = f"pip install '{_PACKAGE}[{extra}]'"
        if extra == "omnisafe":
            of_it.insert(0, _OMNISAFE)
            advice += f" && pip install --no-deps {_OMNISAFE}"
        found = {Requirement(text).name: _installed(text) for text in of_it}
        lacking = {name: entry for name, entry in found.items() if entry[0] != "ok"}
        worst = "FAILED" if any(status == "FAILED" for status, _ in lacking.values()) else "missing"
        told = {name: text for name, (_, text) in (lacking or dict(list(found.items())[:1])).items()}
        detail = ", ".join(text if len(found) == 1 else f"{name} {text}" for name, text in told.items())
        if extra == "omnisafe" and not lacking and _installed("safety-gymnasium")[0] == "missing":
            detail += "; in the place of safety-gymnasium, which is not needed, stands a stub"
        yield Check("optional", extra, worst if lacking else "ok", detail, advice if lacking else "", required=False)


def here() -> Iterator[Check]:
    """Whether this directory can be written to, and what space it has."""
    place = "."
    try:
        place = os.getcwd()
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        yield Check("here", "directory", "FAILED", f"{place}: {error.strerror}", "give --out a directory of yours")
        return
    free = shutil.disk_usage(place).free
    status = "ok" if free > _LITTLE else "FAILED"
    yield Check("here", "directory", status, f"{place} can be written to, {_size(free)} free", required=False)


def _installed(text: str) -> tuple[str, str]:
    """Whether a requirement is met: "ok", "missing" or "FAILED", and what there is."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing", "not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return "ok", found
    return "FAILED", f"{found}, but {requirement.specifier} is needed"


def _tested(name: str, step: Callable[[], str]) -> Check:
    begun = time.perf_counter()
    try:
        detail = step()
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        return Check("self-test", name, "FAILED", f"{type(error).__name__}: {message}")
    return Check("self-test", name, "ok", f"{detail} ({time.perf_counter() - begun:.1f} s)")


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _print(checks: list[Check], well: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", "status", "found", show_edge=False)
    section = ""
    for check in checks:
        if check.section != section:
            table.add_section()
        lines = escape(check.detail) + (f"\n[dim]{escape(check.advice)}[/dim]" if check.advice else "")
        status = f"[{_COLOURS[check.status]}]{check.status}[/]"
        table.add_row(check.section if check.section != section else "", check.name, status, lines)
        section = check.section
    console = output(quiet=False)
    console.print(table)
    console.print("All that is required works." if well else "Something that is required does not work; see FAILED.")
