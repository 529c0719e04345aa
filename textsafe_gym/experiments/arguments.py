"""What a call in Python may give where the command line has text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from textsafe_gym.config import KeyPath, Settings, Values
from textsafe_gym.errors import ConfigError

_CLASS = re.compile(r"([\w.]+:\w+)(\.|$)")  # an algorithm by MODULE:CLASS, whose dots part nothing


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _from(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number, at least {least}", lambda value: _is(Integral)(value) and value >= least


def _all(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(isinstance(each, kinds) for each in value)


def _one_or_all(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) or _all(*kinds)(value)


def _paths(value: Any) -> bool:
    return isinstance(value, str | Path | Iterable)


def _axes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(each, Iterable) and not isinstance(each, str) for each in value.values())
    return _all(str)(value)


# Of each argument what it is to be, and whether a value is one.
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "algorithm": ("a name or 'MODULE:CLASS'", _is(str)),
    "algorithms": ("names or 'MODULE:CLASS'", _one_or_all(str)),
    "config": ("a path or a name", _is(str, Path)),
    "cost_limit": ("a number", _is(Real)),
    "data": ("paths", _one_or_all(str, Path)),
    "deepspeed": ("a path or a name", _is(str, Path)),
    "directories": ("paths", _paths),
    "env": ("an id, a path or a mapping", _is(str, Path, Mapping)),
    "episodes": _from(1),
    "only": ("names in a list", _all(str)),
    "out": ("a path", _is(str, Path)),
    "preset": ("a name", _is(str)),
    "reference": ("two numbers", lambda value: _all(Real)(value) and len(value) == 2),
    "samples": _from(1),
    "seed": _from(0),
    "seeds": _from(1),
    "settings": ("a mapping, or KEY=VALUE in a list", lambda value: isinstance(value, Mapping) or _all(str)(value)),
    "sources": ("paths", _paths),
    "study": ("a path or a name", _is(str, Path)),
    "timeout": ("a number", _is(Real)),
    "track": ("a name", _is(str)),
    "vary": ("a mapping from ALGO.KEY to values, or ALGO.KEY=V1,V2 in a list", _axes),
    "workers": _from(1),
}


def check_arguments(needed: Mapping[str, object], **others: object) -> None:
    """Refuses what a function cannot take, before it does anything with it.

    Args:
        needed: by name, those that may not be None.
        **others: those that may.

    Raises:
        ConfigError: names the first, its value and what is expected.
    """
    given = {**needed, **{name: value for name, value in others.items() if value is not None}}
    for name, value in given.items():
        expected, fits = _ARGUMENTS[name]
        if not fits(value):
            raise ConfigError(f"{name} = {value!r:.60}: expected {expected}")


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
