"""Sphinx: pages in Markdown, and what is written from the code itself, so that it cannot grow stale.

`make docs` builds them. `<!-- generated -->` in a page is filled in here: the algorithms with their settings, the
policy's settings, the help of the commands, the adapters, the examples. A page that consists of
`<!-- text of --> [FILE](FILE)` becomes that file.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

import algos
import algos.omnisafe
import textsafe_gym.adapters
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import PolicyOptions, preset_for
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "textsafe-gym"
author = "the textsafe-gym developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
highlight_language = "text"  # a block that names no language is a command or a formula, not Python

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
default_role = "literal"
python_maximum_signature_line_length = 100
# Names of other libraries, and of types that are written for mypy alone; what is ours has to be found.
nitpick_ignore_regex = [(r"py:.*", r"(?!textsafe_gym\b|algos\b).*"), (r"py:class", r".*\.(T|OwnConfig|Thing|Batch)")]

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]

HERE = Path(__file__).parent
SETTINGS = {
    "TrainingConfig": "Budget, batches, optimiser and KL",
    "OfflineConfig": "Labelled pairs or demonstrations, and optimiser",
    "CriticConfig": "Critics",
    "ClipConfig": "Clip",
    "ConstraintConfig": "Constraint",
    "MultiplierConfig": "Multiplier",
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
        parts += [f"(settings-{base})=\n### {title}", settings_table(core[base].model_fields, {})]
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
            f"[{_lower(SETTINGS[base.__name__])}](#settings-{base.__name__})" for base in module.Config.__bases__
        )
        parts += [f"```{{py:module}} algos.{name}\n```", f"## `{name}`", _about(module)]
        parts += [f"Shared settings: {bases}. Its own, and what is otherwise with it:", settings_table(own, preset)]
    parts += ["```{py:module} algos.omnisafe\n```", "## OmniSafe's", _about(algos.omnisafe)]
    parts += ["[How to use them](omnisafe.md); `textsafe algos NAME` lists the settings of one. All of them have:"]
    parts += [settings_table(algos.omnisafe.RunConfig.model_fields, {})]
    return "\n\n".join(parts)


def _about(module: ModuleType) -> str:
    return re.sub(r"arXiv\s(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", inspect.getdoc(module) or "")


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


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


def adapters() -> str:
    """The public parts of every adapter whose other library is installed."""
    parts = []
    for module in pkgutil.iter_modules(textsafe_gym.adapters.__path__, "textsafe_gym.adapters."):
        if module.name.rpartition(".")[2].startswith("omnisafe_"):
            continue  # what `omnisafe` is made of
        parts.append(f"## `{module.name}`")
        try:
            importlib.import_module(module.name)
        except (ImportError, ConfigError) as error:
            parts.append(f"Not shown where these pages were built: {error}")
        else:
            parts.append(f"```{{eval-rst}}\n.. automodule:: {module.name}\n   :members:\n```")
    return "\n\n".join(parts)


def examples() -> str:
    """What `examples/README.md` says, and the short programs, whole."""
    folder = HERE.parents[1] / "examples"
    about = (folder / "README.md").read_text(encoding="utf-8").partition("\n")[2]
    about = re.sub(r"\]\((\w+)\.py\)", r"](#example-\1)", about)
    about = re.sub(r"\]\((\w+/)", r"](../../examples/\1", about)
    programs = [
        f"(example-{path.stem})=\n## {path.name}\n\n```{{literalinclude}} ../../examples/{path.name}\n```"
        for path in sorted(folder.glob("*.py"))
    ]
    return "\n\n".join([about, *programs])


GENERATED = {
    "algorithms": algorithms,
    "own_models": policy_settings,
    "commands": commands,
    "adapters": adapters,
    "examples": examples,
}
TEXT_OF = re.compile(r"<!-- text of --> \[.*\]\((.*)\)\s*")


def fill(app: "Sphinx", page: str, source: list[str]) -> None:
    """Completes a page before it is parsed."""
    text = source[0]
    if page in GENERATED:
        text = text.replace("<!-- generated -->", GENERATED[page]())
    elif page == "index":  # whose contents name pages that may not be there yet
        text = re.sub(r"(?m)^(\w+)\n", lambda line: line[0] if (HERE / f"{line[1]}.md").exists() else "", text)
    elif found := TEXT_OF.fullmatch(text):
        text = (HERE / found[1]).read_text(encoding="utf-8")
    for name, other in _pages_of_files().items():
        text = re.sub(rf"\]\((?:\.\./)+(?:\w+/)?{other.parent.name}/{other.name}", f"]({name}", text)
    source[0] = text


def _pages_of_files() -> dict[str, Path]:
    """From a page's file to the file elsewhere whose text it has."""
    found = {path.name: TEXT_OF.fullmatch(path.read_text(encoding="utf-8")) for path in HERE.glob("*.md")}
    return {name: Path(match[1]) for name, match in found.items() if match}


def plain(app: "Sphinx", what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text with `code`, equations and bullets, under Google's headings."""
    found: list[str] = []
    for line in lines:
        if line.lstrip().startswith("* ") and found and not found[-1].lstrip().startswith("* "):
            found.append("")  # reStructuredText wants a list to stand apart
        found.append(_escaped(line))
        if line.strip() == "Returns:":
            found.append("    :")  # what stands before a colon in the text that follows is not a type
    lines[:] = found


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`|\*\w+\*)", line)
    for i, part in enumerate(parts):
        if i % 2 and part.startswith("`"):  # "`Module`s" ends within a word
            parts[i] = f"`{part}`" + ("\\ " if re.match(r"\w", parts[i + 1]) else "")
        elif not i % 2:
            parts[i] = re.sub(r"((?<!^)\*(?![*\s])|(?<=\w)[*_](?!\w)|\|)", r"\\\1", part)
    return "".join(parts)


def setup(app: "Sphinx") -> None:
    """Sphinx calls this once: pages are filled in before they are parsed, docstrings before napoleon."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
