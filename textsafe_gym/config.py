"""Settings from YAML files and `key=value` arguments, remembering where each value was written."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from textsafe_gym.errors import ConfigError
from textsafe_gym.files import parse_json, read_text
from textsafe_gym.registry import did_you_mean, nearest

Config = TypeVar("Config", bound=BaseModel)
Values = dict[str, Any]  # settings as YAML has them: plain values, lists and mappings
KeyPath = tuple[str, ...]
_DEEPEST = 64  # levels; the parser takes three of Python's 1000 frames for each, whoever called it
_TOO_DEEP = f"nested too deeply, over {_DEEPEST} levels, or within itself"
_JSON_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')  # strings as a whole, so that theirs are not counted


class _TooDeep(yaml.MarkedYAMLError):
    """Counted, and not left to Python's limit, which depends on how deep the caller's stack already is."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-5` is a number, as it is everywhere else (YAML 1.1 wants `1.0e-5`)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._levels: dict[yaml.Node, int] = {}  # below each node that is composed, itself included

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """With a bound on the depth, where an alias counts as what it stands for."""
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._level += 1
        node: Any = super().compose_node(parent, index) if self._level <= _DEEPEST else None
        if node is not None and not alias:
            parts = [x for pair in node.value for x in pair] if isinstance(node, yaml.MappingNode) else node.value
            self._levels[node] = 1 + max((self._levels.get(x, 0) for x in parts), default=0)
        # What is not composed yet has no levels: an alias of it lies within itself.
        if node is None or self._level - 1 + self._levels.get(node, _DEEPEST) > _DEEPEST:
            raise _TooDeep(problem=_TOO_DEEP, problem_mark=mark)
        self._level -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """With the line of what has the form, or the tag, of a date or a number and is none, such as 2024-13-01."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # the library looks no closer
            problem = f"{node.value!r} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Settings:
    """Nested settings and the place where each was written.

    Attributes:
        values: nested dictionaries with string keys.
        origin: from the path of a key to "FILE:LINE" or the argument it came from.
    """

    values: Values = field(default_factory=dict)
    origin: dict[KeyPath, str] = field(default_factory=dict)

    def section(self, name: str) -> "Settings":
        """The settings below `name`; empty where there are none.

        Raises:
            ConfigError: `name` is there but is not a mapping.
        """
        inner = self.values.get(name)
        if inner is None:
            return Settings()
        if not isinstance(inner, dict):
            raise ConfigError(f"{self.where((name,))}: '{name}' is a section of keys, not {inner!r}")
        return Settings(
            inner, {path[1:]: place for path, place in self.origin.items() if len(path) > 1 and path[0] == name}
        )

    def without(self, *names: str) -> "Settings":
        """All but the named top-level keys."""
        kept = {path: place for path, place in self.origin.items() if path[0] not in names}
        return Settings({key: value for key, value in self.values.items() if key not in names}, kept)

    def where(self, path: KeyPath) -> str:
        """The place of a key, of the nearest key above it, or of the first below it."""
        below = next((place for inner, place in self.origin.items() if inner[: len(path)] == path), "defaults")
        while path and path not in self.origin:
            path = path[:-1]
        return self.origin.get(path, below)


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted keys: {"env": {"id": "X"}} -> {"env.id": "X"}."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


class Faults:
    """Collects the `ConfigError`s of several blocks, so that all are reported at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def __enter__(self) -> "Faults":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ConfigError):
            self._found.append(str(error))
        return isinstance(error, ConfigError)

    def check(self) -> None:
        """Goes on if there were none.

        Raises:
            ConfigError: with all of them in one line.
        """
        if self._found:
            raise ConfigError("; ".join(self._found))


def _lines(node: yaml.Node | None, path: KeyPath, source: str, origin: dict[KeyPath, str], faults: Faults) -> None:
    """Fills `origin` from a YAML tree; refuses keys that are doubled or not strings."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        place = f"{source}:{key.start_mark.line + 1}"
        with faults:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{place}: '<<' is not read; write the keys out")
            if key.tag != "tag:yaml.org,2002:str":
                shown = repr(key.value) if isinstance(key.value, str) else f"of type {key.id}"
                raise ConfigError(f"{place}: the key {shown} is not a string; put it in quotes")
            inner = (*path, key.value)
            if inner in origin:
                raise ConfigError(f"{place}: the key '{'.'.join(inner)}' stands twice; first at {origin[inner]}")
            origin[inner] = place
            _lines(value, inner, source, origin, faults)


def read_yaml(path: str | Path) -> Settings:
    """A YAML file that holds a mapping (an empty file is an empty one).

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, not a mapping, or names keys twice.
    """
    text = _text_of(path)
    origin: dict[KeyPath, str] = {}
    faults = Faults()
    try:
        node = yaml.compose(text, Loader=_Loader)
        _lines(node, (), str(path), origin, faults)
        faults.check()
        values = yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise _refused(path, error) from None
    if values is None:
        return Settings()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: expected keys and values, found {type(values).__name__}")
    return Settings(values, origin)


def read_json_settings(path: str | Path) -> Settings:
    """A JSON file that holds an object.

    Raises:
        ConfigError: the file is missing, unreadable, not JSON, not an object, or names keys twice.
    """
    text = _text_of(path)
    origin: dict[KeyPath, str] = {}
    faults = Faults()
    if _json_depth(text) > _DEEPEST:
        raise ConfigError(f"{path}: {_TOO_DEEP}")
    try:
        values = parse_json(path, text, ConfigError)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}:1: expected an object, found {type(values).__name__}")
        # But for tabs, and escapes that nobody needs, JSON is YAML, whose parser knows the lines.
        _lines(yaml.compose(text.replace("\t", " "), Loader=_Loader), (), str(path), origin, faults)
    except yaml.YAMLError as error:
        raise _refused(path, error) from None
    faults.check()
    return Settings(values, origin)


def _json_depth(text: str) -> int:
    """The most brackets that are open at once."""
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0) for found in _JSON_BRACKETS.finditer(text))
    return max(accumulate(steps), default=0)


def _refused(path: str | Path, error: yaml.YAMLError) -> ConfigError:
    """What to report of a file that the YAML parser does not take."""
    mark, problem = (error.problem_mark, error.problem) if isinstance(error, yaml.MarkedYAMLError) else (None, None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = problem or str(error).splitlines()[0]
    if "'\\t'" in problem:
        problem = "a tab, where YAML wants spaces"
    return ConfigError(f"{place}: {problem}" if isinstance(error, _TooDeep) else f"{place}: not valid YAML: {problem}")


def _text_of(path: str | Path) -> str:
    text = read_text(path, ConfigError)
    if "\0" in text:
        raise ConfigError(f"{path}: not a text file")
    return text


def parse_value(text: str, source: str) -> object:
    """A value as YAML reads it: numbers, true/false, null, lists in [], mappings in {}, else a string.

    Raises:
        ConfigError: no valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _TooDeep:
        raise ConfigError(f"{source[:80]}...: {_TOO_DEEP}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{source}: the value {text!r} is not valid YAML; quote it") from None


def split_key(key: str, names: Iterable[str] = ()) -> KeyPath:
    """The path of a dotted key; it may begin with one of some names that have dots themselves, as "pkg.mod:Class"."""
    name = next((name for name in names if key.startswith(f"{name}.")), "")
    rest = key.removeprefix(f"{name}.") if name else key
    return (*([name] if name else []), *rest.split("."))


def parse_assignments(assignments: Sequence[str], names: Iterable[str] = ()) -> Settings:
    """Settings from `--set` arguments of the form `a.b=value`.

    Args:
        assignments: the arguments.
        names: of algorithms, which a key may begin with; see `split_key`.

    Raises:
        ConfigError: no `=`, an empty key, or a key that is given twice or both a value and a section.
    """
    values: Values = {}
    origin: dict[KeyPath, str] = {}
    for assignment in assignments:
        source = f"--set {assignment}"
        name, equals, text = assignment.partition("=")
        path = split_key(name.strip(), names)
        if not equals or not all(path):
            raise ConfigError(f"{source}: expected key=value")
        if path in origin:
            raise ConfigError(f"{source}: '{name}' is set twice")
        inner = values
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{source}: '{key}' already has a value")
        if path[-1] in inner:
            raise ConfigError(f"{source}: '{name}' is set twice")
        inner[path[-1]] = parse_value(text, source)
        origin[path] = source
    return Settings(values, origin)


def merge(*layers: Settings) -> Settings:
    """One of many, later ones first in rank; mappings are merged key by key, everything else is replaced."""
    values: Values = {}
    origin: dict[KeyPath, str] = {}
    for layer in layers:
        _merge_into(values, layer.values)
        origin.update(layer.origin)
    return Settings(values, origin)


def _merge_into(target: Values, source: Mapping[str, object]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping):
            inner = target.get(key)
            target[key] = inner = dict(inner) if isinstance(inner, dict) else {}
            _merge_into(inner, value)
        else:
            target[key] = value


class OneOf:
    """Of a setting that takes a registry's names, those registered later included.

    It stands as `Annotated[str, AfterValidator(OneOf(RULES))]`, and refuses as a `Literal` does.

    Args:
        names: the registry.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def __call__(self, name: str) -> str:
        """The name itself.

        Raises:
            ValueError: it is not registered, which pydantic makes a fault of.
        """
        if name not in self.names:
            *others, last = (f"'{known}'" for known in self.names)
            hint = did_you_mean(name, self.names)
            raise ValueError(f"input should be {', '.join(others)} or {last}" + (f"; {hint}" if hint else ""))
        return name


def validate(
    config_class: type[Config], settings: Settings, what: str, sections: Sequence[str] = (), listed: str = ""
) -> Config:
    """A validated config.

    Args:
        config_class: the pydantic model that declares the keys.
        settings: the values; keys not given take the model's defaults.
        what: whose config it is, for messages ("ppo").
        sections: names that a key at the top might have been meant for as well.
        listed: the command that lists the keys, if there is one.

    Raises:
        ConfigError: with every fault in one line: key, value, place, and the nearest key where one is unknown.
    """
    try:
        return config_class.model_validate(settings.values)
    except ValidationError as invalid:
        raise ConfigError(f"{what}: {explain(invalid, config_class, settings, sections, listed)}") from None


def explain(
    invalid: ValidationError,
    config_class: type[BaseModel],
    settings: Settings | None = None,
    sections: Sequence[str] = (),
    listed: str = "",
) -> str:
    """All faults of a pydantic validation in one line."""
    faults = []
    for fault in invalid.errors():
        path = tuple(str(part) for part in fault["loc"])
        place = f" ({settings.where(path)})" if settings is not None and settings.origin else ""
        name = ".".join(path)
        if fault["type"] == "extra_forbidden":
            others = sections if len(path) == 1 else ()
            if name in others:  # which is not to be offered for itself
                hint = f"; '{listed}' lists all" if listed else ""
                faults.append(f"there is no setting '{name}' here{place}{hint}")
                continue
            known = [*_keys_at(config_class, path[:-1]), *others]
            faults.append(f"unknown key '{name}'{place}; {nearest(path[-1], known, listed)}")
        elif fault["type"] == "missing":
            faults.append(f"the key '{name}' is missing{place}")
        elif not path:
            faults.append(fault["msg"].removeprefix("Value error, "))
        else:
            message = fault["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            if fault["type"] == "literal_error" and isinstance(fault["input"], str):
                hint = did_you_mean(fault["input"], re.findall(r"'([^']+)'", fault["ctx"]["expected"]))
                message += f"; {hint}" if hint else ""
            faults.append(f"{name} = {fault['input']!r}{place}: {message}")
    return "; ".join(faults)


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The fields of a model, or of one inside it, be it a field's or the values' of a dictionary."""
    annotation: Any = model
    for key in path:
        if _is_model(annotation):
            names = {field.alias or name: field for name, field in annotation.model_fields.items()}
            annotation = names[key].annotation
        else:
            annotation = get_args(annotation)[-1]
        optional = [part for part in get_args(annotation) if _is_model(part)]
        annotation = optional[0] if type(None) in get_args(annotation) and optional else annotation
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def dump(values: Mapping[str, object]) -> str:
    """YAML text of plain values, in the order given."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
