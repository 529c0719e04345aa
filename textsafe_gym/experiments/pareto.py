"""The front of finished runs: `pareto`."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.console import progress_console
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.experiments.arguments import check_arguments, paths_of
from textsafe_gym.experiments.result import Result
from textsafe_gym.files import Row, new_directory, write_json

if TYPE_CHECKING:
    from textsafe_gym.evaluation.report import Cell, Table


def pareto(
    directories: str | Path | Iterable[str | Path],
    *,
    cost_limit: float | None = None,
    reference: tuple[float, float] | None = None,
    out: str | Path | None = None,
    frontier: str | Path | None = None,
    quiet: bool = False,
) -> Result:
    """Front and hypervolume of all finished runs in and below directories, as `textsafe pareto` does.

    A setting's point is the mean over its seeds; the hypervolume's interval is a bootstrap over seeds. Writes
    pareto.json and pareto.png.

    A directory that a trainer's `save` left, and that has not been evaluated, is evaluated first, as `evaluate` does it
    by default; its own `evaluation/` keeps the result until the trainer saves there again.

    Args:
        directories: one or several.
        cost_limit: marks settings with a mean cost at or under it.
        reference: reward and cost that count as worst; by default the worst of all runs in each.
        out: by default the first directory.
        frontier: as for `compare`.
        quiet: do not say what is evaluated, and show no progress.

    Returns:
        Of all runs; its values are those of `pareto.json`.

    Raises:
        TextsafeError: there is no finished run, a file is damaged, or runs do not go together.
    """
    from textsafe_gym.evaluation.figures import reward_cost_plane
    from textsafe_gym.evaluation.pareto import analyse
    from textsafe_gym.evaluation.report import UNITS
    from textsafe_gym.evaluation.summaries import differing_arguments, load_runs, points_of, task_of_runs
    from textsafe_gym.experiments.directory import make_directory
    from textsafe_gym.experiments.frontier import known_frontier

    check_arguments({"directories": directories}, cost_limit=cost_limit, reference=reference, out=out)
    for name, numbers in (("--cost-limit", [cost_limit or 0.0]), ("--reference", reference or (0.0, 0.0))):
        if not all(math.isfinite(number) for number in numbers):
            raise ConfigError(f"{name}: expected finite numbers")
    places = paths_of(directories)
    for place in places:
        _evaluate_saved(place, quiet)
    loaded = load_runs(places)
    runs = points_of(loaded)
    known = known_frontier(frontier, [run.config for run in loaded])
    result = analyse(runs, cost_limit, reference, known) | {"environments_differ_in": differing_arguments(loaded)}
    directory = places[0] if out is None else Path(out)
    make_directory(directory)
    limits = {run.label: cost_limit for run in runs}
    figure = directory / "pareto.png"
    attained = {name: entry["attainment"] for name, entry in result["algorithms"].items() if entry["attainment"]}
    units = UNITS[task_of_runs(loaded)]
    reward_cost_plane(result["points"], runs, limits, units, figure, known, attained if len(attained) <= 3 else None)
    write_json(directory / "pareto.json", result)
    values = {"directory": str(directory), **result}
    return Result(directory, values, _tables(result, cost_limit), partial(list, [figure]), loaded)


def _evaluate_saved(place: Path, quiet: bool) -> None:
    """Evaluates what a trainer's `save` left in `place`, if it is that and there is no evaluation in it."""
    from textsafe_gym.experiments.evaluate import evaluate
    from textsafe_gym.experiments.saved import STATE

    if not (place / STATE).is_file() or any(place.rglob("summary.json")):
        return
    target = place / "evaluation"
    line = f"{place}: saved by a trainer and not evaluated so far; the evaluation goes to {target}"
    progress_console(quiet).print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        with new_directory(target) as new:  # an evaluation that is broken off leaves nothing
            evaluate(place, out=new, quiet=quiet)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from None


def _tables(result: Row, cost_limit: float | None) -> list["Table"]:
    from textsafe_gym.evaluation.report import Cell, Table, environments_note, pareto_table

    columns = ["setting", "reward", "cost", "runs", "on the front"]
    columns += ["within the limit"] if cost_limit is not None else []
    rows = [
        [Cell(p["label"]), Cell(f"{p['reward']:.3f}"), Cell(f"{p['cost']:.3f}"), Cell(str(p["runs"])), _yes(p["front"])]
        + ([_yes(p["feasible"])] if cost_limit is not None else [])
        for p in sorted(result["points"], key=lambda p: p["cost"])
    ]
    limit = "" if cost_limit is None else f" Cost limit {cost_limit:g}."
    limit += environments_note(result["environments_differ_in"])
    return [Table("Settings", f"Means over runs.{limit}", columns, rows), pareto_table(result)]


def _yes(value: bool) -> "Cell":
    from textsafe_gym.evaluation.report import Cell

    return Cell("yes" if value else "")
