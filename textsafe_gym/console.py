"""Whether and how progress is shown on stderr, and what other libraries may say."""

import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_NOBODY = logging.NullHandler()


def progress_console(quiet: bool) -> "Console":
    """A console on stderr; a quiet one shows nothing."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def is_live(console: "Console") -> bool:
    """Whether a console's lines can be drawn anew; FORCE_COLOR does not make a terminal of a file."""
    return console.file.isatty() and not console.is_dumb_terminal and not console.quiet


def quiet_libraries(handler: type[logging.Handler]) -> None:
    """Silences what other libraries say by the way, unless TEXTSAFE_DEBUG is set; our own warnings go to `handler`."""
    if os.environ.get("TEXTSAFE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    # It writes to stdout, also where another library imports it by the way.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    logging.getLogger().addHandler(_NOBODY)  # or Python prints what no handler takes, such as matplotlib's
    for name in ("textsafe_gym", "algos"):
        logger = logging.getLogger(name)
        if all(isinstance(own, handler) for own in logger.handlers):
            logger.handlers = [handler()]  # a new one for each command, as it remembers what it has said
