"""The documentation builds without a warning, its links lead somewhere, and its code runs."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import algos
from algos.core.settings import RULES
from algos.registration import families
from tests.helpers.rounding import FLOAT32
from textsafe_gym.docs import generate
from textsafe_gym.files import read_rows

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "textsafe_gym" / "docs"
MARKDOWN = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(path for part in ("configs", "examples") for path in (ROOT / part).rglob("*.md")),
    )
) + sorted(DOCS.glob("*.md"))
RUNNABLE = ("cmdp", "constraint", "kl", "multiplier", "front", "speed")
LINK = re.compile(r"(?<!`)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
CODE = re.compile(r"^(`{3,}).*?^\1`*\n|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """What a link into a Markdown file may name: its headings as GitHub writes them, and explicit targets."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\((.+)\)=$", text, re.MULTILINE))


def links(path: Path) -> list[str]:
    return LINK.findall(CODE.sub("", path.read_text()))


def python_blocks(page: str) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    return blocks


def test_the_pages_build_without_a_warning_and_all_are_in_the_contents(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-n", str(DOCS), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    contents = (tmp_path / "index.html").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or f'href="{page.stem}.html"' in contents, f"{page.name} is not in the contents"
    algorithms = (tmp_path / "algorithms.html").read_text()
    assert all(f"algos.{algorithm}" in algorithms for algorithm in (*algos.available(), *families()))
    assert "--resume" in (tmp_path / "commands.html").read_text()


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{name(path)}: {link}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{name(path)}: {link}"
            continue
        target = path.parent / parts.path if parts.path else path
        assert target.exists(), f"{name(path)}: {link} leads nowhere"
        generated = target.name == "examples.md"
        inventory = path.parent == DOCS and re.match(r"algos\b|textsafe_gym\b", parts.fragment)
        if parts.fragment and not generated and not inventory:  # those the build checks
            assert parts.fragment in anchors(target), f"{name(path)}: {link}: there is no such heading"


def test_the_link_check_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n[x](#a-b-c) and `[y](z)`\n```\n[in](code)\n# no heading\n```\n[![i](i.png)](page.md#d)\n"
    )
    assert links(page) == ["#a-b-c", "page.md#d"]
    assert anchors(page) == {"a-b-c"}


@pytest.mark.parametrize("page", generate.GENERATED)
def test_the_generated_parts_are_as_the_code_has_them(page: str) -> None:
    assert generate.filled(page) == (DOCS / f"{page}.md").read_text(), "stale: run make reference"


def documented(page: Path) -> dict[str, Any]:
    """The classes and functions whose docstrings a page shows, by name."""
    directive = re.compile(r"^\.\. auto(module|class|function):: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)
    found: dict[str, Any] = {}
    for kind, path, options in directive.findall(page.read_text()):
        if kind != "module":
            owner, _, last = path.rpartition(".")
            found[last] = getattr(importlib.import_module(owner), last)
            continue
        module, members = importlib.import_module(path), re.search(r":members:(.*)", options)
        without = re.search(r":exclude-members:(.*)", options)
        own = [name for name, x in vars(module).items() if getattr(x, "__module__", "") == path and x.__doc__]
        shown = re.findall(r"\w+", members[1]) if members else []
        shown = shown or [name for name in own if name[0] != "_" and callable(getattr(module, name))]
        found |= {name: getattr(module, name) for name in shown if not without or name not in without[1]}
    return found


@pytest.mark.parametrize("page", sorted(DOCS.glob("api_*.md")), ids=name)
def test_the_reference_begins_with_a_table_of_what_it_documents(page: Path) -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\((\S+)\) \| (?:`(\w+)\((.*)\)`)? \| (.+) \|$", page.read_text(), re.MULTILINE)
    things = documented(page)
    assert {row[0] for row in rows} == things.keys()
    assert len(rows) == len(things)
    for title, link, called, arguments, _ in rows:
        thing = inspect.unwrap(things[title])
        assert Path(inspect.getsourcefile(thing) or "").samefile(DOCS / link), f"{title} is not in {link}"
        if called:
            names = [argument.strip("*") for argument in arguments.split(", ") if argument not in ("", "*", "...")]
            assert called == title
            known = inspect.signature(thing).parameters
            assert known.keys() >= set(names), f"{title} has not all of {names}"
            required = {x.name for x in known.values() if x.default is x.empty and x.kind not in (2, 4)}
            assert required <= set(names), f"{title} needs {required}"


def test_docstrings_are_more_than_a_name() -> None:
    for path in (path for part in ("algos", "textsafe_gym") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                about = ast.get_docstring(node)
                where = f"{name(path)}:{getattr(node, 'lineno', 1)}"
                assert about is None or len(about.split()) > 3, f"{where}: {about!r} says what its name says"


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_code_of_the_concept_pages_runs(page: str) -> None:
    names: dict[str, object] = {"__name__": page}
    rules = set(RULES)
    try:
        for block in python_blocks(page):
            exec(compile(block, f"{page}.md", "exec"), names)
    finally:
        for name in set(RULES) - rules:
            RULES.remove(name)


@pytest.mark.long
def test_a_judge_of_ones_own_is_known_to_the_command_line_and_the_policy_to_transformers(tmp_path: Path) -> None:
    (judge,) = python_blocks("own_models")
    (tmp_path / "judged.py").write_text(judge)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "textsafe_gym.cli.main", "train", "rloo", "-q"]
    command += [
        "--set",
        "env.reward_model=judged:brief",
        "--episodes",
        "16",
        "--set",
        "episodes_per_iteration=16",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    rows = read_rows(out / "evaluation.jsonl")
    assert all(row["reward"] == pytest.approx(-len(row["response"].split()) / 10, rel=FLOAT32) for row in rows)
    assert len({row["reward"] for row in rows}) > 1

    (load,) = python_blocks("runs")
    assert '"runs/one/' in load
    names: dict[str, Any] = {}
    exec(load.replace('"runs/one/', f'"{out}/'), names)
    asked = names["tokenizer"]("how do i fix a bike ?", return_tensors="pt")["input_ids"]
    answer = names["tokenizer"].decode(names["model"].generate(asked, max_new_tokens=4)[0])
    assert answer.startswith("how do i fix a bike ?")
    assert len(answer.split()) > 7
