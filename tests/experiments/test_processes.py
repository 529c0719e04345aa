"""One process at a time works in a run's directory, and workers do not outlive the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers import cli_world
from textsafe_gym.cli.main import main
from textsafe_gym.experiments.display import Display

FOREVER = """
import sys, time
from textsafe_gym.cli.main import main
from textsafe_gym.experiments.tracking import Tracking

def log(self, row):
    print("at work", flush=True)
    time.sleep(600)

Tracking.log = log
main()
"""
WORKERS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from textsafe_gym.experiments import pool

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(2, context, pool._start_worker, (context.Queue(),))
    print(*{workers.submit(os.getpid).result(), workers.submit(os.getpid).result()}, flush=True)
    workers.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts a program whose first line of output is waited for."""
    programs = []

    def start(*command: object) -> tuple[subprocess.Popen[str], str]:
        program = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
        programs.append(program)
        assert program.stdout is not None
        return program, program.stdout.readline()

    yield start
    for program in programs:
        program.kill()
        program.communicate()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, started: Any) -> None:
    env = cli_world.build(tmp_path / "world") / "env.yaml"
    arguments = ["train", "ppo", "--env", str(env), "--episodes", "8", "--set", "episodes_per_iteration=8"]
    arguments += ["--out", str(tmp_path / "run")]
    first, line = started("-c", FOREVER, *arguments)
    assert line == "at work\n"
    second = CliRunner().invoke(main, [*arguments, "--resume"])
    assert second.exit_code == 2
    assert second.stderr == f"error: {tmp_path / 'run'}: another process is at work on this run\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "run/.lock").exists()  # and yet it is free
    third = CliRunner().invoke(main, [*arguments, "--resume"])
    assert third.exit_code == 0, third.stderr
    assert (tmp_path / "run/summary.json").exists()


def test_workers_end_with_their_parent(tmp_path: Path, started: Any) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    parent, line = started(tmp_path / "workers.py")
    workers = [int(pid) for pid in line.split()]
    assert workers
    assert all(map(alive, workers))
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < limit, "a worker lives on"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"  # which nobody has waited for


def test_warnings_of_one_kind_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(6) as display:
        for run, kind in (("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("c", "y"), ("a", "z")):
            display.warn(run, f"{kind} is odd", kind)
    assert capsys.readouterr().err.splitlines() == [
        "warning: a: x is odd",
        "warning: a: y is odd",
        "warning: a: z is odd",
        "warning: 1 more run said the same as a",
        "warning: 2 more runs said the same as a",
    ]
