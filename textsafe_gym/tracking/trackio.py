"""trackio: a run in its local store, TRACKIO_DIR, or in the Space that TRACKIO_SPACE_ID names."""

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from textsafe_gym.tracking.base import Tracker


class Trackio(Tracker):
    """One run of a trackio project.

    trackio finds a run by its name, so that a few letters are added to it which no other run has. A continued run
    gets only rows that it does not hold.
    """

    package = "trackio"

    def _open(self) -> None:
        import trackio

        name = self.remembered() or f"{self.name} {secrets.token_hex(2)}"
        self.remember(name)
        with _silent():
            self._run: Any = trackio.init(
                os.environ.get("TRACKIO_PROJECT") or self.project,
                name=name,
                group=self.group,
                config=self.config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.last = self._run._next_step - 1  # it asks its store and does not report it

    def _write(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def _close(self, complete: bool) -> None:
        with _silent():
            self._run.finish()


@contextmanager
def _silent() -> Iterator[None]:
    """Its greetings go to stdout, which belongs to the command's results: those of other threads pass."""
    if os.environ.get("TEXTSAFE_DEBUG"):
        yield
        return
    before = sys.stdout
    sys.stdout = others = _OtherThreads(before)
    try:
        yield
    finally:
        if sys.stdout is others:  # and nobody has put something else there in the meantime
            sys.stdout = before


class _OtherThreads:
    """A stream without what the thread that makes it writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._silent = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silent else int(self._stream.write(text))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
