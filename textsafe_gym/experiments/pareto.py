"""The front of finished runs: `pareto`."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.console import progress_console
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.experiments.arguments import check_arguments, paths_of
from textsafe_gym.experiments.result import Result
from textsafe_gym.files import Row, new_directory, write_json

if TYPE_CHECKING:
    from textsafe_gym.evaluation.report import Cell, Table, Units
    from textsafe_gym.evaluation.summaries import Run


def pareto(
    directories: str | Path | Iterable[str | Path],
    *,
    cost_limit: float | None = None,
    reference: tuple[float, float] | None = None,
    out: str | Path | None = None,
    frontier: str | Path | None = None,
    samples: int | None = None,
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
        samples: responses to each prompt that count, the first so many of the evaluated; by default all.
        quiet: do not say what is evaluated, and show no progress.

    Returns:
        Of all runs; its values are those of `pareto.json`.

    Raises:
        TextsafeError: there is no finished run, a file is damaged, runs do not go together, or were evaluated with
            fewer `samples`.
    """
    from textsafe_gym.evaluation.figures import reward_cost_plane
    from textsafe_gym.evaluation.pareto import analyse
    from textsafe_gym.evaluation.report import UNITS
    from textsafe_gym.evaluation.summaries import (
        differing_arguments,
        load_runs,
        points_of,
        repetitions_of,
        task_of_runs,
    )
    from textsafe_gym.experiments.directory import make_directory
    from textsafe_gym.experiments.frontier import known_frontier

    check_arguments({"directories": directories}, cost_limit=cost_limit, reference=reference, out=out, samples=samples)
    for name, numbers in (("--cost-limit", [cost_limit or 0.0]), ("--reference", reference or (0.0, 0.0))):
        if not all(math.isfinite(number) for number in numbers):
            raise ConfigError(f"{name}: expected finite numbers")
    places = paths_of(directories)
    for place in places:
        _evaluate_saved(place, samples or 1, quiet)
    loaded = [run if samples is None else _first(run, samples) for run in load_runs(places)]
    runs = points_of(loaded)
    known = known_frontier(frontier, [run.config for run in loaded])
    result = analyse(runs, cost_limit, reference, known, repetitions_of(loaded))
    result["environments_differ_in"] = differing_arguments(loaded)
    directory = places[0] if out is None else Path(out)
    make_directory(directory)
    limits = {run.label: cost_limit for run in runs}
    figure = directory / "pareto.png"
    attained = {name: entry["attainment"] for name, entry in result["algorithms"].items() if entry["attainment"]}
    units = UNITS[task_of_runs(loaded)]
    reward_cost_plane(result["points"], runs, limits, units, figure, known, attained if len(attained) <= 3 else None)
    write_json(directory / "pareto.json", result)
    values = {"directory": str(directory), **result}
    return Result(directory, values, _tables(result, cost_limit, units), partial(list, [figure]), loaded)


def _first(run: "Run", samples: int) -> "Run":
    """A run with its first responses to each prompt alone."""
    there = 1 + max(row.get("sample", 0) for row in run.rows)
    if there < samples:
        raise ConfigError(
            f"--samples {samples}: {run.directory} was evaluated with {there} to each prompt; make more by "
            f"textsafe evaluate {run.directory} --samples {samples}, and give what that wrote"
        )
    return replace(run, rows=[row for row in run.rows if row.get("sample", 0) < samples])


def _evaluate_saved(place: Path, samples: int, quiet: bool) -> None:
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
            evaluate(place, samples=samples, out=new, quiet=quiet)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from None


def _tables(result: Row, cost_limit: float | None, units: "Units") -> list["Table"]:
    from textsafe_gym.evaluation.report import Cell, Table, cell, environments_note, pareto_table, repeated_over

    columns = ["setting", "reward", "cost", "runs", "on the front"]
    columns += ["within the limit"] if cost_limit is not None else []
    rows = [
        [
            Cell(p["label"]),
            *(cell(p["intervals"][name], 3) for name in ("reward", "cost")),
            Cell(str(p["runs"])),
            _yes(p["front"]),
        ]
        + ([_yes(p["feasible"])] if cost_limit is not None else [])
        for p in sorted(result["points"], key=lambda p: p["cost"])
    ]
    limit = "" if cost_limit is None else f" Cost limit {cost_limit:g}."
    limit += environments_note(result["environments_differ_in"])
    note = f"Means over runs, and below them 95 % t intervals over {repeated_over(result, units)}.{limit}"
    return [Table("Settings", note, columns, rows), pareto_table(result, units)]


def _yes(value: bool) -> "Cell":
    from textsafe_gym.evaluation.report import Cell

    return Cell("yes" if value else "")
