"""Where this project's packages lie, and what ships in one: `textsafe_gym/`, `algos/`, `configs/`, next to each other.

So it is in the repository, and where pip has installed them. What has the same name where the user stands does not
count.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textsafe_gym.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> dict[str, Path]:
    """From name to file of one folder of `configs/`: "algo", "deepspeed", "env", "paper", "preset", "study"."""
    found = [path for path in sorted((ROOT / "configs" / folder).iterdir()) if path.suffix in (".yaml", ".json")]
    return {path.stem: path for path in found}


def first_comment(path: Path) -> str:
    """The comment that a file begins with, if it does."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def check_not_hidden() -> None:
    """Refuses to go on where `import algos` would give another package than this project's.

    To be asked where `algos` is about to be imported: what is on Python's path by then decides, and an editable
    installation comes after all of it.

    Raises:
        ConfigError: such as one of the user's own in the working directory.
    """
    spec = importlib.util.find_spec("algos")
    found = [] if spec is None else spec.submodule_search_locations or [str(spec.origin)]
    places = [Path(place) for place in found]
    if not places:
        raise ConfigError(f"the package 'algos' of textsafe-gym is not in {ROOT}; install it again")
    if ROOT / "algos" not in [place.resolve() for place in places]:
        raise ConfigError(
            f"{places[0]} hides the package 'algos' of textsafe-gym; rename it, or start in another directory"
        )


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Lets modules of the user's own be imported from where the user stands, as `python -m` does.

    They come last, so that they hide nothing. Worker processes inherit it.
    """
    try:
        here = os.getcwd()
    except OSError:  # it has been deleted
        here = ""
    added = here not in sys.path and bool(here)
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
