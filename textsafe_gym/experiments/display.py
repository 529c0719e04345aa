"""Progress of runs on stderr."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from textsafe_gym.console import is_live, progress_console
from textsafe_gym.files import Row

_SHOWN = (("reward", "reward"), ("cost", "cost"), ("multiplier", "λ"), ("kl", "KL"))
_EVERY = 30.0  # seconds between lines where stderr is not a terminal


class Display:
    """On a terminal a line for each active run, else a line now and then and when a run is done.

    Args:
        total: how many runs.
        quiet: shows nothing at all.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._console = progress_console(quiet)
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
                self.say(f"warning: {more} more {'run' if more == 1 else 'runs'} said the same as {first}")

    def update(self, name: str, event: Row) -> None:
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

    def finish(self, name: str, summary: Row | None, problem: str = "") -> None:
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
