"""Many runs, one after another or in worker processes that each import once, with one line of progress a run."""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.console import quiet_libraries
from textsafe_gym.errors import ExecutionError, RunInterrupted, TextsafeError
from textsafe_gym.experiments.directory import CONFIG, same_request
from textsafe_gym.experiments.display import Display
from textsafe_gym.experiments.run import execute
from textsafe_gym.experiments.spec import RunSpec
from textsafe_gym.experiments.tracking import Track
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from textsafe_gym.parallel.process_group import ProcessGroup

_events: "Queue[tuple[str, Row]]"  # of a worker process: where its reports go
_at_work = ""  # of a worker process: the name of its run


@dataclass(frozen=True)
class Job:
    """A run, where it goes, and who shows it."""

    spec: RunSpec
    directory: Path
    track: Track | None = None

    @property
    def name(self) -> str:
        """For progress and messages."""
        return f"{self.spec.label} seed {self.spec.seed}"


def jobs_of(
    specs: Sequence[RunSpec], seeds: Iterable[int], out: Path, folder: Callable[[str], str], track: str | None
) -> list[Job]:
    """A run of each specification with each seed, those of one seed next to each other, below `out`.

    Args:
        specs: the runs, whose own seeds do not count.
        seeds: the seeds.
        out: the directory of the whole experiment, whose name is the trackers' project.
        folder: the directory of a label.
        track: a tracker's name.

    Raises:
        ConfigError: a run lies there already and has other settings.
    """
    tracked = Track(track, out.resolve().name)
    jobs = [
        Job(spec.with_seed(seed), out / folder(spec.label) / f"seed_{seed}", tracked)
        for seed in seeds
        for spec in specs
    ]
    # The untrained policy's batch follows from an iteration's, so that what was changed is a setting of the others.
    for job in sorted(jobs, key=lambda job: "episodes_per_iteration" not in job.spec.config):
        if (job.directory / CONFIG).exists():
            same_request(job.spec, job.directory)
    return jobs


def finish_all(jobs: Sequence[Job], workers: int, resume: str, quiet: bool) -> None:
    """`run_all`, with a way to go on where not all runs were finished.

    Args:
        jobs: have passed `check`.
        workers: processes.
        resume: the command or call that continues them.
        quiet: shows no progress.

    Raises:
        RunInterrupted: by Ctrl-C.
        ExecutionError: some runs failed.
    """
    try:
        failures = run_all(jobs, workers, quiet=quiet)
    except KeyboardInterrupt:
        raise RunInterrupted(f"finished runs are kept; continue with: {resume}") from None
    if failures:
        first = next(iter(failures.values()))
        raise ExecutionError(f"{len(failures)} of {len(jobs)} runs failed, first: {first}; try again with: {resume}")


def run_all(
    jobs: Sequence[Job], workers: int, processes: "ProcessGroup | None" = None, quiet: bool = False
) -> dict[str, Exception]:
    """Does all runs, in their order.

    Args:
        jobs: have passed `check`.
        workers: processes; with 1 the runs are done in this one.
        processes: with one worker, the `ProcessGroup` whose processes do each run together; the first alone shows it.
        quiet: shows no progress.

    Returns:
        From the name of each failed run to what happened; the others are finished.
    """
    failures: dict[str, Exception] = {}
    with Display(len(jobs), quiet or (processes is not None and processes.rank > 0)) as display:

        def finish(job: Job, work: Callable[[], Row]) -> None:
            try:
                display.finish(job.name, work())
            except (TextsafeError, ExecutionError) as error:
                failures[job.name] = error
                display.finish(job.name, None, str(error))

        if workers == 1:
            for job in jobs:
                finish(
                    job,
                    lambda job=job: execute(  # type: ignore[misc]
                        job.spec, job.directory, lambda e: display.update(job.name, e), processes, job.track
                    ),
                )
        else:
            _in_processes(jobs, workers, display, finish)
    return failures


def _in_processes(
    jobs: Sequence[Job], workers: int, display: Display, finish: Callable[[Job, Callable[[], Row]], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (events,))
    try:
        futures: dict[Future[Row], Job] = {pool.submit(_work, job): job for job in jobs}
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(events, display)
            for future in done:
                finish(futures[future], lambda future=future: _result(future))  # type: ignore[misc]
    except BaseException:
        # A run can be continued from its last checkpoint, so nothing is lost by ending its process here.
        processes = list(getattr(pool, "_processes", {}).values())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=5.0)
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _result(future: "Future[Row]") -> Row:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "a worker process died, perhaps for want of memory; use fewer --workers and --resume"
        raise ExecutionError(message) from None


def _drain(events: "Queue[tuple[str, Row]]", display: Display) -> None:
    while True:
        try:
            name, event = events.get_nowait()
        except queue.Empty:
            return
        if "warning" in event:
            display.warn(name, event["warning"], event["kind"])
        else:
            display.update(name, event)


def _start_worker(events: "Queue[tuple[str, Row]]") -> None:
    """In a new process: one thread, no Ctrl-C of its own, and an end when the parent is gone."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    events.cancel_join_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_libraries(_Forwarded)
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    sys.stderr.flush()
    os._exit(1)


class _Forwarded(logging.Handler):
    """Hands a worker's warnings to the process that owns the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Under the name of the run at work."""
        _events.put((_at_work, {"warning": " ".join(record.getMessage().split()), "kind": record.msg}))


def _work(job: Job) -> Row:
    global _at_work
    _at_work = job.name
    return execute(job.spec, job.directory, lambda event: _events.put((job.name, event)), track=job.track)
