"""`textsafe pareto`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from textsafe_gym.cli.options import out_option, output_options, print_json, print_tables
from textsafe_gym.cli.terminal import say

if TYPE_CHECKING:
    from textsafe_gym.evaluation.report import Cell

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
@out_option("the first DIR")
@output_options
def pareto(
    directories: tuple[Path, ...],
    cost_limit: float | None,
    reference: tuple[float, float] | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Front and hypervolume of all finished runs in and below DIR...; writes pareto.json and pareto.png.

    A setting's point is the mean over its seeds; the hypervolume's interval is a bootstrap over seeds.
    """
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.evaluation.figures import reward_cost_plane
    from textsafe_gym.evaluation.pareto import analyse
    from textsafe_gym.evaluation.report import Cell, Table, pareto_table
    from textsafe_gym.evaluation.summaries import load_runs, points_of
    from textsafe_gym.experiments.run import make_directory
    from textsafe_gym.files import write_json

    for name, numbers in (("--cost-limit", [cost_limit or 0.0]), ("--reference", reference or (0.0, 0.0))):
        if not all(math.isfinite(number) for number in numbers):
            raise ConfigError(f"{name}: expected finite numbers")
    runs = points_of(load_runs(directories))
    result = analyse(runs, cost_limit, reference)
    out = out or directories[0]
    make_directory(out)
    points = [{"label": run.label, "reward": run.reward, "cost": run.cost} for run in runs]
    reward_cost_plane(result["points"], points, cost_limit, out / "pareto.png")
    write_json(out / "pareto.json", result)
    if as_json:
        print_json({"directory": str(out), **result})
        return
    columns = ["setting", "reward", "cost", "runs", "on the front"] + (
        ["within the limit"] if cost_limit is not None else []
    )
    rows = [
        [Cell(p["label"]), Cell(f"{p['reward']:.3f}"), Cell(f"{p['cost']:.3f}"), Cell(str(p["runs"])), _yes(p["front"])]
        + ([_yes(p["feasible"])] if cost_limit is not None else [])
        for p in sorted(result["points"], key=lambda p: p["cost"])
    ]
    limit = "" if cost_limit is None else f" Cost limit {cost_limit:g}."
    print_tables([Table("Settings", f"Means over runs.{limit}", columns, rows), pareto_table(result)])
    say(f"Figure: {out / 'pareto.png'}")


def _yes(value: bool) -> "Cell":
    from textsafe_gym.evaluation.report import Cell

    return Cell("yes" if value else "")
