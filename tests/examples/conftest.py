"""Fixtures that tests of several examples share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import algos

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def as_a_user(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[None]:
    """One thread, the examples' folder on Python's path, and no names registered afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
    yield
    algos.registration._algorithms.cache_clear()
