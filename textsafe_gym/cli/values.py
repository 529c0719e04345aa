"""What the shell offers for arguments and options: names, keys and files. Nothing heavy is imported for it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from textsafe_gym.cli import sources
from textsafe_gym.presets import first_comment, presets

Completer = Callable[[Context, Parameter, str], list[CompletionItem]]
_POLICY = ("textsafe_gym.experiments.spec", "PolicyOptions")
_VECTOR = ("textsafe_gym.envs.vector", "SafeRLHFVectorEnv")
_TAKEN_BY = {  # each environment's keyword arguments
    "SafeRLHF-v0": (("textsafe_gym.envs.task", "Task"), _VECTOR),
    "SafeRLHF-Exact-v0": (("textsafe_gym.envs.exact", "ExactEnv"), _VECTOR),
}


def algorithm_names() -> dict[str, str]:
    """Each algorithm's name and one line about it."""
    import algos
    from textsafe_gym.adapters.omnisafe import files as omnisafe_files

    return algos.available() | {f"{algos.OMNISAFE}{name}": f"OmniSafe's {name}" for name in omnisafe_files.names()}


def algorithms(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of algorithms."""
    return _matching(algorithm_names(), incomplete)


def environments(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of environments, presets, and files."""
    from textsafe_gym.envs import ENVIRONMENTS

    names = {name: sources.about(*entry[0].split(":")) for name, entry in ENVIRONMENTS.items()}
    return _matching(names | _presets("env"), incomplete) or files(context, parameter, incomplete)


def configs(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets for --config, and files."""
    return _matching(_presets("paper"), incomplete) or files(context, parameter, incomplete)


def studies(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Studies, and files."""
    return _matching(_presets("study"), incomplete) or files(context, parameter, incomplete)


def deepspeed(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets for --deepspeed, and files."""
    names = dict.fromkeys(presets("deepspeed"), "")
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
    known = {f"{key}=": about for name in chosen for key, about in algorithm_keys(name).items()}
    sections = {"env.": "the environment's", "policy.": "the policy's"}
    if context.command.name == "compare":
        sections |= {f"{name}.": f"for {name} alone" for name in chosen}
    return _keys(known | sections, context, incomplete)


def variants(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of --vary: those of one algorithm, or of its environment or policy; and values."""
    if "=" in incomplete:
        return _values(context, incomplete)
    return _keys({f"{name}.": f"for {name} alone" for name in _algorithms_of(context)}, context, incomplete)


def algorithm_keys(name: str) -> dict[str, str]:
    """The settings of an algorithm with their descriptions; none for an unknown one."""
    if name not in algorithm_names():
        return {}
    family, colon, member = name.partition(":")
    if not colon:
        return sources.fields(f"algos.{name}", "Config")
    from textsafe_gym.adapters.omnisafe import files as omnisafe_files

    about = omnisafe_files.descriptions(member)
    own = {key: about[key] for key, _ in _leaves(omnisafe_files.defaults(member))}
    return sources.fields(f"algos.{family}", "RunConfig") | own


def algorithm_choices(name: str) -> dict[str, list[str]]:
    """The settings of a known algorithm that take few values, with these."""
    family, colon, member = name.partition(":")
    if not colon:
        return sources.choices(f"algos.{name}", "Config")
    from textsafe_gym.adapters.omnisafe import files as omnisafe_files

    own = {key: ["true", "false"] for key, x in _leaves(omnisafe_files.defaults(member)) if isinstance(x, bool)}
    return sources.choices(f"algos.{family}", "RunConfig") | own


def env_keys(env: str | None) -> list[str]:
    """Keyword arguments of what --env names, if that is this project's: an environment, a preset or a file."""
    if env is None or env in presets("env") or env.endswith((".yaml", ".yml")):
        env = "SafeRLHF-v0"
    taken = (key for where in _TAKEN_BY.get(env, ()) for key in sources.parameters(*where))
    return [key for key in dict.fromkeys(taken) if key != "num_envs"]


def _algorithms_of(context: Context) -> list[str]:
    # An option that still wants its value stops click's parser, which leaves the arguments in `args`.
    return [name for name in context.args if name in algorithm_names()]


def _keys(known: Mapping[str, str], context: Context, incomplete: str) -> list[CompletionItem]:
    """Those keys, or those below the section that has been typed."""
    section, dot, _ = incomplete.rpartition(".")
    if not dot or any(key.startswith(incomplete) and key != f"{section}." for key in known):
        return _matching(known, incomplete)
    path, inside = section.split("."), {}
    if len(path) == 1 and f"{path[0]}." not in known:
        return []
    if path[-1] == "env":
        inside = {f"{key}=": "" for key in env_keys(context.params.get("env"))}
    elif path[-1] == "policy":
        inside = {f"{key}=": about for key, about in sources.fields(*_POLICY).items()}
    elif len(path) == 1:
        inside = {f"{key}=": about for key, about in algorithm_keys(path[0]).items()}
        inside |= {"env.": "the environment's", "policy.": "the policy's"}
    return _matching({f"{section}.{key}": about for key, about in inside.items()}, incomplete)


def _values(context: Context, incomplete: str) -> list[CompletionItem]:
    """KEY=VALUE for each of the few values of a key; none for others."""
    key, chosen = incomplete.partition("=")[0], _algorithms_of(context)
    section, _, rest = key.partition(".")
    own, key_there = ([section], rest) if section in chosen else (chosen, key)
    if key_there.startswith("policy."):
        found = sources.choices(*_POLICY).get(key_there.removeprefix("policy."), [])
    else:
        found = [value for name in own for value in algorithm_choices(name).get(key_there, [])]
    return _matching(dict.fromkeys((f"{key}={value}" for value in found), ""), incomplete)


def _leaves(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _presets(folder: str) -> dict[str, str]:
    return {name: first_comment(path) for name, path in presets(folder).items()}


def _matching(names: Mapping[str, str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=about or None) for name, about in names.items() if name.startswith(incomplete)]
