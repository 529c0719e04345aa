"""JSON and JSON-lines files: written at once or not at all, and read with the line of every fault."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textsafe_gym.errors import DataError

Row = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content atomically: a reader, or a crash, sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _named(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """One indented JSON document."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One more line at the end of a file, in a single write."""
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name into the error of a disk that is full, which has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        DataError: missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path) -> Row:
    """A JSON object.

    Raises:
        DataError: the file is missing, truncated or holds something else.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); truncated?") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_rows(path: Path, *, drop_torn_tail: bool = False) -> list[Row]:
    """The objects of a JSON-lines file.

    Args:
        path: the file.
        drop_torn_tail: leave out a last line without its newline, which a killed writer leaves behind.

    Raises:
        DataError: the file is missing, or a line is truncated or no JSON object.
    """
    text = read_text(path)
    if drop_torn_tail:
        text = text[: text.rfind("\n") + 1]
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); truncated?") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows
