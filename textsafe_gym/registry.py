"""Names to things, with a duplicate check and "did you mean"."""

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from textsafe_gym.errors import UnknownNameError

T = TypeVar("T")


def nearest(name: str, names: list[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them."""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'?" if close else f"known: {', '.join(sorted(names))}"


class Registry(Generic[T]):
    """A mapping that refuses duplicates and explains a miss.

    Args:
        kind: what is registered, for messages ("algorithm", "environment").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Adds `entry`.

        Raises:
            ValueError: `name` is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry of that name.

        Raises:
            UnknownNameError: no such name.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(f"unknown {self.kind} '{name}'; {nearest(name, list(self._entries))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
