"""The settings that each algorithm begins with under a preset."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from textsafe_gym.config import Settings, merge, read_yaml
from textsafe_gym.errors import UnknownNameError
from textsafe_gym.installation import shipped
from textsafe_gym.registry import nearest

SMALL = "small"  # what suits the embedded world and small models, and what everything takes by default
PAPER = "paper"  # the official script's, for models of billions of weights


def preset_of(config: str | None) -> str:
    """What a run begins with by default: "small", but below a shipped configuration of the paper's the paper's own.

    Args:
        config: the name or the path of a configuration, if any.
    """
    papers = shipped("paper")
    here = config and Path(config).resolve() in [path.resolve() for path in papers.values()]
    return PAPER if config in papers or here else SMALL


def preset_settings(preset: str, algorithm: str, schema: type[BaseModel]) -> Settings:
    """What a preset changes of the defaults that an algorithm's settings have.

    `configs/preset/PRESET.yaml` holds for every algorithm that has the setting, and below the name of a class of
    settings, such as "TrustRegionConfig", for those that build on it; `configs/algo/NAME.yaml` under the preset's name
    for that algorithm. A family has one file: under "all" what holds for each member that has the
    setting, and under a member's name what holds for it.

    Args:
        preset: "small", "paper".
        algorithm: its name; one from outside the package takes the shared settings.
        schema: the class of its settings.

    Raises:
        UnknownNameError: no such preset.
    """
    known = shipped("preset")
    if preset not in known:
        raise UnknownNameError(f"unknown preset '{preset}'; {nearest(preset, known)}")
    family, _, member = algorithm.partition(":")
    path = shipped("algo").get(family)
    own = read_yaml(path).section(preset) if path else Settings()
    if member:
        own = merge(known_to(schema, own.section("all")), own.section(member))
    shared = read_yaml(known[preset])
    groups = [shared.section(base.__name__) for base in reversed(schema.__mro__)]
    return merge(*(known_to(schema, layer) for layer in (shared, *groups)), own)


def known_to(schema: type[BaseModel], given: Settings) -> Settings:
    """The settings that a schema has; what it has not is left out."""

    def known(inside: type[BaseModel], values: Mapping[str, object]) -> dict[str, object]:
        kept: dict[str, object] = {}
        for key, value in values.items():
            if key in inside.model_fields:
                section = section_of(inside, key)
                kept[key] = known(section, value) if section and isinstance(value, Mapping) else value
        return kept

    return Settings(known(schema, given.values), given.origin)


def section_of(schema: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The class of a setting that is a section of settings; none for a plain one, or for one that there is not."""
    field = schema.model_fields.get(key) if schema is not None else None
    annotation = field.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
