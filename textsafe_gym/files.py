"""Text, JSON and folders: written whole or not at all, and read with the line of every fault."""

import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from textsafe_gym.errors import DataError, TextsafeError

Row = dict[str, Any]  # a JSON object: a line of metrics, a summary, a card


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a new file that takes the place of `path` when the block ends without an exception.

    A reader, or a crash, sees the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _named(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `directory` when the block ends without an exception.

    An older folder is moved aside and deleted at the end; `recover_directory` finds it where a crash came between.

    Raises:
        OSError: the place cannot be written.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    # The new folder lies within it, since a temporary folder is its owner's alone to read.
    new, old = scratch / target.name, _aside(target)
    try:
        new.mkdir()
        yield new
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(new, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def recover_directory(directory: Path) -> bool:
    """Whether `directory` is there, if need be after a crash in the midst of `new_directory`, which this undoes."""
    if not directory.exists():
        with suppress(FileNotFoundError):  # nothing to undo, or another process was faster
            os.replace(_aside(directory), directory)
    return directory.exists()


def remove_leftovers(directory: Path) -> None:
    """Deletes what a crash in `new_directory` has left next to a directory that is there."""
    for leftover in directory.parent.glob(f".{directory.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _aside(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.old"


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """One indented JSON document."""
    write_text(path, json_text(value))


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json_line(row) for row in rows))


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One more line at the end of a file, in a single write."""
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(json_line(row))


def json_text(value: object) -> str:
    """An indented JSON document.

    Raises:
        TypeError, ValueError: JSON does not know the value, such as an object or a number that is not finite.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: object) -> str:
    """A line of JSON; see `json_text`."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name into the error of a disk that is full, which has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_text(path: str | Path, error: type[TextsafeError] = DataError) -> str:
    """A text file's content, decompressed if it is gzipped, without a byte order mark.

    Args:
        path: the file.
        error: raised if it is missing, unreadable, truncated or not UTF-8; it names the file, and the line if it can.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); give a readable file") from None
    if raw[:2] == b"\x1f\x8b":  # by content: a download is sometimes unpacked without being renamed
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as problem:
            raise error(f"{path}: the gzip file is truncated or corrupt ({problem}); fetch it again") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}:{line}: not UTF-8 text; convert the file to UTF-8") from None


def parse_json(
    source: str | Path, text: str, error: type[TextsafeError] = DataError, line: int = 1, hint: str = "truncated?"
) -> Any:
    """The value of a JSON document.

    Args:
        source: where the text was read, for messages.
        text: the document.
        error: raised if it is not JSON; it names the line.
        line: on which the document begins.
        hint: what to do about a fault.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        line, message = line + problem.lineno - 1, problem.msg
    except (ValueError, RecursionError) as problem:  # a number of too many digits, lists within lists
        message = str(problem)
    raise error(f"{source}:{line}: not valid JSON ({message}); {hint}")


def read_json(path: Path, error: type[TextsafeError] = DataError) -> Row:
    """A JSON object.

    Args:
        path: the file.
        error: raised if it is missing, truncated or holds something else.
    """
    value = parse_json(path, read_text(path, error), error)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_rows(source: str | Path, text: str, hint: str) -> Iterator[tuple[int, object]]:
    """The line number and the value of each line of JSON; blank lines are skipped.

    Args:
        source: where the text was read, for messages.
        text: the lines.
        hint: what to do about a line that is not JSON.

    Raises:
        DataError: a line is not JSON.
    """
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(source, line, line=number, hint=hint)


def read_rows(path: Path, *, drop_torn_tail: bool = False) -> list[Row]:
    """The objects of a JSON-lines file.

    Args:
        path: the file.
        drop_torn_tail: leave out a last line without its newline, which a killed writer leaves behind.

    Raises:
        DataError: the file is missing, or a line is truncated or not a JSON object.
    """
    text = read_text(path)
    if drop_torn_tail:
        text = text[: text.rfind("\n") + 1]
    rows = []
    for number, row in parse_rows(path, text, "truncated?"):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows
