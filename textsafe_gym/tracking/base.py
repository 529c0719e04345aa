"""What all trackers share: which rows are new to them, which numbers of a row they take, and the run's id there."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from textsafe_gym.errors import DataError
from textsafe_gym.files import read_json, write_json

IDS = "trackers.json"  # in a run's directory: from tracker to the run's id there
PROJECT = "textsafe-gym"


class Tracker(ABC):
    """A run as one tracking library shows it; a step is the number of episodes generated so far.

    Args:
        directory: of the run; what has to be remembered for its continuation lies there.
        name: of the run; by default the directory's.
        group: runs that differ in their seed alone.
        project: runs that are looked at together.
        config: nested settings, shown as hyperparameters.
        kept: where a run is continued, the last step that it keeps; rows after it are logged again.
    """

    package = ""  # as it is imported

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str | None = None,
        group: str | None = None,
        project: str = PROJECT,
        config: Mapping[str, object] | None = None,
        kept: int = -1,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name = name or self.directory.resolve().name
        self.group = group or self.name
        self.project = re.sub(r"[^\w.-]+", "-", project)
        self.config = dict(config or {})
        self.kept = kept
        self.last = -1  # the last step that the tracker holds
        self._open()

    def log(self, row: Mapping[str, float | None]) -> None:
        """Takes the metrics of an iteration, as `Trainer.learn` hands them out; a row that it holds is left out."""
        step = step_of(row)
        if step > self.last:
            self.last = step
            self._write(dict(numbers(row)), step)

    def finish(self, evaluation: Mapping[str, object] | None = None, complete: bool = True) -> None:
        """Takes the final measurements, under `evaluation/`, and closes the run.

        Args:
            evaluation: numbers, perhaps nested.
            complete: the run came to its end; otherwise it may be continued.
        """
        try:
            if evaluation:
                self._write(dict(numbers(evaluation, "evaluation/")), max(self.last, 0))
        finally:
            self._close(complete)

    @abstractmethod
    def _open(self) -> None:
        """Makes the run, or finds it again and sets `last`."""

    @abstractmethod
    def _write(self, values: dict[str, float], step: int) -> None:
        """Adds finite numbers at a step."""

    @abstractmethod
    def _close(self, complete: bool) -> None:
        """Everything has reached its place when this returns."""

    def remembered(self) -> str | None:
        """The run's id in this tracker, if it has been there before."""
        return self._ids().get(self.package)

    def remember(self, run_id: str) -> None:
        """For the run's continuation."""
        write_json(self.directory / IDS, self._ids() | {self.package: run_id})

    def _ids(self) -> dict[str, str]:
        path = self.directory / IDS
        try:
            return read_json(path) if path.exists() else {}
        except DataError as error:
            raise DataError(f"{error}; without that file the run begins anew in its trackers") from None


def step_of(row: Mapping[str, float | None]) -> int:
    """Where on a tracker's axis an iteration stands: the responses generated so far; without any, its number."""
    return int(row["episodes"] or row.get("iteration") or 0)


def numbers(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers in nested values, as ("prefix" + "outer/inner", number)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def settings(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested settings, as ("outer.inner", value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
