import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.config import _DEEPEST, dump, merge, parse_assignments, read_json_settings, read_yaml, validate
from textsafe_gym.errors import ConfigError


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(0.1, gt=0)
    epochs: int = 1


def test_numbers_in_exponent_form_are_numbers():
    values = parse_assignments(["a=1e-5", "b=-2E3", "c=1.5e+2", "d=e5", "e=1.0e-3"]).values
    assert values == {"a": 1e-5, "b": -2000.0, "c": 150.0, "d": "e5", "e": 1e-3}


def test_assignments_nest_and_later_layers_win():
    below = parse_assignments(["env.cost_limit=1", "env.prompts=a.txt", "nu=1"])
    above = parse_assignments(["env.cost_limit=-2", "list=[1, 2]"])
    merged = merge(below, above)
    assert merged.values == {"env": {"cost_limit": -2, "prompts": "a.txt"}, "nu": 1, "list": [1, 2]}
    assert merged.where(("env", "cost_limit")) == "--set env.cost_limit=-2"
    assert below.values["env"]["cost_limit"] == 1  # merging changed none of its arguments


def test_every_fault_in_one_message_with_place_and_nearest_key(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("# comment\nepochs: many\n\nlerning_rate: 0.1\n")
    layers = merge(read_yaml(path), parse_assignments(["learning_rate=-1"]))
    with pytest.raises(ConfigError) as caught:
        validate(Example, layers, "example")
    message = str(caught.value)
    assert message.startswith("example: ")
    assert f"epochs = 'many' ({path}:2)" in message
    assert f"unknown key 'lerning_rate' ({path}:4); did you mean 'learning_rate'?" in message
    assert "learning_rate = -1 (--set learning_rate=-1): input should be greater than 0" in message
    assert "\n" not in message


def test_yaml_survives_a_round_trip(tmp_path: Path):
    values = {"a": {"b": 1e-5, "c": None, "d": "näher"}, "e": [1, 2.5, "x"], "f": True}
    path = tmp_path / "c.yaml"
    path.write_text(dump(values), encoding="utf-8")
    assert read_yaml(path).values == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: the key 'a' stands twice; first at "),
        ("a:\n  b: 1\n  b: 2\n", ":3: the key 'a.b' stands twice"),
        ("a: [1, 2\nb: 3\n", ":2: not valid YAML"),
        ("- 1\n- 2\n", ":1: expected keys and values, found list"),
        ("1: 2\n", ":1: the key '1' is not a string"),
        ("a: !!python/object/apply:os.system [echo]\n", ":1: not valid YAML"),
        ("a: 1\nb:\n  c: 2024-13-01\n", ":3: not valid YAML: '2024-13-01' is not a valid timestamp"),
        ("a: 1\nb: !!int x\n", ":2: not valid YAML: 'x' is not a valid int"),
        ("a: !!bool maybe\n", ":1: not valid YAML: 'maybe' is not a valid bool"),
        ("a: &a\n  b: *a\n", "nested too deeply, over 64 levels, or within itself"),
        ("a: &a [*a]\n", ":1: nested too deeply"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("<<: {a: 1}\n", ":1: '<<' is not read"),
        ('{"a": 1,\n"a": 2}', ":2: the key 'a' stands twice"),
        ('{"a": 1,}', ":1: not valid JSON"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"a": "\x7f"}', "not valid YAML"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "c"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        (read_json_settings if text.startswith("{") else read_yaml)(path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "assignments",
    [
        ["a"],
        ["=1"],
        ["a.=1"],
        ["a=1", "a=2"],
        ["a=1", "a.b=2"],
        ["a.b=1", "a=2"],
        ["a=[1"],
        ["a=2024-13-01"],
        ["a=!!int x"],
        ["a=" + "[" * 5000],
    ],
)
def test_malformed_assignments_are_refused(assignments: list[str]):
    with pytest.raises(ConfigError):
        parse_assignments(assignments)


def below(frames: int, call: Callable[[], Any]) -> Any:
    return below(frames - 1, call) if frames else call()


def test_what_is_too_deep_is_counted_and_does_not_depend_on_the_callers_stack(tmp_path: Path):
    path = tmp_path / "c"
    inner = (_DEEPEST - 1) // 2

    def nested(levels: int) -> dict[str, str]:
        lists = "[" * (levels - 1) + "]" * (levels - 1)
        half = "[" * inner + "]" * inner
        rest = levels - 1 - inner
        return {
            "yaml": f"a: {lists}",
            "alias": f"a: &a {half}\nb: {'[' * rest}*a{']' * rest}",
            "json": f'{{"a": {lists}}}',
            "string": f'{{"a": {lists}, "b": "{"[" * 2 * levels}"}}',
        }

    # Near the end of the stack, and as far from it as a test can be: the parser needs under 300 frames.
    near = sys.getrecursionlimit() - len(inspect.stack(0)) - 300
    for frames in (0, near):
        for name, text in nested(_DEEPEST).items():
            path.write_text(text)
            read = read_json_settings if text.startswith("{") else read_yaml
            assert set(below(frames, lambda read=read: read(path).values)) <= {"a", "b"}, name
        for text in nested(_DEEPEST + 1).values():
            path.write_text(text)
            read = read_json_settings if text.startswith("{") else read_yaml
            with pytest.raises(ConfigError, match="nested too deeply, over 64 levels"):
                below(frames, lambda read=read: read(path))
