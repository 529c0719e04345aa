"""TensorBoard: event files in the run's own directory, where `tensorboard --logdir runs` finds them."""

import os
import socket
import time
from typing import Any

from textsafe_gym.tracking.base import Tracker, settings


class TensorBoard(Tracker):
    """Writes scalars and hyperparameters by tensorboard's own parts, which need neither TensorFlow nor torch.

    The files lie next to the run's others and not in a folder below, since the folder's path is the run's name there.
    """

    package = "tensorboard"

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Not by EventFileWriter, whose thread prints a traceback where the disk is full.
        continued = any(self.directory.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer: Any = RecordWriter((self.directory / name).open("xb"))
        self._add(file_version="brain.Event:2")
        if continued:  # what earlier files hold from this step on is void
            self.last = self.kept
            self._add(step=self.kept + 1, session_log=SessionLog(status=SessionLog.START))
        shown = {key: x if isinstance(x, bool | int | float) else str(x) for key, x in settings(self.config)}
        if shown and not continued:
            self._add(summary=hparams_pb(shown))

    def _write(self, values: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step=step, summary=Summary(value=scalars))

    def _add(self, **event: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()  # a checkpoint must not know more than the files

    def _close(self, complete: bool) -> None:
        self._writer.close()
