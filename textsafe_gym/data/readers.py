"""Readers of preference pairs, labelled answers and demonstrations, in the shapes in which public data sets lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from textsafe_gym.data.files import TableRow, read_table
from textsafe_gym.errors import DataError

ASSISTANT = "\n\nAssistant:"
"""What opens an assistant's turn in hh-rlhf dialogues."""

_YES = {"1", "true", "yes"}
_NO = {"0", "false", "no"}
_POSITIVE = {"reward": {*_YES, "good", "helpful"}, "cost": {*_YES, "unsafe", "harmful"}}
_NEGATIVE = {"reward": {*_NO, "bad", "unhelpful"}, "cost": {*_NO, "safe", "harmless"}}


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which `better` was preferred to `worse` (on the dimension that is being fitted).

    Attributes:
        prompt, better, worse: texts.
        probability: that `better` is preferred, where it is known; 1 for a label.
    """

    prompt: str
    better: str
    worse: str
    probability: float = 1.0


@dataclass(frozen=True)
class SafetyPreference:
    """Two answers to a prompt, of which `safer` was judged safer than `other`.

    Attributes:
        prompt, safer, other: texts.
        safer_is_safe, other_is_safe: the safety label of each answer by itself; both may be unsafe.
    """

    prompt: str
    safer: str
    other: str
    safer_is_safe: bool
    other_is_safe: bool

    @property
    def consistent(self) -> bool:
        """False where the safer answer is labelled unsafe and the other one safe."""
        return self.safer_is_safe or not self.other_is_safe


@dataclass(frozen=True)
class Labelled:
    """One answer to a prompt; a true label says "good" to a reward model and "unsafe" to a cost model."""

    prompt: str
    response: str
    label: bool


ScoreRow = Preference | SafetyPreference | Labelled


@dataclass(frozen=True)
class Columns:
    """Names of the columns of single answers."""

    prompt: str = "prompt"
    response: str = "response"
    label: str = "label"


class ScoreData(NamedTuple):
    """What was read for a reward or cost model.

    Attributes:
        rows: in the order of the file.
        skipped: how many inconsistent rows were left out.
    """

    rows: list[ScoreRow]
    skipped: int


def read_demonstrations(source: str | Path, columns: Columns = Columns()) -> list[tuple[str, str]]:
    """(prompt, response) pairs for supervised fine-tuning.

    Args:
        source: rows with a prompt and a response column; or pairs in the shapes of `read_preferences`, of which the
            preferred answer is taken.
        columns: the columns' names.

    Raises:
        DataError: a row is malformed; the message names file and line.
    """
    rows = read_table(source)
    demonstrations = []
    for row in rows:
        values = _mapping(row)
        if columns.response in values or not values.keys() & {"chosen", "better_response_id"}:
            demonstrations.append((_prompt(row, columns.prompt), _text(row, columns.response)))
        elif "chosen" not in values:
            pair = _helpfulness_pair(row)
            demonstrations.append((pair.prompt, pair.better))
        elif "prompt" in values:
            demonstrations.append((_prompt(row, "prompt"), _text(row, "chosen")))
        else:
            demonstrations.append(split_dialogue(_text(row, "chosen"), row.where))
    return demonstrations


def read_preferences(source: str | Path) -> list[Preference]:
    """Pairs of answers, the more helpful one first.

    Args:
        source: a file or "hub:NAME[:SPLIT]", with PKU-SafeRLHF's columns, hh-rlhf's dialogues or answers to a prompt;
            see `read_score_data`.

    Raises:
        DataError: a row is malformed or no pair; the message names file and line.
    """
    rows = read_table(source)
    first = set(_mapping(rows[0]))
    if {"response_0", "response_1"} <= first:
        return [_helpfulness_pair(row) for row in rows]
    if {"chosen", "rejected"} <= first:
        return [_dialogue_pair(row) for row in rows]
    raise DataError(
        f"{rows[0].where}: columns {', '.join(map(str, _mapping(rows[0])))} are not pairs: response_0, response_1 and "
        "better_response_id; or chosen and rejected"
    )


def read_labelled(source: str | Path) -> list[Labelled]:
    """Single answers, labelled good (true) or bad (false).

    Args:
        source: rows with `prompt`, `response` and `label`, where 1, true, yes, good and helpful say good, and 0, false,
            no, bad and unhelpful say bad; or pairs in the shapes of `read_preferences`, whose preferred answer is good
            and whose other one is bad.

    Raises:
        DataError: a row is malformed or a label is another word; the message names file and line.
    """
    rows, columns = read_table(source), Columns()
    first = set(_mapping(rows[0]))
    if columns.label not in first and first & {"response_0", "chosen"}:
        return [row for pair in read_preferences(source) for row in apart(pair)]
    return _labelled(rows, "reward", columns, (), "use words such as good and bad")


def apart(pair: Preference, first: bool = True) -> tuple[Labelled, Labelled]:
    """A pair as two labelled answers, the better one good; with `first` false the worse one, as noise may have it."""
    return Labelled(pair.prompt, pair.better, first), Labelled(pair.prompt, pair.worse, not first)


def read_score_data(
    source: str | Path,
    kind: Literal["reward", "cost"],
    columns: Columns = Columns(),
    positive: Sequence[str] = (),
    skip_inconsistent: bool = False,
) -> ScoreData:
    """Rows for a reward or cost model, in whichever of three shapes the first row has.

    - PKU-SafeRLHF pairs: prompt, response_0, response_1 and better_response_id (reward) or safer_response_id,
      is_response_0_safe, is_response_1_safe (cost).
    - hh-rlhf pairs: chosen and rejected dialogues; the prompt is what both share up to an assistant's turn. Where
      there is a column "prompt", chosen and rejected are answers to it.
    - Single answers: prompt, response, label.

    Args:
        source: a file or "hub:NAME[:SPLIT]".
        kind: what the rows are for.
        columns: the columns' names of single answers.
        positive: the label values that mean "good" (reward) or "unsafe" (cost), compared without case; by default
            the usual words for it, and then every other word is refused.
        skip_inconsistent: leave out pairs whose safer answer is labelled unsafe and the other safe, and count them.

    Raises:
        DataError: a row is malformed or inconsistent (the message names file and line), or a value of `positive`
            never occurs.
    """
    rows = read_table(source)
    first = _mapping(rows[0])
    read: list[ScoreRow] = []
    skipped = 0
    if {columns.prompt, columns.response, columns.label} <= set(first):
        meaning = "good" if kind == "reward" else "unsafe"
        read.extend(_labelled(rows, kind, columns, positive, f"say with --positive which labels mean {meaning}"))
    elif {"response_0", "response_1"} <= set(first):
        for row in rows:
            pair = _numbered_pair(row, kind)
            if isinstance(pair, SafetyPreference) and not pair.consistent:
                if not skip_inconsistent:
                    raise DataError(
                        f"{row.where}: inconsistent row: the safer answer is labelled unsafe and the other safe; "
                        "mend it or leave such rows out with --skip-inconsistent"
                    )
                skipped += 1
            else:
                read.append(pair)
        if not read:
            raise DataError(f"{source}: all {skipped} rows are inconsistent; nothing is left to fit on")
    elif {"chosen", "rejected"} <= set(first):
        read.extend(_dialogue_pair(row) for row in rows)
    else:
        raise DataError(
            f"{rows[0].where}: columns {', '.join(map(str, first))} are none of: response_0 and response_1; chosen and "
            f"rejected; {columns.prompt}, {columns.response} and {columns.label}; name the columns of single answers"
        )
    return ScoreData(read, skipped)


def split_dialogue(dialogue: str, where: str) -> tuple[str, str]:
    """An hh-rlhf dialogue as prompt (up to and with the last "\\n\\nAssistant:") and answer.

    Raises:
        DataError: no assistant's turn, or nothing before it.
    """
    before, turn, answer = dialogue.rpartition(ASSISTANT)
    if not turn or not before.strip():
        raise DataError(f"{where}: no human's turn followed by '\\n\\nAssistant:'; mend or remove the row")
    return before + turn, answer


def _dialogue_pair(row: TableRow) -> Preference:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if "prompt" in row.values:
        return Preference(_prompt(row, "prompt"), chosen, rejected)
    prompt = split_dialogue(chosen, row.where)[0]
    # A few published pairs part before the last turn: their prompt is the longest one that both dialogues share.
    while not rejected.startswith(prompt):
        before, turn, _ = prompt.removesuffix(ASSISTANT).rpartition(ASSISTANT)
        if not before.strip():
            raise DataError(f"{row.where}: chosen and rejected share no prompt; mend or remove the row")
        prompt = before + turn
    return Preference(prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _helpfulness_pair(row: TableRow) -> Preference:
    answers, better = (_text(row, "response_0"), _text(row, "response_1")), _identifier(row, "better_response_id")
    return Preference(_prompt(row, "prompt"), answers[better], answers[1 - better])


def _numbered_pair(row: TableRow, kind: str) -> ScoreRow:
    if kind == "reward":
        return _helpfulness_pair(row)
    prompt = _prompt(row, "prompt")
    answers = (_text(row, "response_0"), _text(row, "response_1"))
    safer = _identifier(row, "safer_response_id")
    safe = (_boolean(row, "is_response_0_safe"), _boolean(row, "is_response_1_safe"))
    return SafetyPreference(prompt, answers[safer], answers[1 - safer], safe[safer], safe[1 - safer])


def _labelled(
    rows: Sequence[TableRow], kind: str, columns: Columns, positive: Sequence[str], hint: str
) -> list[Labelled]:
    wanted = {value.strip().casefold() for value in positive} or _POSITIVE[kind]
    seen: dict[str, str] = {}
    read = []
    for row in rows:
        value = _value(row, columns.label)
        word = _word(value)
        if not word:
            raise DataError(f"{row.where}: '{columns.label}' is empty; label the row or remove it")
        if not positive and word not in wanted | _NEGATIVE[kind]:
            raise DataError(f"{row.where}: unknown label '{value}'; {hint}")
        seen.setdefault(word, str(value))
        read.append(Labelled(_prompt(row, columns.prompt), _text(row, columns.response), word in wanted))
    absent = sorted(wanted - set(seen)) if positive else []
    if absent:
        source = rows[0].where.rpartition(":")[0] or rows[0].where
        known = ", ".join(sorted(seen.values()))
        raise DataError(f"{source}: no row has the label '{absent[0]}'; its labels are {known}")
    return read


def _mapping(row: TableRow) -> Mapping[str, object]:
    if not isinstance(row.values, Mapping):
        raise DataError(f"{row.where}: expected an object with named columns, got {row.values!r:.40}")
    return row.values


def _value(row: TableRow, column: str) -> object:
    values = _mapping(row)
    if column not in values:
        raise DataError(f"{row.where}: no column '{column}'; the columns are {', '.join(map(str, values))}")
    return values[column]


def _text(row: TableRow, column: str) -> str:
    # An empty answer is allowed: a policy, too, can end its answer at once.
    value = _value(row, column)
    if not isinstance(value, str):
        raise DataError(f"{row.where}: '{column}' must be text, got {value!r:.40}")
    return value


def _prompt(row: TableRow, column: str) -> str:
    text = _text(row, column)
    if not text.strip():
        raise DataError(f"{row.where}: '{column}' is empty; give the row a prompt or remove it")
    return text


def _word(value: object) -> str:
    """A label or flag as a lower-case word; 1, 1.0, true and "True" come out as they would be meant."""
    if isinstance(value, bool):
        return str(value).casefold()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()


def _boolean(row: TableRow, column: str) -> bool:
    value = _value(row, column)
    word = _word(value)
    if word not in _YES | _NO:
        raise DataError(f"{row.where}: '{column}' must be true or false, got {value!r:.40}")
    return word in _YES


def _identifier(row: TableRow, column: str) -> int:
    value = _value(row, column)
    word = _word(value)
    if word not in ("0", "1"):
        raise DataError(f"{row.where}: '{column}' must be 0 or 1, got {value!r:.40}")
    return int(word)
