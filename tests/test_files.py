"""Files and folders that appear whole or not at all, and rows that know their lines."""

import json
import stat
from pathlib import Path

import pytest

from textsafe_gym import files
from textsafe_gym.errors import ConfigError, DataError


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(TypeError), files.replacing(path) as temporary:
        temporary.write_bytes("half")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="missing"):
        files.write_text(tmp_path / "missing" / "a.txt", "new")
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_rows_keep_line_separators_inside_strings(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three\x0cfour"}, {"text": "five"}]
    files.write_rows(tmp_path / "rows.jsonl", rows[:1])
    files.append_row(tmp_path / "rows.jsonl", rows[1])
    assert files.read_rows(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("bad", ['{"a": 1', "[1]", "nothing"])
def test_faults_have_their_line(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\u2028"}\n\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"{path}:3: "):
        files.read_rows(path)
    path.write_text('{"a": 1}\n{"a": 2', encoding="utf-8")
    assert files.read_rows(path, drop_torn_tail=True) == [{"a": 1}]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9")
    with pytest.raises(ConfigError, match=r"latin\.txt:2: not UTF-8 text"):
        files.read_text(tmp_path / "latin.txt", ConfigError)
    with pytest.raises(DataError, match=r"none: no such file"):
        files.read_text(tmp_path / "none")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON object, found list"):
        files.read_json(tmp_path / "list.json")
    (tmp_path / "list.json").write_text('{"a": 1,\n')
    with pytest.raises(ConfigError, match=r"list\.json:2: not valid JSON .*; truncated\?"):
        files.read_json(tmp_path / "list.json", ConfigError)
    (tmp_path / "list.json").write_text("[" * 10**5)
    with pytest.raises(DataError, match=r"list\.json:1: not valid JSON \(maximum recursion"):
        files.read_json(tmp_path / "list.json")
    files.write_json(tmp_path / "value.json", {"a": [1, None]})
    assert files.read_json(tmp_path / "value.json") == {"a": [1, None]}
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "value.json", {"a": float("nan")})
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": [1, None]}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for text in ("first", "second"):
        with files.new_directory(target) as new:
            assert list(new.iterdir()) == []
            (new / "a").write_text(text)
    with pytest.raises(FileExistsError), files.new_directory(target) as new:
        new.mkdir()
    assert (target / "a").read_text() == "second"
    assert [each.name for each in target.parent.iterdir()] == ["model"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_crash_between_the_renames_is_undone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert not files.recover_directory(target)
    with files.new_directory(target) as new:
        (new / "a").write_text("kept")
    target.rename(tmp_path / ".model.old")
    (tmp_path / ".model.abc").mkdir()
    assert files.recover_directory(target)
    files.remove_leftovers(target)
    assert (target / "a").read_text() == "kept"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
