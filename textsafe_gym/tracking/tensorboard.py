"""TensorBoard: event files in the run's own directory, where `tensorboard --logdir runs` finds them."""

import time
from typing import Any

from textsafe_gym.tracking.base import Tracker, settings


class TensorBoard(Tracker):
    """Writes scalars and hyperparameters by tensorboard's own writer, which needs neither TensorFlow nor torch.

    The files lie beside the run's others and not in a folder below, since the folder's path is the run's name there.
    """

    package = "tensorboard"

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        continued = any(self.directory.glob("events.out.tfevents.*"))
        self._writer: Any = EventFileWriter(str(self.directory))
        if continued:  # what earlier files hold from this step on is void
            self.last = self.kept
            started = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=self.kept + 1, session_log=started))
        shown = {key: x if isinstance(x, bool | int | float) else str(x) for key, x in settings(self.config)}
        if shown and not continued:
            self._writer.add_event(Event(wall_time=time.time(), summary=hparams_pb(shown)))
        self._writer.flush()

    def _write(self, values: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()  # a checkpoint must not know more than the files

    def _close(self, complete: bool) -> None:
        self._writer.close()
