"""What is installed: this version, and what an installation of the environment alone lacks, refused in one line."""

import re
from functools import cache
from importlib import metadata

from textsafe_gym.errors import MissingExtraError

_PACKAGE = "textsafe-gym"


@cache
def require(extra: str) -> None:
    """Does nothing where all that an extra installs is there.

    Args:
        extra: one of the `[project.optional-dependencies]` in pyproject.toml.

    Raises:
        MissingExtraError: names what is missing, and the command that installs it.
    """
    missing = [name for name in _distributions(extra) if not _installed(name)]
    if missing:
        what = ", ".join(missing)
        raise MissingExtraError(f'not installed: {what}; pip install "{_PACKAGE}[{extra}]"')


def version() -> str:
    """This package's; of sources that are run without being installed nobody knows it."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _distributions(extra: str) -> list[str]:
    """Their names, from the metadata; none where the package is run from its sources without being installed."""
    try:
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    named = [re.fullmatch(rf"""([\w.-]+).*; *extra == ["']{extra}["']""", text) for text in requirements]
    return [found[1] for found in named if found]


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
