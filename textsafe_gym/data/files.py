"""Rows from JSON lines, JSON and CSV files, gzipped or not, and from a hub; every row knows where it stands."""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from textsafe_gym.errors import DataError
from textsafe_gym.files import parse_rows, read_text

HUB_PREFIX = "hub:"


class TableRow(NamedTuple):
    """One row as it was read.

    Attributes:
        where: "file:line" (of the row's first line), or "hub:NAME:SPLIT row N".
        values: a mapping from column to value; from JSON it may be anything, which the reader then refuses.
    """

    where: str
    values: Any


def read_table(source: str | Path) -> list[TableRow]:
    """All rows of a source.

    Args:
        source: a path ending in .jsonl, .json (an array of objects) or .csv, each with or without .gz; or
            "hub:NAME" or "hub:NAME:SPLIT" for a hub data set (split "train" unless given).

    Raises:
        DataError: missing, unreadable, truncated or malformed; the message names the file and, where there is one,
            the line.
    """
    if str(source).startswith(HUB_PREFIX):
        rows = _read_hub(str(source))
    else:
        text = read_text(source)
        suffix = Path(Path(source).name.lower().removesuffix(".gz")).suffix
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
        if suffix not in readers:
            raise DataError(f"{source}: unknown kind of file '{suffix}'; use .jsonl, .json or .csv (.gz too)")
        rows = readers[suffix](str(source), text)
    if not rows:
        raise DataError(f"{source}: the file has no rows; give a file with at least one")
    return rows


def _read_jsonl(source: str, text: str) -> list[TableRow]:
    found = parse_rows(source, text, "mend or remove the line")
    return [TableRow(f"{source}:{number}", values) for number, values in found]


def _read_json(source: str, text: str) -> list[TableRow]:
    decoder, position, line = json.JSONDecoder(), 0, 1

    def skip(characters: str) -> None:
        """Moves over white space and the given characters, counting lines."""
        nonlocal position, line
        while position < len(text) and text[position] in " \t\r\n" + characters:
            line += text[position] == "\n"
            position += 1

    skip("")
    if position == len(text):
        return []
    if text[position] != "[":
        raise DataError(f"{source}:{line}: expected a JSON array of rows; for one object a line name the file .jsonl")
    position += 1
    rows: list[TableRow] = []
    skip("")
    while position < len(text) and text[position] != "]":
        try:
            value, end = decoder.raw_decode(text, position)
        except ValueError as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{source}:{at}: not valid JSON ({message}); mend or fetch the file again") from None
        rows.append(TableRow(f"{source}:{line}", value))
        line += text.count("\n", position, end)
        position = end
        skip("")
        if position < len(text) and text[position] == ",":
            position += 1
            skip("")
        elif position < len(text) and text[position] != "]":
            raise DataError(f"{source}:{line}: not valid JSON (expected ',' or ']'); mend or fetch the file again")
    if position >= len(text):
        raise DataError(f"{source}:{line}: the JSON array never ends, the file is truncated; fetch it again")
    position += 1
    skip("")
    if position < len(text):
        raise DataError(f"{source}:{line}: text after the end of the JSON array; mend the file")
    return rows


def _read_csv(source: str, text: str) -> list[TableRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[TableRow] = []
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{source}:{line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: a column name occurs twice; give each column its own name")
            elif len(fields) != len(header):
                raise DataError(f"{where}: {len(fields)} fields where the header has {len(header)}; mend the row")
            else:
                rows.append(TableRow(where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise DataError(f"{source}:{line}: not valid CSV ({error}); mend or fetch the file again") from None
    return rows


def _read_hub(source: str) -> list[TableRow]:
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    split = split or "train"
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{source}: reading a hub data set needs the extra: pip install 'textsafe-gym[hub]'") from None
    try:
        loaded = load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: no network, no such name, no such split
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source}: the data set cannot be loaded ({reason}); check name, split and network") from None
    return [TableRow(f"hub:{name}:{split} row {i}", values) for i, values in enumerate(loaded)]
