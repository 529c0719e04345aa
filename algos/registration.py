"""Which algorithms there are, found by name.

- A module of this folder that has a `Config` and an `Algorithm` is one, under the module's name.
- An installed package adds its own by entry points in the group "textsafe_gym.algorithms".
- `register` adds one in a running program.
- "MODULE:CLASS" is a class anywhere, with no registration.
- "FAMILY:MEMBER" is one of another library's: a module of this folder that has the functions of `Family`, under the
  module's name, or one that an installed package declares in the group "textsafe_gym.families".
"""

import ast
import difflib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard

from pydantic import BaseModel

from textsafe_gym.errors import ConfigError, TextsafeError, UnknownNameError
from textsafe_gym.offline import KINDS, Kind
from textsafe_gym.registry import Lazy, Registry, load_object, nearest, same_class

if TYPE_CHECKING:
    from algos.core.loop import Algorithm, Setup

GROUP = "textsafe_gym.algorithms"
FAMILY_GROUP = "textsafe_gym.families"
ROLLOUTS = "rollouts"
FIXED = {"seed", "episodes", "episodes_per_iteration", "rows_per_iteration"}  # what the training loop reads of them
_log = logging.getLogger("algos")


@dataclass(frozen=True)
class Definition:
    """What makes an algorithm.

    Attributes:
        config: the class of its settings.
        algorithm: gives the algorithm for an `algos.core.loop.Setup`.
        source: what it learns from: "rollouts" of its own, or data that are there, a name in `KINDS`.
        critics: those that it uses: "reward", "cost", both or none.
        constraint: what `cost_limit` bounds where the settings do not say it by `constraint`; none: nothing.
        one_process: why several processes cannot train it together; empty if they can.
    """

    config: type[Any]
    algorithm: "Callable[[Setup], Algorithm]"
    source: str
    critics: tuple[str, ...]
    constraint: Literal["mean"] | None = None
    one_process: str = ""

    def problem(self, config: BaseModel) -> str | None:
        """Which problem is solved under these settings; see `algos.core.settings.StepConfig.problem`."""
        from algos.core.settings import StepConfig

        return config.problem if isinstance(config, StepConfig) else self.constraint or "weighted"

    @property
    def offline(self) -> bool:
        """Whether it learns from what is there already, and samples nothing."""
        return self.source != ROLLOUTS

    @property
    def kind(self) -> type[Kind]:
        """Of one that samples nothing, the kind of data that it learns from."""
        return KINDS[self.source]


class Family(Protocol):
    """Algorithms of another library, as "FAMILY:MEMBER"; a module with these names is one.

    Attributes:
        RunConfig: the settings that all members have.
        REQUIREMENT: what pip installs with --no-deps, where the library's own pins keep it out of the extra that has
            the family's name; empty if the extra has all.
    """

    RunConfig: type[BaseModel]
    REQUIREMENT: str

    def note(self) -> str:
        """What a user should know of how the library is installed here; mostly nothing."""
        ...

    def names(self) -> list[str]:
        """The members; none where the library is not installed."""
        ...

    def describe(self, member: str) -> str:
        """One line about a member."""
        ...

    def settings(self, member: str) -> type[BaseModel]:
        """The class of a member's settings.

        Raises:
            ConfigError: the library is not installed.
        """
        ...

    def constraint(self, member: str) -> Literal["mean"] | None:
        """What `cost_limit` bounds: the mean episode cost, or nothing."""
        ...

    def one_process(self, member: str) -> str:
        """Why several processes cannot train it together; empty if they can."""
        ...

    def make(self, member: str, setup: "Setup") -> "Algorithm":
        """The algorithm that the family calls `member`, for this setup."""
        ...


_FUNCTIONS = {name for name in vars(Family) if not name.startswith("_")}


@cache
def families() -> Registry[Family]:
    """Those of this folder and of installed packages, by their prefix; a package's is imported when asked for."""
    found: Registry[Family] = Registry("family of algorithms")
    for name, module in _modules().items():
        if vars(module).keys() >= _FUNCTIONS:
            found.register(name, Lazy(f"algos.{name}"), _first_line(module.__doc__))
    for point in _entry_points(FAMILY_GROUP):
        try:
            found.register(point.name, Lazy(point.value))
        except ConfigError as taken:  # another package's fault, for which the others are not to pay
            _log.warning("%s", taken)
    return found


def _family(prefix: str) -> Family:
    """The family of that prefix.

    Raises:
        UnknownNameError: there is no such module.
        ConfigError: it cannot be imported, or is not a family.
    """
    found = families()[prefix]
    if lacking := sorted((_FUNCTIONS | set(Family.__annotations__)) - set(dir(found))):
        raise ConfigError(f"the family of algorithms '{prefix}' lacks {', '.join(lacking)}")
    return found


@cache
def _algorithms() -> Registry[Definition | ConfigError]:
    """Of this folder, of installed packages and what `register` was given; an error where several have one name."""
    found: Registry[Definition | ConfigError] = Registry("algorithm")
    for name, module in _modules().items():
        if {"Config", "Algorithm"} <= vars(module).keys():
            found.register(name, _defined(name, module.Config, module.Algorithm), _first_line(module.__doc__))
    own = set(found)
    for point in _entry_points(GROUP):
        name, value = point.name, point.value
        try:
            found.register(name, Lazy(value), partial(_described, value))
        except ConfigError as taken:  # another package's fault, for which the other names are not to pay
            if name in own:
                _log.warning(
                    "%s has an algorithm '%s' of its own, which only '%s' stands for: that name is taken",
                    f"the package '{point.dist.name}'" if point.dist else f"the package of '{value}'", name, value,
                )  # fmt: skip
                continue
            found.remove(name)
            found.register(name, taken, str(taken))
    return found


def _described(path: str) -> str:
    """The first line of the docstring of the class "MODULE:CLASS", or of its module, read from the source; or `path`.

    Only the packages around the module are imported.
    """
    module, _, name = path.partition(":")
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin or "").read_text(encoding="utf-8")) if spec else ast.Module([], [])
    except (Exception, SystemExit):  # whatever another's package does; its user gets the error
        return path
    nodes: list[ast.ClassDef | ast.Module] = [
        *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name),
        tree,
    ]
    return next(filter(None, (_first_line(ast.get_docstring(node)) for node in nodes)), path)


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


def _modules() -> dict[str, ModuleType]:
    """This folder's modules, by their names; none loads torch when it is imported."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    return {name: import_module(f"algos.{name}") for name in names}


def _entry_points(group: str) -> list[EntryPoint]:
    """Of all installed packages; one that lies in two places of Python's path is listed twice there, and here once."""
    return list({(point.name, point.value): point for point in entry_points(group=group)}.values())


def available() -> dict[str, str]:
    """Each algorithm's name and one line about it, without importing a package's; those of families: `members`."""
    known = _algorithms()
    return {name: known.about(name) for name in known}


def members() -> dict[str, str]:
    """The algorithms of all families whose library is installed, as "FAMILY:MEMBER", and one line about each."""
    found: dict[str, str] = {}
    for prefix in families():
        try:
            family = _family(prefix)
        except TextsafeError as broken:
            _log.warning("%s", broken)
            continue
        found |= {f"{prefix}:{member}": family.describe(member) for member in family.names()}
    return found


def register(name: str, config: type, algorithm: type) -> None:
    """Makes an algorithm that is defined elsewhere known to `make`, `load` and `available` in this process.

    Args:
        name: what it is called from now on. The same class defined anew, as by a cell that runs again, takes the place
            of the old one.
        config: its settings, a subclass of `algos.core.settings.TrainingConfig`.
        algorithm: made from an `algos.core.loop.Setup`; what it needs is `algos.core.loop.Algorithm`.

    Raises:
        ConfigError: the name is taken, or has a colon.
    """
    if ":" in name:
        raise ConfigError(f"'{name}': a name with a colon stands for MODULE:CLASS; register it under another")
    known = _algorithms()
    held = known.get(name)
    if isinstance(held, Definition) and same_class(held.algorithm, algorithm):
        known.remove(name)
    known.register(name, _defined(name, config, algorithm), _first_line(algorithm.__doc__))


def config_class(name: str) -> type[BaseModel]:
    """The pydantic model of an algorithm's settings.

    Args:
        name: one of `available()` or `members()`, or "MODULE:CLASS".

    Raises:
        UnknownNameError: no such algorithm; the message offers the nearest.
        ConfigError: what it names cannot be imported, or is not an algorithm; or two packages have the name.
    """
    return definition(name).config


def definition(name: str) -> Definition:
    """What makes an algorithm; see `config_class`."""
    prefix, colon, member = name.partition(":")
    if colon and prefix in families():
        family = _family(prefix)
        known = family.names()
        if known and member not in known:
            full = [f"{prefix}:{each}" for each in known]
            raise UnknownNameError(f"unknown algorithm '{name}'; {nearest(name, full)}")
        make = partial(family.make, member)
        settings, bounded, alone = family.settings(member), family.constraint(member), family.one_process(member)
        return Definition(settings, make, ROLLOUTS, ("reward", "cost"), bounded, alone)
    if colon:
        return _of_class(name, _load_class(name))
    if name not in _algorithms():
        raise UnknownNameError(f"unknown algorithm '{name}'; {_hint(name)}")
    found = _algorithms()[name]
    if isinstance(found, ConfigError):
        raise ConfigError(str(found))
    return found if isinstance(found, Definition) else _of_class(name, found)


def _load_class(name: str) -> object:
    try:
        return load_object(name, lambda other: _updates(other) and hasattr(other, "source"))
    except UnknownNameError as error:
        close = difflib.get_close_matches(name.lower(), by_lower := {full.lower(): full for full in members()}, n=1)
        if not close:
            raise UnknownNameError(f"unknown algorithm {error}") from None
        raise UnknownNameError(f"unknown algorithm '{name}'; did you mean '{by_lower[close[0]]}'?") from None


def _updates(found: object) -> TypeGuard[type]:
    return isinstance(found, type) and callable(getattr(found, "update", None))


def _of_class(name: str, found: object) -> Definition:
    """A class with its settings: its own attribute `Config`, else its module's.

    Raises:
        ConfigError: it is something else, or has no settings.
    """
    if not _updates(found):
        raise ConfigError(f"algorithm '{name}': expected a class with a method `update`, found {found!r:.60}")
    config = getattr(found, "Config", None) or getattr(sys.modules[found.__module__], "Config", None)
    return _defined(name, config, found)


def _defined(name: str, config: object, algorithm: type) -> Definition:
    """A class and its settings.

    Raises:
        ConfigError: it does not declare what it learns from, or has no settings of that kind.
    """
    source: Any = getattr(algorithm, "source", None)
    critics = getattr(algorithm, "critics", None)
    if source not in (ROLLOUTS, *KINDS) or not isinstance(critics, tuple) or not set(critics) <= {"reward", "cost"}:
        raise ConfigError(
            f"algorithm '{name}': give its class `source`, one of {', '.join(map(repr, (ROLLOUTS, *KINDS)))}, and "
            "`critics`, a tuple of 'reward' and 'cost', of one of them or of none; "
            f"found {source!r:.60} and {critics!r:.60}"
        )
    from algos.core.settings import OfflineConfig, TrainingConfig  # whose classes the names alone do not need

    base: type[BaseModel] = TrainingConfig if source == ROLLOUTS else OfflineConfig
    if (
        not isinstance(config, type)
        or not issubclass(config, BaseModel)
        or not set(base.model_fields) & FIXED <= config.model_fields.keys()
    ):
        raise ConfigError(
            f"algorithm '{name}': no settings; give the class, or its module, a `Config` that is a subclass of "
            f"algos.core.settings.{base.__name__}"
        )
    return Definition(config, algorithm, source, critics)


def _hint(name: str) -> str:
    theirs = {full.partition(":")[2].lower(): full for full in members()}
    if name.lower() in theirs.keys() - available().keys():
        return f"did you mean '{theirs[name.lower()]}'?"
    if "." in name:
        return f"a class of your own is MODULE:CLASS, such as '{name}:Algorithm'"
    return nearest(name, available())
