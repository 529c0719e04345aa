"""What the shell offers for arguments and options: names, keys and files. Nothing heavy is imported for it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from textsafe_gym.cli import sources
from textsafe_gym.cli.presets import first_comment, presets

Completer = Callable[[Context, Parameter, str], list[CompletionItem]]
_VECTOR = ("textsafe_gym.envs.vector", "SafeRLHFVectorEnv")
_TAKEN_BY = {  # each environment's keyword arguments
    "SafeRLHF-v0": (("textsafe_gym.envs.task", "Task"), _VECTOR),
    "SafeRLHF-Exact-v0": (("textsafe_gym.envs.exact", "ExactEnv"), _VECTOR),
}


def algorithm_names() -> dict[str, str]:
    """Each algorithm's name and one line about it."""
    import algos
    from textsafe_gym.adapters import omnisafe_files

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
    """Keys of --set: the algorithm's, or all algorithms' that are compared; below env. and policy.; below ALGO."""
    chosen = _algorithms_of(context)
    known = {f"{key}=": about for name in chosen for key, about in algorithm_keys(name).items()}
    sections = {"env.": "the environment's", "policy.": "the policy's"}
    if context.command.name == "compare":
        sections |= {f"{name}.": f"for {name} alone" for name in chosen}
    return _keys(known | sections, context, incomplete)


def variants(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of --vary: those of one algorithm, or of its environment or policy."""
    return _keys({f"{name}.": f"for {name} alone" for name in _algorithms_of(context)}, context, incomplete)


def algorithm_keys(name: str) -> dict[str, str]:
    """The settings of an algorithm with their descriptions; none for an unknown one."""
    if name not in algorithm_names():
        return {}
    family, colon, member = name.partition(":")
    if not colon:
        return sources.fields(f"algos.{name}", "Config")
    from textsafe_gym.adapters import omnisafe_files

    about = omnisafe_files.descriptions(member)
    own = {path: about[path] for path in _paths(omnisafe_files.defaults(member))}
    return sources.fields(f"algos.{family}", "RunConfig") | own


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
        inside = {f"{k}=": about for k, about in sources.fields("textsafe_gym.cli.request", "PolicyOptions").items()}
    elif len(path) == 1:
        inside = {f"{key}=": about for key, about in algorithm_keys(path[0]).items()}
        inside |= {"env.": "the environment's", "policy.": "the policy's"}
    return _matching({f"{section}.{key}": about for key, about in inside.items()}, incomplete)


def _paths(sections: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _presets(folder: str) -> dict[str, str]:
    return {name: first_comment(path) for name, path in presets(folder).items()}


def _matching(names: Mapping[str, str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=about or None) for name, about in names.items() if name.startswith(incomplete)]
