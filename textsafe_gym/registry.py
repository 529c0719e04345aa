"""Names to things: one mechanism for algorithms, environments, commands and multiplier rules.

A registry refuses duplicates, answers a miss with the nearest name, and imports what costs only when it is asked for.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from textsafe_gym.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question for the known name that is near an unknown one, or that it abbreviates; empty if none is."""
    by_lower = {known.lower(): known for known in names}
    for known in by_lower:
        words = known.split("_")
        short = list(name.lower()) if len(name) == len(words) else name.lower().split("_")
        # "lr" by the initials, "ent_coef" by how the words begin.
        if len(words) == len(short) > 1 and all(map(str.startswith, words, short)):
            return f"did you mean '{by_lower[known]}'?"
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'?" if close else ""


def nearest(name: str, names: Iterable[str], listed: str = "") -> str:
    """A hint for an unknown name: the near one that was meant, or all known ones.

    Args:
        name: the unknown one.
        names: those that are known.
        listed: the command that lists them, where they are too many for a line; three of them are then shown.
    """
    names = set(names)
    if close := did_you_mean(name, names):
        return close
    if listed:
        return f"the nearest are {', '.join(difflib.get_close_matches(name, names, cutoff=0.0))}; '{listed}' lists all"
    return f"known: {', '.join(sorted(names)) or 'none'}"


def load_object(path: str, offered: Callable[[Any], bool] = lambda found: True) -> Any:
    """What "MODULE:NAME" names, or the module that "MODULE" names; NAME may have dots.

    Args:
        path: the names.
        offered: of what else is there, what a message may offer in place of a wrong NAME.

    Raises:
        UnknownNameError: there is no such module or no such name in it; the message offers the nearest.
        ConfigError: the module cannot be imported.
    """
    name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"'{path}': module '{name}' needs '{error.name}', which is not installed") from None
        hint = difflib.get_close_matches(name, _modules_next_to(name), n=1)
        hint_text = f"did you mean '{hint[0]}'?" if hint else "it has to be installed, or lie in the working directory"
        raise UnknownNameError(f"'{path}': there is no module '{error.name}'; {hint_text}") from None
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError(f"'{path}': importing '{name}' failed: {what}") from error
    for part in attribute.split(".") if attribute else []:
        if not hasattr(found, part):
            own = vars(found) if hasattr(found, "__dict__") else {}
            public = [known for known, value in own.items() if not known.startswith("_") and offered(value)]
            raise UnknownNameError(f"'{path}': there is no '{part}' in '{name}'; {nearest(part, public)}")
        found = getattr(found, part)
    return found


def _modules_next_to(name: str) -> list[str]:
    """Modules of the same package; for one at the top, those next to the program and in the working directory."""
    import pkgutil

    package = name.rpartition(".")[0]
    places = getattr(sys.modules.get(package), "__path__", []) if package else [sys.path[0] or ".", "."]
    return [f"{package}.{module.name}".lstrip(".") for module in pkgutil.iter_modules(places)]


def same_class(one: object, other: object) -> bool:
    """Whether two classes have one module and one name there: a class, and the same defined anew."""
    names = [(x.__module__, x.__qualname__) for x in (one, other) if isinstance(x, type)]
    return len(names) == 2 and names[0] == names[1]


@dataclass(frozen=True)
class Lazy:
    """An entry that is imported when it is asked for.

    Attributes:
        path: "MODULE:NAME", or "MODULE" for the module itself.
    """

    path: str


class Registry(Mapping[str, T]):
    """A mapping in the order of registration, which refuses duplicates and explains a miss.

    Args:
        kind: what is registered, for messages ("algorithm", "environment").
        entries: the arguments of `register` for each.

    Raises:
        ConfigError: a name stands twice.
    """

    def __init__(self, kind: str, entries: Iterable[tuple[str, T | Lazy, str]] = ()) -> None:
        self.kind = kind
        self._entries: dict[str, T | Lazy] = {}
        self._about: dict[str, str | Callable[[], str]] = {}
        for name, entry, about in entries:
            self.register(name, entry, about)

    def register(self, name: str, entry: T | Lazy, about: str | Callable[[], str] = "") -> None:
        """Adds an entry.

        Args:
            name: of the entry. The same class defined anew, as by a cell that runs again, takes the place of the old
                one.
            entry: the thing itself, or where it can be imported from.
            about: one line about it, for lists that import nothing, or what finds it when it is asked for.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._entries and not same_class(self._entries[name], entry):
            hint = f"'{entry.path}' needs another name" if isinstance(entry, Lazy) else "take another name"
            raise ConfigError(f"the {self.kind} '{name}' is registered already; {hint}")
        self._entries[name], self._about[name] = entry, about

    def remove(self, name: str) -> None:
        """Makes room for another entry of that name."""
        del self._entries[name], self._about[name]

    def about(self, name: str) -> str:
        """One line about an entry; empty if it came without."""
        about = self._about[name]
        return about if isinstance(about, str) else about()

    def __getitem__(self, name: str) -> T:
        """The entry of that name, imported if it is a lazy one.

        Raises:
            UnknownNameError: no such name; the message offers the nearest.
        """
        if name not in self._entries:
            raise UnknownNameError(f"unknown {self.kind} '{name}'; {nearest(name, self._entries)}")
        entry = self._entries[name]
        if not isinstance(entry, Lazy):
            return entry
        found: T = load_object(entry.path)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
