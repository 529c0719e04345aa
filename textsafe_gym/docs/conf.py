"""Sphinx: pages in Markdown. `make docs` builds them.

What pages hold of the code itself is written into them by `generate.py`. Filled in here are the examples, the
docstrings of the adapters, and a page that consists of `<!-- text of --> [FILE](FILE)`, which becomes that file.
"""

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.docs.generate import BLOCK, adapter_modules
from textsafe_gym.errors import ConfigError

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


def adapters() -> str:
    """The documentation of every adapter whose other library is installed."""
    parts = []
    for name in adapter_modules():
        parts.append(f"## `{name}`")
        try:
            importlib.import_module(name)
        except (ImportError, ConfigError) as error:
            parts.append(f"Not shown where these pages were built: {error}")
        else:
            parts.append(f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```")
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


TEXT_OF = re.compile(r"<!-- text of --> \[.*\]\((.*)\)\s*")


def fill(app: "Sphinx", page: str, source: list[str]) -> None:
    """Completes a page before it is parsed."""
    text = source[0]
    if page == "examples":
        text = text.replace("<!-- generated -->", examples())
    elif page == "adapters":
        text = BLOCK.sub(lambda _: f"\n{adapters()}\n\n", text)
    elif page == "algorithms":
        text = re.sub(r"(?m)^## `(\w+)`$", r"```{py:module} algos.\1\n```\n\n\g<0>", text)
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
