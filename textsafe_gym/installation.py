"""Where this project's packages lie: `textsafe_gym/`, `algos/` and `configs/`, next to each other.

So it is in the repository and where pip has installed them. Nothing that has the same name where the user stands counts.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textsafe_gym.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def check_not_hidden() -> None:
    """Refuses to go on where `import algos` would give another package than this project's.

    Raises:
        ConfigError: such as one of the user's own in the working directory.
    """
    spec = importlib.util.find_spec("algos")
    places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin])
    if (ROOT / "algos") not in [Path(str(place)).resolve() for place in places]:
        found = f"'{places[0]}' hides" if places else "is missing:"
        raise ConfigError(f"{found} the package 'algos' of textsafe-gym; rename it, or start in another directory")


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
