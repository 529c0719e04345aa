"""Options that several commands share, and what they print."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.terminal import QUIET, output
from textsafe_gym.files import json_text

if TYPE_CHECKING:
    from textsafe_gym.evaluation.report import Cell, Table

Command = TypeVar("Command", bound=Callable[..., object])


def _be_quiet(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.meta[QUIET] = True


class Seed(click.ParamType[int]):
    """What torch and NumPy both take."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A whole number.

        Raises:
            click.BadParameter: it is none, or out of range.
        """
        try:
            seed = int(value)
        except ValueError:
            seed = -1
        if not 0 <= seed < 2**63:
            self.fail(f"{value!r} is not a whole number from 0 to 2^63 - 1.", param, ctx)
        return seed


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of a table.")
quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_be_quiet,
    help="No tables, no progress, no warnings: errors alone, and what --json prints.",
)
env_option = click.option(
    "--env",
    metavar="ID|FILE",
    shell_complete=values.environments,
    help="Gymnasium id, shipped configuration, or YAML file with id, kwargs and policy. [SafeRLHF-v0]",
)
set_option = click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    shell_complete=values.settings,
    help="Setting of the algorithm; env.KEY=VALUE of the environment, policy.KEY=VALUE of the policy. Repeatable.",
)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    shell_complete=values.preset_names,
    help="Settings to begin with: small suits small models; paper has the official script's. [small]",
)
track_option = click.option(
    "--track",
    type=click.Choice(["wandb", "mlflow", "trackio"]),
    callback=lambda context, parameter, name: _installed(name),
    help="Report to it too; event files for TensorBoard are always written.",
)


def _installed(name: str | None) -> str | None:
    if name is not None:
        from textsafe_gym.tracking import check_installed

        check_installed(name)
    return name


def out_option(default: str) -> Callable[[Command], Command]:
    """`--out` with its default spelt out."""
    return click.option("--out", type=click.Path(path_type=Path), help=f"Directory for the results. [{default}]")


samples_option = click.option(
    "--samples", type=click.IntRange(1), metavar="K", help="Responses to each prompt. [1, or a given run's own]"
)


def frontier_option(command: Command) -> Command:
    """--frontier, for commands that show what is attainable."""
    return click.option(
        "--frontier",
        type=click.Path(path_type=Path),
        help="Directory of `textsafe frontier`, to show what is attainable. [the embedded world's own]",
    )(command)


def output_options(command: Command) -> Command:
    """--json and --quiet, for commands that work rather than list."""
    return json_option(quiet_option(command))


def run_options(command: Command) -> Command:
    """What `train` and `compare` have in common."""
    for option in reversed(
        [
            env_option,
            click.option(
                "--config",
                metavar="FILE",
                shell_complete=values.configs,
                help="YAML file with the same keys as --set, nested, or one of the paper's: round1, round2, round3.",
            ),
            set_option,
            preset_option,
            click.option("--episodes", type=int, metavar="N", help="Episodes (of text: responses) in all, a run."),
            click.option(
                "--data",
                multiple=True,
                metavar="FILE",
                shell_complete=values.files,
                help="What a method learns from that samples nothing: pairs, labelled responses or demonstrations; or "
                "simulated:N, so many of the environment's own. Repeatable. [simulated:4096]",
            ),
        ]
    ):
        command = option(command)
    return command


def print_json(value: object) -> None:
    """The one document that `--json` prints."""
    click.echo(json_text(value), nl=False)


def print_tables(tables: "list[Table]") -> None:
    """Tables of `evaluation.report` on the terminal, as wide as they need to be where the output is not a terminal."""
    from rich.table import Table

    console = output()
    for given in tables:
        table = Table(title=given.title, caption=given.note, title_justify="left", caption_justify="left")
        for number, head in enumerate(given.columns):
            table.add_column(head, justify="right" if number else "left", overflow="fold")
        for row in given.rows:
            table.add_row(*(_cell(cell) for cell in row))
        console.print(table)


def _cell(cell: "Cell") -> str:
    from rich.markup import escape

    return escape(cell.text) + (f"\n[dim]{cell.small}[/dim]" if cell.small else "")
