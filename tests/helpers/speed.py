"""How long something takes next to something else, which holds on a slower machine and on one that others use too."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Action = Callable[[], object]


def times_as_long(action: Action, yardstick: Action, prepare: Action = lambda: None, pairs: int = 11) -> float:
    """CPU time of an action over that of a yardstick, both with the processes that they wait for.

    What prepares the action is not counted. They take turns, each action is held to the yardsticks before and after it,
    and the median is given: where cores are shared, the time of the same work doubles from one second to the next.
    """
    ratios, before = [], _seconds(yardstick)
    for _ in range(pairs):
        prepare()
        spent, after = _seconds(action), _seconds(yardstick)
        ratios.append(2 * spent / (before + after))
        before = after
    return statistics.median(ratios)


def python(program: str) -> Action:
    """A program in an interpreter of its own, for which nothing may go wrong."""
    return lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def _seconds(action: Action) -> float:
    begun = _cpu_seconds()
    action()
    return _cpu_seconds() - begun


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
