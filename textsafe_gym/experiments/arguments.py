"""What a call in Python may give where the command line has text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from textsafe_gym.config import KeyPath, Settings, Values
from textsafe_gym.errors import ConfigError

_CLASS = re.compile(r"([\w.]+:\w+)(\.|$)")  # an algorithm by MODULE:CLASS, whose dots part nothing


def as_settings(given: Mapping[str, object], what: str) -> Settings:
    """Settings from a mapping whose keys are nested or dotted: {"env": {"cost_limit": 1}} or {"env.cost_limit": 1}.

    Args:
        given: values that YAML can hold; paths become text and tuples lists.
        what: the argument's name, for messages.

    Raises:
        ConfigError: a key is not text, or is set twice, or a value is none that YAML can hold.
    """
    values: Values = {}
    origin: dict[KeyPath, str] = {}

    def add(mapping: Mapping[str, object], above: KeyPath) -> None:
        for key, value in mapping.items():
            place = f"{what}[{'.'.join((*above, str(key)))!r}]"
            if not isinstance(key, str) or not all(key.split(".")):
                raise ConfigError(f"{place}: expected the name of a setting, not {key!r}")
            named = _CLASS.match(key)
            below = key[named.end() :] if named else key
            path = (*above, *([named[1]] if named else []), *(below.split(".") if below else []))
            if isinstance(value, Mapping) and value:
                add(value, path)
                continue
            inner = values
            for part in path[:-1]:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"{place}: '{part}' already has a value")
            if path[-1] in inner:
                raise ConfigError(f"{place}: is set twice")
            inner[path[-1]] = plain(value, place)
            origin[path] = place

    add(given, ())
    return Settings(values, origin)


def plain(value: object, place: str) -> object:
    """A value as YAML gives it back, so that `config.yaml` can hold it.

    Raises:
        ConfigError: it is an object.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(inner, place) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, place) for inner in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of NumPy's
        return value.item()
    raise ConfigError(
        f"{place}: a run's config.yaml holds numbers, text, lists and mappings, not a {type(value).__name__}; give a "
        "path or a hub id, or use algos.make, which takes objects"
    )


def settings_or_assignments(given: Mapping[str, object] | Sequence[str] | None) -> Settings | Sequence[str]:
    """What `settings=` was given: a mapping, or KEY=VALUE texts as `--set` takes them."""
    if isinstance(given, Mapping):
        return as_settings(given, "settings")
    return given or []


def paths_of(given: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several."""
    return [Path(given)] if isinstance(given, str | Path) else [Path(each) for each in given]


def repeated(command: str | None, name: str, *arguments: object, **options: object) -> tuple[str, str]:
    """What repeats a piece of work, and what continues it: the command that was typed, or a call in Python.

    Args:
        command: what was typed, if anything.
        name: of the function.
        *arguments: given to it.
        **options: likewise; those that are None or False are left out.
    """
    if command is not None:
        resumed = command if "--resume" in command.split() else f"{command} --resume"
        return command.replace(" --resume", ""), resumed
    given = [repr(_shown(value)) for value in arguments]
    given += [f"{key}={_shown(value)!r}" for key, value in options.items() if value is not None and value is not False]
    return f"{name}({', '.join(given)})", f"{name}({', '.join([*given, 'resume=True'])})"


def _shown(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
