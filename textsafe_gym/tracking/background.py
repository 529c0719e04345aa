"""A tracker in a thread of its own, so that training neither waits for it nor ends with it."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping

from textsafe_gym.tracking.base import Tracker

_log = logging.getLogger(__name__)
_PATIENCE = 60.0  # seconds that the end of a run waits
_HURRY = 10.0  # where the run was interrupted, whose continuation reports what did not get through


class Background:
    """Does `log` and `finish` of a tracker in order, later; a fault is reported once and ends the tracking alone.

    Args:
        name: of the tracker, for messages.
        make: makes the tracker.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._todo: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(make,), name=f"tracking by {name}", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, float | None]) -> None:
        """Queues the row for the tracker's thread and returns at once; see `Tracker.log`."""
        self._todo.put(lambda tracker: tracker.log(row))

    def finish(self, evaluation: Mapping[str, object] | None = None, complete: bool = True) -> None:
        """See `Tracker.finish`; waits a minute at most, and ten seconds if the run is not complete."""
        patience = _PATIENCE if complete else _HURRY
        self._todo.put(lambda tracker: tracker.finish(evaluation, complete))
        self._todo.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            _log.warning("%s did not take everything within %.0f s and is left behind", self._name, patience)

    def _work(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (task := self._todo.get()) is not None:
                task(tracker)
        except (Exception, SystemExit) as error:  # whatever a library or a network may raise
            reason = " ".join(str(error).split())[:200]
            _log.warning("tracking by %s has stopped: %s: %s", self._name, type(error).__name__, reason)
