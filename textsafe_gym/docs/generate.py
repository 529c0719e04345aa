"""Writes what the pages hold of the code itself: `python -m textsafe_gym.docs.generate`, or `make reference`.

The text between `<!-- generated -->` and `<!-- end -->` in four pages: the algorithms with their settings, the policy's
settings, the help of the commands, the adapters. A test compares it with the code.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import click

import algos
import textsafe_gym.adapters
from algos.registration import families
from textsafe_gym.cli.main import main
from textsafe_gym.experiments.spec import PolicyOptions, preset_for
from textsafe_gym.files import Row, write_text

HERE = Path(__file__).parent
SETTINGS = {
    "TrainingConfig": "Budget, batches, optimiser and KL",
    "OfflineConfig": "Data that are there already, and optimiser",
    "CriticConfig": "Critics",
    "ActorConfig": "Steps of the actor",
    "ClipConfig": "Clip",
    "ConstraintConfig": "Constraint",
    "MultiplierConfig": "Constraint and multiplier",
    "TrustRegionConfig": "Trust region",
}


def settings_table(fields: Row, preset: Row) -> str:
    """A Markdown table of pydantic fields, with what the preset "small" makes of them where that differs."""
    rows = [("setting", "default", "`small`", ""), ("---",) * 4]
    for name, field in fields.items():
        about = (field.description or "").replace("|", r"\|").replace("*", r"\*")
        rows.append((f"`{name}`", f"`{field.default}`", f"`{preset[name]}`" if name in preset else "", about))
    kept = [row if preset else (*row[:2], row[3]) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in kept)


def algorithms() -> str:
    """Every shared group of settings once, then every algorithm: its docstring, and its own settings."""
    core: Row = dict(inspect.getmembers(importlib.import_module("algos.core.settings"), inspect.isclass))
    parts = ["## Shared settings"]
    for base, title in SETTINGS.items():
        parts += [f"### {title}", settings_table(core[base].model_fields, {})]
    for name in algos.available():
        module = importlib.import_module(f"algos.{name}")
        preset = preset_for(name).values
        shared = {key: field for base in module.Config.__bases__ for key, field in base.model_fields.items()}
        own = {
            key: field
            for key, field in module.Config.model_fields.items()
            if key in preset or key not in shared or field.default != shared[key].default
        }
        bases = ", ".join(
            f"[{_lower(SETTINGS[base.__name__])}](#{_anchor(SETTINGS[base.__name__])})"
            for base in module.Config.__bases__
        )
        parts += [f"## `{name}`", _about(module)]
        parts += [f"Shared settings: {bases}. Its own, and what is otherwise with it:", settings_table(own, preset)]
    for prefix, family in families().items():
        parts += [f"## `{prefix}`", _about(family)]
        parts += [f"[How to use them]({prefix}.md); `textsafe algos {prefix}:NAME` lists the settings of one."]
        parts += ["All of them have:", settings_table(family.RunConfig.model_fields, {})]
    return "\n\n".join(parts)


def _about(module: object) -> str:
    return re.sub(r"arXiv\s(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", inspect.getdoc(module) or "")


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _anchor(title: str) -> str:
    """As GitHub and MyST make one of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def policy_settings() -> str:
    """A Markdown table of what `policy.KEY` may set."""
    rows = [f"| `{name}` | {field.description} |" for name, field in PolicyOptions.model_fields.items()]
    return "\n".join(["| setting | |", "|---|---|", *rows])


def commands() -> str:
    """The help of every command."""
    return "\n\n".join(_help(main, click.Context(main, info_name="textsafe", **main.context_settings), 2))


def _help(command: click.Command, context: click.Context, level: int) -> list[str]:
    context.max_content_width = 100
    context.terminal_width = 100
    found = [f"{'#' * level} `{context.command_path}`", f"```text\n{command.get_help(context)}\n```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                found += _help(below, click.Context(below, info_name=name, parent=context), min(level + 1, 3))
    return found


def adapter_modules() -> list[str]:
    """Their full names, whether or not the other library is there."""
    return [module.name for module in pkgutil.iter_modules(textsafe_gym.adapters.__path__, "textsafe_gym.adapters.")]


def adapters() -> str:
    """A table of the public parts of every adapter; needs the other libraries."""
    parts = []
    for name in adapter_modules():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", [key for key, x in vars(module).items() if _is_own(key, x, name)])
        things = {key: getattr(module, key) for key in public}
        rows = [
            f"| `{key}({', '.join(inspect.signature(thing).parameters)})` | {_first_line(thing)} |"
            for key, thing in things.items()
            if callable(thing)
        ]
        parts += [f"## `{name}`", _first_line(module), "\n".join(["| call | what it is |", "|---|---|", *rows])]
    return "\n\n".join(parts)


def _is_own(name: str, thing: object, module: str) -> bool:
    return name[0] != "_" and getattr(thing, "__module__", "") == module and bool(thing.__doc__)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")


GENERATED = {"algorithms": algorithms, "own_models": policy_settings, "commands": commands, "adapters": adapters}
BLOCK = re.compile(r"(?<=<!-- generated -->\n).*(?=<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The text of a page with its generated part as the code now has it."""
    block = f"\n{GENERATED[page]()}\n\n"
    return BLOCK.sub(lambda _: block, (HERE / f"{page}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in GENERATED:
        write_text(HERE / f"{page}.md", filled(page))
