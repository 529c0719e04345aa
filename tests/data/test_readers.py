"""Readers: every shape of data that is supported, and every fault named by file and line."""

import gzip
import json
import sys
import types
from pathlib import Path

import pytest

from textsafe_gym.data.files import read_table
from textsafe_gym.data.prompts import Prompt, read_prompts
from textsafe_gym.data.readers import (
    Columns,
    Labelled,
    Preference,
    SafetyPreference,
    apart,
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_score_data,
)
from textsafe_gym.data.splits import split_by_prompt
from textsafe_gym.errors import DataError

PAIR = {
    "prompt": "p",
    "response_0": "a",
    "response_1": "b",
    "better_response_id": 1,
    "safer_response_id": 0,
    "is_response_0_safe": True,
    "is_response_1_safe": False,
}
CHOSEN = "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: how\n\nAssistant: so"
REJECTED = "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: how\n\nAssistant: no"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("zipped", [False, True])
def test_formats_give_the_same_rows(tmp_path: Path, kind: str, zipped: bool) -> None:
    texts = {
        "jsonl": '{"prompt": "a\\u2028b", "group": "x, y"}\n\n{"prompt": "ü", "group": ""}\n',
        "json": '[\n{"prompt": "a\\u2028b",\n "group": "x, y"},\n {"prompt": "ü", "group": ""}\n]\n',
        "csv": '\ufeffprompt,group\r\n"a\u2028b","x, y"\r\n\r\nü,""\r\n',
    }
    path = tmp_path / f"rows.{kind}{'.gz' if zipped else ''}"
    raw = texts[kind].encode()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    rows = read_table(path)
    assert [row.values for row in rows] == [{"prompt": "a\u2028b", "group": "x, y"}, {"prompt": "ü", "group": ""}]
    lines = {"jsonl": (1, 3), "json": (2, 4), "csv": (2, 4)}[kind]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in lines]


def test_csv_rows_of_several_lines_are_named_by_their_first(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'a,b\n"one\ntwo",1\nthree,2\n')
    assert [row.where for row in read_table(path)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', 2, "not valid JSON"),
        ("a.jsonl", "\xff".encode("latin-1"), 1, "UTF-8"),
        ("a.jsonl", "", None, "no rows"),
        ("a.json", '[\n{"a": 1},\n{"a": oops}]', 3, "not valid JSON"),
        ("a.json", '[\n{"a": 1},\n', 3, "never ends"),
        ("a.json", '[\n{"a": 1}\n{"a": 2}]', 3, "expected ','"),
        ("a.json", '[{"a": 1}] more', 1, "after the end"),
        ("a.json", '{"a": 1}', 1, "array"),
        ("a.json", "[]", None, "no rows"),
        ("a.csv", "a,b\n1,2\n3\n", 3, "1 fields"),
        ("a.csv", "a,a\n1,2\n", 1, "twice"),
        ("a.csv", 'a,b\n1,2\n"3,4\n', 3, "not valid CSV"),
        ("a.csv", "a,b\n", None, "no rows"),
        ("a.xml", "<a/>", None, "unknown kind"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], None, "truncated"),
    ],
)
def test_faulty_files_are_named_by_line(
    tmp_path: Path, name: str, content: str | bytes, line: int | None, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    where = f"{path}:{line}:" if line else f"{path}:"
    assert str(caught.value).startswith(where)
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)


def test_hub_rows_come_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        if name == "gone":
            raise FileNotFoundError("no such data set\nwith a second line")
        return [{"prompt": "p"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_prompts("hub:owner/name") == [Prompt("p")]
    assert read_prompts("hub:owner/name:test") == [Prompt("p")]
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
    with pytest.raises(DataError, match="no such data set"):
        read_prompts("hub:gone")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"textsafe-gym\[hub\]"):
        read_prompts("hub:owner/name")


def test_prompts_from_every_source(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path / "p.txt", "one\r\ntwo\n")) == [Prompt("one"), Prompt("two")]
    rows = [{"prompt": "one", "group": "safe"}, {"prompt": "two", "group": None}]
    expected = [Prompt("one", "safe"), Prompt("two")]
    assert read_prompts(jsonl(tmp_path / "p.jsonl", *rows)) == expected
    assert read_prompts(rows) == expected
    assert read_prompts(["one", Prompt("two", "x")]) == [Prompt("one"), Prompt("two", "x")]


@pytest.mark.parametrize(("text", "line"), [("one\n\ntwo\n", 2), ("one\n  \n", 2), ("\n", 1)])
def test_empty_prompts_are_named(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path / "p.txt", text)
    with pytest.raises(DataError, match="empty") as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


def test_no_prompts_is_an_error(tmp_path: Path) -> None:
    for source in ([], write(tmp_path / "p.txt", "")):
        with pytest.raises(DataError):
            read_prompts(source)
    for source in ([3], [""], [{"text": "x"}], [{"prompt": 3}]):
        with pytest.raises(DataError, match="prompt 0"):
            read_prompts(source)


def test_numbered_pairs(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", PAIR, PAIR | {"better_response_id": "0", "safer_response_id": "1"})
    assert read_score_data(path, "reward").rows == [Preference("p", "b", "a"), Preference("p", "a", "b")]
    data = read_score_data(path, "cost", skip_inconsistent=True)
    assert data.rows == [SafetyPreference("p", "a", "b", True, False)]
    assert data.skipped == 1
    with pytest.raises(DataError, match="inconsistent") as caught:
        read_score_data(path, "cost")
    assert str(caught.value).startswith(f"{path}:2:")


def test_two_unsafe_or_two_safe_answers_are_consistent(tmp_path: Path) -> None:
    rows = [PAIR | {"is_response_0_safe": safe, "is_response_1_safe": safe} for safe in (True, False)]
    assert len(read_score_data(jsonl(tmp_path / "a.jsonl", *rows), "cost").rows) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"safer_response_id": 2},
        {"safer_response_id": None},
        {"is_response_0_safe": "perhaps"},
        {"response_0": None},
        {"response_1": 7},
        {"prompt": " "},
    ],
)
def test_malformed_pairs_are_named(tmp_path: Path, change: dict) -> None:
    path = jsonl(tmp_path / "a.jsonl", PAIR, PAIR, PAIR | change)
    with pytest.raises(DataError, match=next(iter(change))) as caught:
        read_score_data(path, "cost")
    assert str(caught.value).startswith(f"{path}:3:")


def test_dialogues(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"chosen": CHOSEN, "rejected": REJECTED})
    prompt = CHOSEN.removesuffix(" so")
    assert read_score_data(path, "reward").rows == [Preference(prompt, " so", " no")]
    assert read_demonstrations(path) == [(prompt, " so")]


def test_dialogues_that_part_early_share_a_shorter_prompt(tmp_path: Path) -> None:
    other = "\n\nHuman: hi\n\nAssistant: maybe\n\nHuman: what\n\nAssistant: no"
    path = jsonl(tmp_path / "a.jsonl", {"chosen": CHOSEN, "rejected": other})
    (row,) = read_score_data(path, "reward").rows
    assert row.prompt == "\n\nHuman: hi\n\nAssistant:"
    assert (row.prompt + row.better, row.prompt + row.worse) == (CHOSEN, other)


@pytest.mark.parametrize("chosen", ["no turns", "\n\nAssistant: hello", CHOSEN.replace("hi", "ho")])
def test_malformed_dialogues_are_named(tmp_path: Path, chosen: str) -> None:
    good = {"chosen": CHOSEN, "rejected": REJECTED}
    path = jsonl(tmp_path / "a.jsonl", good, good | {"chosen": chosen})
    with pytest.raises(DataError) as caught:
        read_score_data(path, "reward")
    assert str(caught.value).startswith(f"{path}:2:")


def test_labels_by_default_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "context,response,label\nc,x,Safe\nc,,Unsafe\n")
    columns = Columns(prompt="context")
    assert read_score_data(path, "cost", columns).rows == [Labelled("c", "x", False), Labelled("c", "", True)]
    assert [row.label for row in read_score_data(path, "reward", columns, ["SAFE"]).rows] == [True, False]
    with pytest.raises(DataError, match="unknown label 'Safe'") as caught:
        read_score_data(path, "reward", columns)
    assert str(caught.value).startswith(f"{path}:2:")
    with pytest.raises(DataError, match="no row has the label 'unsaf'"):
        read_score_data(path, "cost", columns, ["unsaf"])


def test_json_labels(tmp_path: Path) -> None:
    values = [True, 1, 1.0, "yes", False, 0, "No"]
    rows = [{"prompt": "p", "response": "r", "label": value} for value in values]
    read = read_score_data(jsonl(tmp_path / "a.jsonl", *rows), "reward").rows
    assert [row.label for row in read] == [True] * 4 + [False] * 3


def test_unknown_columns_say_what_is_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "q"})
    with pytest.raises(DataError, match="columns question are none of"):
        read_score_data(path, "cost")
    with pytest.raises(DataError, match="no column 'prompt'"):
        read_demonstrations(path)
    path = jsonl(tmp_path / "b.jsonl", [1, 2])
    with pytest.raises(DataError, match="expected an object"):
        read_score_data(path, "cost")


def test_split_keeps_prompts_together_and_is_stable() -> None:
    rows = [(f"prompt {i % 200}", i) for i in range(1000)]
    train, test = split_by_prompt(rows, lambda row: row[0], 0.25)
    assert not {p for p, _ in train} & {p for p, _ in test}
    assert len(train) + len(test) == 1000
    assert 25 <= len({p for p, _ in test}) <= 75  # Binomial(200, 1/4): 50 ± 6, four standard deviations
    again = split_by_prompt([*rows[500:], *rows[:500], ("a new prompt", 0)], lambda row: row[0], 0.25)
    assert {p for p, _ in again[1]} - {"a new prompt"} == {p for p, _ in test}
    assert {p for p, _ in split_by_prompt(rows, lambda row: row[0], 0.25, seed=1)[1]} != {p for p, _ in test}


def test_split_refuses_an_empty_side() -> None:
    with pytest.raises(DataError, match="no held-out rows"):
        split_by_prompt([("p", 1)], lambda row: row[0], 1e-9)
    assert split_by_prompt([("p", 1)], lambda row: row[0], 0.0) == ([("p", 1)], [])


def test_pairs_for_a_policy_come_with_the_helpful_answer_first(tmp_path: Path) -> None:
    numbered, dialogues = (
        jsonl(tmp_path / "a.jsonl", PAIR),
        jsonl(tmp_path / "b.jsonl", {"chosen": CHOSEN, "rejected": REJECTED}),
    )
    answers = jsonl(tmp_path / "c.jsonl", {"prompt": "p", "chosen": "b", "rejected": "a"})
    assert read_preferences(numbered) == read_preferences(answers) == [Preference("p", "b", "a")]
    assert read_demonstrations(numbered) == read_demonstrations(answers) == [("p", "b")]
    assert read_preferences(dialogues) == [Preference(CHOSEN.removesuffix(" so"), " so", " no")]
    with pytest.raises(DataError, match=r"d.jsonl:1: columns prompt, response are not pairs"):
        read_preferences(jsonl(tmp_path / "d.jsonl", {"prompt": "p", "response": "a"}))
    with pytest.raises(DataError, match=r"e.jsonl:1: 'better_response_id' must be 0 or 1"):
        read_preferences(jsonl(tmp_path / "e.jsonl", PAIR | {"better_response_id": 2}))


def test_labelled_answers_are_good_or_bad_and_pairs_are_one_of_each(tmp_path: Path) -> None:
    words = {"good": True, "helpful": True, 1: True, "bad": False, "unhelpful": False, False: False}
    rows = [{"prompt": "p", "response": "r", "label": word} for word in words]
    assert read_labelled(jsonl(tmp_path / "a.jsonl", *rows)) == [Labelled("p", "r", good) for good in words.values()]
    both = [Labelled("p", "b", True), Labelled("p", "a", False)]
    answers = {"prompt": "p", "chosen": "b", "rejected": "a"}
    assert (
        read_labelled(jsonl(tmp_path / "b.jsonl", answers)) == read_labelled(jsonl(tmp_path / "c.jsonl", PAIR)) == both
    )
    assert apart(Preference("p", "b", "a"), first=False) == (Labelled("p", "b", False), Labelled("p", "a", True))
    labelled = jsonl(tmp_path / "d.jsonl", answers | {"response": "c", "label": "bad"})  # its own label counts
    assert read_labelled(labelled) == [Labelled("p", "c", False)]
    with pytest.raises(DataError, match=r"e.jsonl:1: unknown label 'unsafe'; use words such as good and bad"):
        read_labelled(jsonl(tmp_path / "e.jsonl", rows[0] | {"label": "unsafe"}))
