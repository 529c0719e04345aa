"""Prompts and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textsafe_gym.data.files import HUB_PREFIX, TableRow, read_table
from textsafe_gym.errors import DataError
from textsafe_gym.files import read_text


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        text: what the policy is given, word for word.
        group: which sort it is ("benign", "harmful", ...), for evaluations that tell sorts apart; "" if unknown.
    """

    text: str
    group: str = ""


PromptSource = str | Path | Sequence["str | Prompt | Mapping[str, object]"]


def read_prompts(source: PromptSource) -> list[Prompt]:
    """Prompts from a file, a hub data set or a sequence in memory.

    Args:
        source: a .txt file with a prompt a line; a .jsonl, .json or .csv file (with or without .gz) or "hub:NAME"
            with a column "prompt" and, if there is one, "group"; or a sequence of strings, prompts or mappings.

    Raises:
        DataError: nothing there, or an empty or malformed prompt; the message names the file and the line.
    """
    if not isinstance(source, str | Path):
        rows = [TableRow(f"prompt {i}", value) for i, value in enumerate(source)]
        if not rows:
            raise DataError("the list of prompts is empty; give at least one prompt")
    elif not str(source).startswith(HUB_PREFIX) and str(source).lower().endswith((".txt", ".txt.gz")):
        lines = read_text(source).split("\n")
        if lines[-1] == "":
            lines.pop()  # the newline that ends the file
        rows = [TableRow(f"{source}:{i}", line.removesuffix("\r")) for i, line in enumerate(lines, start=1)]
        if not rows:
            raise DataError(f"{source}: the file has no prompts; give a file with one prompt a line")
    else:
        rows = read_table(source)
    return [_to_prompt(row) for row in rows]


def _to_prompt(row: TableRow) -> Prompt:
    value = row.values
    if isinstance(value, Mapping):
        if "prompt" not in value:
            raise DataError(f"{row.where}: no column 'prompt'; the columns are {', '.join(map(str, value))}")
        value = Prompt(value["prompt"], "" if value.get("group") is None else value["group"])
    elif isinstance(value, str):
        value = Prompt(value)
    if not isinstance(value, Prompt) or not isinstance(value.text, str) or not isinstance(value.group, str):
        raise DataError(f"{row.where}: a prompt must be text, got {row.values!r:.60}")
    if not value.text.strip():
        raise DataError(f"{row.where}: the prompt is empty; give it text or remove the line")
    return value
