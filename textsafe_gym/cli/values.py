"""What the shell offers for arguments and options: names, keys and files, read from the classes that take them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from click import Context, Parameter
from click.shell_completion import CompletionItem

from textsafe_gym.errors import TextsafeError
from textsafe_gym.installation import first_comment, shipped

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_SECTIONS = {"env.": "the environment's", "policy.": "the policy's"}


def algorithm_names() -> dict[str, str]:
    """Each algorithm's name and one line about it."""
    from textsafe_gym.installation import check_not_hidden

    check_not_hidden()
    import algos

    return algos.available() | algos.members()


def algorithms(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of algorithms, families' members included."""
    return _matching(algorithm_names(), incomplete)


def environments(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of environments, shipped configurations, and files."""
    from textsafe_gym.envs import ENVIRONMENTS

    names = {name: ENVIRONMENTS.about(name) for name in ENVIRONMENTS}
    return _matching(names | _shipped("env"), incomplete) or files(context, parameter, incomplete)


def configs(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped configurations for --config, and files."""
    return _matching(_shipped("paper"), incomplete) or files(context, parameter, incomplete)


def preset_names(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the presets in `configs/preset/`."""
    return _matching(_shipped("preset"), incomplete)


def studies(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the studies that ship, and files where none of those begins so."""
    return _matching(_shipped("study"), incomplete) or files(context, parameter, incomplete)


def deepspeed(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped configurations for --deepspeed, and files."""
    names = dict.fromkeys(shipped("deepspeed"), "")
    return _matching(names, incomplete) or files(context, parameter, incomplete)


def files(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever files the shell finds."""
    return [CompletionItem(incomplete, type="file")]


def directories(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever directories the shell finds."""
    return [CompletionItem(incomplete, type="dir")]


def settings(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of --set: the algorithm's, or all algorithms' that are compared; below env. and policy.; below ALGO.

    Behind a key's `=` the values, where they are few.
    """
    if "=" in incomplete:
        return _values(context, incomplete)
    chosen = _algorithms_of(context)
    sections = dict(_SECTIONS)
    if context.command.name == "compare":
        sections |= {f"{name}.": f"for {name} alone" for name in chosen}
    if any(incomplete.startswith(section) for section in sections):
        return _keys(sections, context, incomplete)
    known = {f"{key}=": about for name in chosen for key, about in algorithm_keys(name).items()}
    return _keys(known | sections, context, incomplete)


def variants(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of --vary: those of one algorithm, or of its environment or policy; and values."""
    if "=" in incomplete:
        return _values(context, incomplete)
    return _keys({f"{name}.": f"for {name} alone" for name in _algorithms_of(context)}, context, incomplete)


def algorithm_keys(name: str) -> dict[str, str]:
    """The settings of an algorithm with their descriptions; none for an unknown one."""
    schema = _schema_of(name)
    return {} if schema is None else _described(schema)


def algorithm_choices(name: str) -> dict[str, list[str]]:
    """The settings of an algorithm that take few values, with these."""
    schema = _schema_of(name)
    return {} if schema is None else _choices_of(schema)


def _schema_of(name: str) -> "type[BaseModel] | None":
    from textsafe_gym.experiments.spec import config_class

    try:
        return config_class(name)
    except TextsafeError:
        return None


def _settings_of(schema: "type[BaseModel]", prefix: str = "") -> "list[tuple[str, FieldInfo]]":
    """Key and field of each setting; those of a section by their path."""
    from textsafe_gym.presets import section_of

    found = []
    for name, field in schema.model_fields.items():
        section = section_of(schema, name)
        if section is not None:
            found += _settings_of(section, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field))
    return found


def _choices_of(schema: "type[BaseModel]") -> dict[str, list[str]]:
    from pydantic import AfterValidator

    from textsafe_gym.config import OneOf

    found = {}
    for key, field in _settings_of(schema):
        checks = [mark.func for mark in field.metadata if isinstance(mark, AfterValidator)]
        registered = [name for check in checks if isinstance(check, OneOf) for name in check.names]
        found[key] = registered or _choices(field.annotation)
    return {key: values for key, values in found.items() if values}


def _described(schema: "type[BaseModel]") -> dict[str, str]:
    return {key: field.description or "" for key, field in _settings_of(schema)}


def _choices(annotation: object) -> list[str]:
    """The values of `Literal[...]` and of `bool`, also in a union with None."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _choices(part)]


def env_keys(env: str | None) -> list[str]:
    """Keyword arguments of what --env names, if it is this project's: an environment, a file, or a shipped one."""
    from textsafe_gym.experiments import spec

    if env is None or env in shipped("env") or env.endswith((".yaml", ".yml")):
        env = spec.DEFAULT_ENV
    return spec.env_keys(env)


def _algorithms_of(context: Context) -> list[str]:
    # An option that still wants its value stops click's parser, which leaves the arguments in `args`.
    known = algorithm_names()
    return [name for name in context.args if name in known or ":" in name]


def _keys(known: Mapping[str, str], context: Context, incomplete: str) -> list[CompletionItem]:
    """Those keys, or those below the section that has been typed."""
    name = next((known_name for known_name in known if incomplete.startswith(known_name)), "")
    if not name.endswith("."):
        return _matching(known, incomplete)
    section, rest = name.removesuffix("."), incomplete.removeprefix(name)
    if section == "env":
        inside = {f"{key}=": "" for key in env_keys(context.params.get("env"))}
    elif section == "policy":
        inside = {f"{key}=": about for key, about in _described(_policy_options()).items()}
    elif rest.startswith(tuple(_SECTIONS)):
        below = _keys(_SECTIONS, context, rest)
        return [CompletionItem(f"{name}{item.value}", help=item.help) for item in below]
    else:
        inside = {f"{key}=": about for key, about in algorithm_keys(section).items()} | _SECTIONS
    return _matching({f"{name}{key}": about for key, about in inside.items()}, incomplete)


def _values(context: Context, incomplete: str) -> list[CompletionItem]:
    """KEY=VALUE for each of the few values of a key; none for others."""
    from textsafe_gym.config import split_key

    key, chosen = incomplete.partition("=")[0], _algorithms_of(context)
    own, *below = split_key(key, chosen)
    chosen, path = ([own], below) if own in chosen else (chosen, [own, *below])
    if path[0] == "policy":
        found = _choices_of(_policy_options()).get(".".join(path[1:]), [])
    else:
        found = [value for name in chosen for value in algorithm_choices(name).get(".".join(path), [])]
    return _matching(dict.fromkeys((f"{key}={value}" for value in found), ""), incomplete)


def _policy_options() -> "type[BaseModel]":
    from textsafe_gym.experiments.spec import PolicyOptions

    return PolicyOptions


def _shipped(folder: str) -> dict[str, str]:
    return {name: first_comment(path) for name, path in shipped(folder).items()}


def _matching(names: Mapping[str, str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=about or None) for name, about in names.items() if name.startswith(incomplete)]
