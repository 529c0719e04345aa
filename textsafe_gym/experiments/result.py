"""What the functions of this package return."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.errors import ConfigError
from textsafe_gym.evaluation.records import LABELLED
from textsafe_gym.files import Row

if TYPE_CHECKING:
    import pandas as pd

    from textsafe_gym.evaluation.report import Table
    from textsafe_gym.evaluation.summaries import Run

_IDENTITY = ("algorithm", "label", "seed", "cost_limit", "episodes", *LABELLED, "seconds", "tokens_per_second")


@dataclass(frozen=True)
class Result:
    """A finished piece of work, whose files lie in its directory.

    Attributes:
        directory: where it was written.
        values: what the command prints with --json: plain dictionaries, lists, numbers and text.
        tables: what the command prints without it; each has `title`, `note`, `columns` and `rows` of cells with `text`.
        figures: the PNG files.
        runs: the runs that it rests on, each with `directory`, `summary`, `rows` (evaluation.jsonl) and `metrics`.
    """

    directory: Path
    values: Row
    tables: list["Table"]
    figures: list[Path]
    runs: list["Run"]

    def frame(self) -> "pd.DataFrame":
        """A row a run: what it was, and the means of its evaluation (see `evaluation.records.summarise`).

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("frame() needs pandas: pip install pandas") from None
        return pd.DataFrame([_row(run) for run in self.runs])


def _row(run: "Run") -> Row:
    from textsafe_gym.evaluation.records import summarise

    means = summarise(run.rows, run.summary["cost_limit"])
    return {
        **{name: run.summary[name] for name in _IDENTITY if name in run.summary},
        **{name: value for name, value in means.items() if not isinstance(value, dict)},
        "directory": str(run.directory),
    }
