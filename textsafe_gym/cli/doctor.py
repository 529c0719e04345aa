"""`textsafe doctor`: what is installed, and whether it works."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from textsafe_gym.cli.options import json_option, print_json
from textsafe_gym.cli.terminal import output

if TYPE_CHECKING:
    from textsafe_gym.experiments.doctor import Check

_EXAMPLE = """\b
Examples:
  textsafe doctor
  textsafe doctor --json
"""
_COLOURS = {"ok": "green", "missing": "yellow", "FAILED": "bold red"}


@click.command(epilog=_EXAMPLE)
@json_option
def doctor(as_json: bool) -> int:
    """Says what is installed here, and tests in a few seconds that it works.

    Exit code 1 if something that is required is missing or failed; optional parts come with the command that adds
    them.
    """
    from textsafe_gym.experiments.doctor import examine

    checks = examine()
    well = all(check.status == "ok" for check in checks if check.required)
    if as_json:
        print_json({"ok": well, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks, well)
    return 0 if well else 1


def _print(checks: list["Check"], well: bool) -> None:
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
