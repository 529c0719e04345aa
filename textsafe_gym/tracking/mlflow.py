"""MLflow: a run in the store of MLFLOW_TRACKING_URI, or in MLflow's own default, mlflow.db in the working directory."""

import logging
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textsafe_gym.tracking.base import Tracker, settings

_LONGEST = 500  # characters of a parameter's value, which every store takes
_LONGEST_NAME = 250


class MLflow(Tracker):
    """One run of the experiment that MLFLOW_EXPERIMENT_NAME or the project names, by MLflow's client alone.

    A continued run gets only rows that it does not hold: MLflow keeps every value that it was ever given.
    """

    package = "mlflow"

    def _open(self) -> None:
        # A server that does not answer must not be asked for minutes, and MLflow must report its use to nobody.
        for name, value in (("HTTP_REQUEST_TIMEOUT", "10"), ("HTTP_REQUEST_MAX_RETRIES", "1")):
            os.environ.setdefault(f"MLFLOW_{name}", value)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import mlflow

        if not os.environ.get("TEXTSAFE_DEBUG"):
            for logger in ("mlflow", "alembic"):
                logging.getLogger(logger).setLevel(logging.ERROR)
        with _one_at_a_time():
            self._client: Any = mlflow.MlflowClient()
            self._id = self._found() or self._made()
        self.remember(self._id)
        steps = [point.step for point in self._client.get_metric_history(self._id, "episodes")]
        self.last = max(steps, default=-1)

    def _found(self) -> str | None:
        from mlflow.exceptions import MlflowException

        run_id = self.remembered()
        if run_id is None:
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:  # it is of another store
            return None
        return run_id

    def _made(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.project
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = str(self._client.create_run(number, run_name=self.name, tags={"group": self.group}).info.run_id)
        params = [Param(_allowed(key), str(value)[:_LONGEST]) for key, value in settings(self.config)]
        for start in range(0, len(params), 100):  # more are refused at once
            self._client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def _write(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _close(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


def _allowed(name: str) -> str:
    """A name as MLflow takes it, which may stand for a file; groups of prompts are called as their data call them."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]+", "-", name))[:_LONGEST_NAME]


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keeps the workers of one machine from making the same tables and experiment at once."""
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else ""  # on Windows the folder is the user's own
    # Others may write there too: what they have put in its place is neither followed nor emptied.
    with FileLock(Path(tempfile.gettempdir()) / f"textsafe-mlflow-{user}.lock", mode=0o600, fallback_to_soft=False):
        yield
