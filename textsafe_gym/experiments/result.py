"""What the functions of this package return."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.files import Row

if TYPE_CHECKING:
    import pandas as pd

    from textsafe_gym.evaluation.report import Table
    from textsafe_gym.evaluation.summaries import Run


@dataclass(frozen=True, repr=False)
class Result:
    """A finished piece of work, whose files lie in its directory.

    Attributes:
        directory: where it was written.
        values: what the command prints with --json: plain dictionaries, lists, numbers and text.
        tables: what the command prints without it; each has `title`, `note`, `columns`, `rows` of cells with `text`,
            and `frame()`, which makes a DataFrame of it.
        draw: makes sure that the figures are there, and returns their paths.
        runs: the runs that it rests on, each with `directory`, `summary`, `rows` (evaluation.jsonl) and `metrics`.
    """

    directory: Path
    values: Row
    tables: list["Table"]
    draw: Callable[[], list[Path]]
    runs: list["Run"]

    def __repr__(self) -> str:
        labels = list(dict.fromkeys(run.label for run in self.runs))
        titles = [table.title for table in self.tables]
        return f"Result(directory={str(self.directory)!r}, labels={labels}, tables={titles})"

    @cached_property
    def figures(self) -> list[Path]:
        """The PNG files. Those of `train` (learning curves) and `evaluate` (reward against cost), which their commands
        do not draw, are drawn into the directory when they are first asked for.
        """
        return self.draw()

    def frame(self) -> "pd.DataFrame":
        """A row a run: what it was, and the means of its evaluation (see `evaluation.records.summarise`).

        Raises:
            ConfigError: pandas is not installed.
        """
        from textsafe_gym.evaluation.report import data_frame

        return data_frame([_row(run) for run in self.runs])


def _row(run: "Run") -> Row:
    from textsafe_gym.evaluation.records import data_units, summarise

    budgets = ("episodes", *data_units([run.summary]))
    identity = ("algorithm", "label", "seed", "cost_limit", *budgets, "seconds", "tokens_per_second")
    means = summarise(run.rows, run.summary["cost_limit"], run.cost_limits)
    return {
        **{name: run.summary[name] for name in identity if name in run.summary},
        **{name: value for name, value in means.items() if not isinstance(value, dict)},
        **{f"{key}_{name}": value for name, own in means.get("costs", {}).items() for key, value in own.items()},
        "directory": str(run.directory),
    }
