"""The trackers of a run: TensorBoard always, and what `--track` asks for."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from textsafe_gym.config import Values
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import RunSpec
from textsafe_gym.files import Row
from textsafe_gym.registry import nearest
from textsafe_gym.tracking import OPTIONAL, Background, TensorBoard, Tracker, check_installed
from textsafe_gym.tracking.base import PROJECT, step_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Track:
    """What is asked for; no part of a run's identity.

    Attributes:
        tracker: a name in `OPTIONAL`, or none.
        project: what the runs of one command have in common.
    """

    tracker: str | None = None
    project: str = PROJECT


def check_tracker(name: str | None) -> None:
    """Refuses a tracker that is unknown or not installed, without importing it.

    Raises:
        ConfigError: says which there are, or how to install it.
    """
    if name is None:
        return
    if name not in OPTIONAL:
        raise ConfigError(f"unknown tracker '{name}'; {nearest(name, list(OPTIONAL))}")
    check_installed(name)


class Tracking:
    """Hands a run's rows to its trackers; a context that closes them, whatever ends the run.

    Args:
        spec: the run.
        directory: where it lies.
        track: what is asked for.
    """

    def __init__(self, spec: RunSpec, directory: Path, track: Track) -> None:
        self._spec, self._directory, self._track = spec, directory, track
        self._local: Tracker | None = None
        self._other: Background | None = None

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.finish(complete=False)

    def start(self, rows: Sequence[Row]) -> None:
        """Opens the trackers and sends those of them that lack them the rows that a continued run has kept."""
        spec = self._spec
        about: Values = {
            "name": f"{spec.label} seed {spec.seed}",
            "group": spec.label,
            "project": self._track.project,
            "config": spec.as_dict(),
            "kept": step_of(rows[-1]) if rows else -1,
        }
        self._guarded(lambda: setattr(self, "_local", TensorBoard(self._directory, **about)))
        if self._track.tracker is not None:
            self._other = Background(
                self._track.tracker, partial(OPTIONAL[self._track.tracker], self._directory, **about)
            )
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float | None]) -> None:
        """A row of `metrics.jsonl`, after it was written there."""
        if self._local is not None:
            self._guarded(partial(self._local.log, row))
        if self._other is not None:
            self._other.log(row)

    def finish(self, evaluation: Mapping[str, object] | None = None, complete: bool = True) -> None:
        """The final evaluation, and the end; does nothing when called again."""
        local, other, self._other = self._local, self._other, None
        if local is not None:
            self._guarded(partial(local.finish, evaluation, complete))
            self._local = None
        if other is not None:
            other.finish(evaluation, complete)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # a full disk stops the run where it has to; a tracker is not a reason
            self._local = None
            _log.warning("TensorBoard has stopped: %s: %s", type(error).__name__, " ".join(str(error).split())[:200])
