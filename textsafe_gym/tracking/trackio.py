"""trackio: a run in its local store, TRACKIO_DIR, or in the Space that TRACKIO_SPACE_ID names."""

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from textsafe_gym.tracking.base import Tracker


class Trackio(Tracker):
    """One run of a trackio project.

    trackio finds a run by its name, so that a few letters are added to it which no other run has. A continued run is
    told only of rows that it does not hold.
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
        self.last = self._run._next_step - 1  # it asks its store and tells nobody

    def _write(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def _close(self, complete: bool) -> None:
        with _silent():
            self._run.finish()


@contextmanager
def _silent() -> Iterator[None]:
    """Its greetings go to stdout, which belongs to the command's results."""
    if os.environ.get("TEXTSAFE_DEBUG"):
        yield
    else:
        with redirect_stdout(io.StringIO()):
            yield
