"""What is installed here and whether it works: versions, devices, optional parts, this directory, a test of seconds."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

_PACKAGE = "textsafe-gym"
_NEEDED = "train"  # the extra that the commands themselves are a part of
_NOT_PARTS = {_NEEDED, "dev", "docs"}  # the latter are for those who work on the package itself
_LITTLE = 2**30  # bytes of free space below which a run with checkpoints may not fit


@dataclass(frozen=True)
class Check:
    """One thing that `textsafe doctor` looked at, a line of its table.

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


def examine() -> list[Check]:
    """All checks, as `textsafe doctor` prints them; the test is left out where a required version is wrong."""
    checks = [*versions(), *devices(), *optional(), *here()]
    if all(check.status == "ok" for check in checks if check.section == "versions" and check.required):
        from textsafe_gym.experiments.selftest import STEPS

        checks += [_tested(name, step) for name, step in STEPS.items()]
    return checks


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
        reason = " ".join(str(error).split())[:200]
        yield Check("devices", "torch", "FAILED", f"cannot be imported: {type(error).__name__}: {reason}")
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

    from algos.registration import families

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
        family = families().get(extra)
        if family is not None and family.REQUIREMENT:
            of_it.insert(0, family.REQUIREMENT)
            advice += f" && pip install --no-deps {family.REQUIREMENT}"
        found = {Requirement(text).name: _installed(text) for text in of_it}
        lacking = {name: entry for name, entry in found.items() if entry[0] != "ok"}
        worst = "FAILED" if any(status == "FAILED" for status, _ in lacking.values()) else "missing"
        versions = {name: text for name, (_, text) in (lacking or dict(list(found.items())[:1])).items()}
        detail = ", ".join(text if len(found) == 1 else f"{name} {text}" for name, text in versions.items())
        if family is not None and not lacking and family.note():
            detail += f"; {family.note()}"
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
