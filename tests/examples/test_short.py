"""The short programs: each is short, is listed, and has its test."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_it_is_short_tested_and_listed(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 75
    test = Path(__file__).parent / f"test_{path.stem}.py"
    assert test.is_file(), f"{path.name} has no {test.name}"
    assert "main(" in test.read_text()
    assert f"]({path.name})" in (EXAMPLES / "README.md").read_text(), f"examples/README.md does not list {path.name}"


def test_all_examples_are_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for folder in sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"]({folder.name}/" in listed, f"examples/README.md does not list {folder.name}/"
