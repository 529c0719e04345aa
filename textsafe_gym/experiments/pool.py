"""Many runs, one after another or in worker processes that each import once, with one line of progress a run."""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from textsafe_gym.cli.outcomes import Interrupted, WorkFailed
from textsafe_gym.cli.terminal import is_live, progress
from textsafe_gym.errors import TextsafeError
from textsafe_gym.experiments.run import execute
from textsafe_gym.experiments.spec import RunSpec
from textsafe_gym.experiments.tracking import Track

_SHOWN = (("reward", "reward"), ("cost", "cost"), ("multiplier", "λ"), ("kl", "KL"))
_EVERY = 30.0  # seconds between lines where stderr is no terminal
_events: Any = None  # of a worker process: where its reports go
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


class Display:
    """Progress on stderr: on a terminal a line for each active run, else a line now and then and when a run is done."""

    def __init__(self, total: int, silent: bool = False) -> None:
        self._console = progress()
        self._console.quiet |= silent
        self._live = is_live(self._console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._total = total
        self._finished = 0
        self._warned: dict[str, tuple[str, int]] = {}  # from kind to its first run and how many more there were
        self._started = self._spoken = time.perf_counter()
        self._all = self._progress.add_task("[bold]all runs", total=total, note="") if total > 1 else None

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for first, more in self._warned.values():
            if more:
                self.say(f"warning: {more} more runs said the same as {first}")

    def update(self, name: str, event: dict[str, Any]) -> None:
        """Shows how far a run is."""
        values = event.get("metrics", {})
        note = "evaluating" if event.get("evaluating") else ""
        note = note or "  ".join(f"{short} {values[key]:.2f}" for key, short in _SHOWN if values.get(key) is not None)
        if not self._live:
            now = time.perf_counter()
            if now - self._spoken > _EVERY:
                self._spoken = now
                self.say(f"{name}: {event['done']}/{event['total']} {note}")
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(_escape(name), total=event["total"], note="")
        self._progress.update(self._tasks[name], completed=event["done"], total=event["total"], note=note)

    def finish(self, name: str, summary: dict[str, Any] | None, problem: str = "") -> None:
        """Takes a run off the display."""
        self._finished += 1
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        if self._all is not None:
            self._progress.advance(self._all)
        text = problem
        if summary is not None:
            means = summary["evaluation"]
            text = f"reward {means['reward']:.2f}, cost {means['cost']:.2f}"
        elif self._total == 1:
            return  # the command's own last line will say it
        elapsed = time.perf_counter() - self._started
        self.say(f"[{self._finished}/{self._total}, {elapsed:.0f} s] {name}: {text}")

    def warn(self, name: str, message: str, kind: str) -> None:
        """Prints the first warning of each kind; the others are counted."""
        first, more = self._warned.get(kind, (name, -1))
        self._warned[kind] = first, more + 1
        if more < 0:
            self.say(f"warning: {name}: {message}")

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def finish_all(jobs: Sequence[Job], workers: int, command: str) -> None:
    """`run_all`, with a way to go on where not all runs were finished.

    Args:
        jobs: have passed `check`.
        workers: processes.
        command: what the user typed.

    Raises:
        Interrupted: by Ctrl-C.
        WorkFailed: some runs failed.
    """
    hint = command if "--resume" in command.split() else f"{command} --resume"
    try:
        failures = run_all(jobs, workers)
    except KeyboardInterrupt:
        raise Interrupted(f"finished runs are kept; continue with: {hint}") from None
    if failures:
        first = next(iter(failures.values()))
        raise WorkFailed(f"{len(failures)} of {len(jobs)} runs failed, first: {first}; try again with: {hint}")


def run_all(jobs: Sequence[Job], workers: int, processes: Any = None) -> dict[str, Exception]:
    """Does all runs, those of one seed next to each other.

    Args:
        jobs: have passed `check`.
        workers: processes; with 1 the runs are done in this one.
        processes: with one worker, the `ProcessGroup` whose processes do each run together; the first alone shows it.

    Returns:
        From the name of each failed run to what happened; the others are finished.
    """
    failures: dict[str, Exception] = {}
    with Display(len(jobs), silent=processes is not None and processes.rank > 0) as display:

        def finish(job: Job, work: Callable[[], dict[str, Any]]) -> None:
            try:
                display.finish(job.name, work())
            except (TextsafeError, WorkFailed) as error:
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
    jobs: Sequence[Job], workers: int, display: Display, finish: Callable[[Job, Callable[[], dict[str, Any]]], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (events,))
    try:
        futures: dict[Future[dict[str, Any]], Job] = {pool.submit(_work, job): job for job in jobs}
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


def _result(future: "Future[dict[str, Any]]") -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "a worker process died, perhaps for want of memory; use fewer --workers and --resume"
        raise WorkFailed(message) from None


def _drain(events: Any, display: Display) -> None:
    while True:
        try:
            name, event = events.get_nowait()
        except queue.Empty:
            return
        if "warning" in event:
            display.warn(name, event["warning"], event["kind"])
        else:
            display.update(name, event)


def _start_worker(events: Any) -> None:
    """In a new process: one thread, no Ctrl-C of its own, and an end when the parent is gone."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    events.cancel_join_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from textsafe_gym.cli.main import quiet_libraries

    quiet_libraries(bool(os.environ.get("TEXTSAFE_DEBUG")), _Forwarded)
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


def _work(job: Job) -> dict[str, Any]:
    global _at_work
    _at_work = job.name
    return execute(job.spec, job.directory, lambda event: _events.put((job.name, event)), track=job.track)
