"""What is checked on a GPU, on the CPU in a small size."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.example_loader import load


def test_a_device_is_held_to_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = load("gpu/check")
    monkeypatch.setattr(check, "EPISODES", 8)
    rows: list[Any] = [*check.likelihoods("cpu"), *check.first_ratios("cpu", compiled=(False,))]
    assert [row["ok"] for row in rows] == [True] * 4, rows
    # The tokens are the same in both; one precision is not the other.
    assert rows[0]["max"] == 0 < rows[1]["max"]

    def wrong(*_: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(check, "trained", wrong)
    (row,) = check.trains({"algorithm": "ppo"}, "ppo", "cpu", tmp_path / "ppo")
    assert (row["ok"], row["error"]) == (False, "RuntimeError: no such device")
