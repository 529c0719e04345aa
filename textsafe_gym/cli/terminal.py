"""Where the commands write: results to stdout, progress and warnings to stderr, and with --quiet neither.

Colours are rich's affair: on a terminal alone, and neither there with NO_COLOR nor with TERM=dumb.
"""

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "textsafe.quiet"  # in click's `meta`, which a command shares with its group
_WIDE = 160  # columns where stdout is not a terminal


def is_quiet() -> bool:
    """Whether --quiet was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def say(line: str) -> None:
    """A line of a command's results."""
    if not is_quiet():
        click.echo(line)


def output(quiet: bool | None = None) -> "Console":
    """A console on stdout.

    Args:
        quiet: whether it swallows everything; by default as --quiet says.
    """
    from rich.console import Console

    quiet = is_quiet() if quiet is None else quiet
    return Console(file=sys.stdout, quiet=quiet, width=None if sys.stdout.isatty() else _WIDE)
