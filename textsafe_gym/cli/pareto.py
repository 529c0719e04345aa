"""`textsafe pareto`: the front and hypervolume of finished runs."""

from pathlib import Path

import click

from textsafe_gym.cli.options import frontier_option, out_option, output_options, print_json, print_tables
from textsafe_gym.cli.terminal import is_quiet, say

_EXAMPLE = """\b
Example:
  textsafe pareto runs/sweep --cost-limit 0 --out runs/sweep-front
"""


@click.command(epilog=_EXAMPLE)
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cost-limit", type=float, metavar="X", help="Marks settings with a mean cost at or under it.")
@click.option(
    "--reference", type=float, nargs=2, metavar="REWARD COST", help="Reference point. [the worst of all runs in each]"
)
@click.option("--samples", type=click.IntRange(1), metavar="K", help="Responses to each prompt that count. [all]")
@out_option("the first DIR")
@frontier_option
@output_options
def pareto(
    directories: tuple[Path, ...],
    cost_limit: float | None,
    reference: tuple[float, float] | None,
    samples: int | None,
    out: Path | None,
    frontier: Path | None,
    as_json: bool,
) -> None:
    """Front and hypervolume of all finished runs in and below DIR...; writes pareto.json and pareto.png.

    A setting's point is the mean over its seeds, and intervals are over seeds; of one seed, over prompts. A DIR that a
    trainer's `save` wrote is evaluated first, where it has not been.
    """
    from textsafe_gym.experiments import pareto as analyse

    result = analyse(
        directories,
        cost_limit=cost_limit,
        reference=reference,
        out=out,
        frontier=frontier,
        samples=samples,
        quiet=is_quiet(),
    )
    if as_json:
        print_json(result.values)
        return
    print_tables(result.tables)
    say(f"Figure: {result.figures[0]}")
