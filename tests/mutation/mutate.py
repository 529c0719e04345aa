"""Plants faults in the package, one at a time, and reports which of them the tests notice: `make mutate`.

Some of the faults are written by hand (`faults.yaml`), some are drawn from the sources by a seed. Each is planted in a
copy of the tracked files, where the tests that `faults.yaml` maps to its file are run; it is killed if they fail. What
was found is kept in build/mutation.jsonl, so that a run that was stopped goes on where it was: killed faults are not
tried again as long as their file stays the same, survivors are. `RESULT.md` has the list of all.
"""

import ast
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
KEPT = ROOT / "build" / "mutation.jsonl"
SECONDS = 300  # for the tests of one fault; the mapped ones take a fraction of that
LARGEST_SHARE = 0.1  # of the faults that are not equivalent, that may survive
# How many faults are drawn from each folder, and files of which none is drawn: declarations, drawings, model cards.
DRAWN = {
    "algos": 30,
    "textsafe_gym/envs": 15,
    "textsafe_gym/models": 20,
    "textsafe_gym/evaluation": 15,
    "textsafe_gym/rollouts": 3,
}
LEFT_OUT = ("algos/core/settings.py", "textsafe_gym/evaluation/figures.py", "textsafe_gym/models/cards.py")
_COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
}  # fmt: skip
_ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
_OPPOSITES = {"min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax"}
_OPPOSITES |= {other: one for one, other in _OPPOSITES.items()}


@dataclass(frozen=True)
class Fault:
    """One change of one file.

    Attributes:
        name: short and unique.
        file: from the repository's root.
        old: text that the file has exactly once.
        new: what takes its place.
        breaks: what goes wrong, in a line.
        tests: pytest's arguments; they run before those of the file.
        drawn: by the seed, not written by hand.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...] = ()
    drawn: bool = False

    def planted(self) -> str | None:
        """The file with the fault; None where it does not have the old text exactly once."""
        path = ROOT / self.file
        text = path.read_text() if path.exists() else ""
        return text.replace(self.old, self.new) if text.count(self.old) == 1 and self.old != self.new else None

    @property
    def key(self) -> str:
        """Stands for the fault in this state of its file."""
        return _digest(self.name, self.old, self.new, (ROOT / self.file).read_text())


@cache
def _data() -> dict[str, Any]:
    return yaml.safe_load((HERE / "faults.yaml").read_text())


def written() -> list[Fault]:
    """The faults of `faults.yaml`."""
    return [Fault(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in _data()["faults"]]


def equivalents() -> dict[str, str]:
    """Names of faults that change nothing that anyone could notice, and why."""
    return _data()["equivalent"] or {}


def tests_of(fault: Fault) -> list[str]:
    """Pytest's arguments: the fault's own, then those of the longest entry that its file begins with."""
    entries = [prefix for prefix in _data()["tests"] if fault.file.startswith(prefix)]
    return list(dict.fromkeys([*fault.tests, *_data()["tests"][max(entries, key=len)]]))


def draw(seed: int) -> list[Fault]:
    """Faults drawn from the sources: of each folder, file and kind a few, those whose digest with the seed is smallest.

    A change of one line leaves most of the others in place.
    """
    found: list[Fault] = []
    for folder, count in DRAWN.items():
        paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob("*.py"))]
        candidates = [pair for path in paths if path not in LEFT_OUT for pair in _candidates(path, seed)]
        files, kinds, picked = Counter[str](), Counter[str](), 0
        for kind, fault in sorted(candidates, key=lambda pair: pair[1].name):
            if picked < count and files[fault.file] < 2 and kinds[kind] < math.ceil(count / 5):
                found.append(fault)
                files[fault.file] += 1
                kinds[kind] += 1
                picked += 1
    return found


def _candidates(file: str, seed: int) -> Iterator[tuple[str, Fault]]:
    text = (ROOT / file).read_text()
    lines = text.splitlines(keepends=True)
    for kind, node, old, new in _changes(ast.parse(text), text):
        first, last = node.lineno - 1, node.end_lineno
        whole = "".join(lines[first:last])
        begin = len(lines[first].encode()[: node.col_offset].decode())
        changed = whole[:begin] + whole[begin:].replace(old, new, 1)
        while text.count(whole) != 1:
            first -= 1
            whole, changed = lines[first] + whole, lines[first] + changed
        name = f"drawn-{_digest(str(seed), file, whole, changed)[:8]}"
        yield kind, Fault(name, file, whole, changed, kind, drawn=True)


def _changes(tree: ast.AST, text: str) -> Iterator[tuple[str, Any, str, str]]:
    """Kind, node, and the node's text before and after, of every change that could be made below `tree`."""

    lines = text.encode().splitlines(keepends=True)

    def source(node: Any) -> str:  # `ast.get_source_segment` reads the whole file each time
        own = lines[node.lineno - 1 : node.end_lineno]
        own[-1] = own[-1][: node.end_col_offset]
        own[0] = own[0][node.col_offset :]
        return b"".join(own).decode()

    def exchanged(whole: str, left: Any, right: Any, one: str, other: str) -> str | None:
        """`whole` with the operator between two of its operands exchanged."""
        begin, end = whole.find(source(left)) + len(source(left)), whole.rfind(source(right))
        gap = re.sub(rf"(?<![\w<>=!]){re.escape(one)}(?![\w<>=!])", other, whole[begin:end], count=1)
        return None if gap == whole[begin:end] else whole[:begin] + gap + whole[end:]

    for node in _computing(tree):
        whole, new, kind = source(node), None, ""
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                kind, new = "comparison", exchanged(whole, left, right, *_COMPARISONS[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                kind, new = "arithmetic", exchanged(whole, left, right, *_ARITHMETIC[type(op)])
            case ast.BoolOp(op=op, values=[left, right]):
                pair = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                kind, new = "and, or", exchanged(whole, left, right, *pair)
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
                kind, new = "dropped not or sign", source(operand)
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                kind, new = "off by one", str(value + 1)
            case ast.Subscript(slice=ast.Slice(upper=ast.Name() | ast.Attribute() as upper)):
                end = f"{source(upper)}]"
                kind, new = "off by one", whole.removesuffix("]") + " - 1]" if whole.endswith(end) else None
            case ast.Call(func=ast.Attribute(value=value, attr="detach"), args=[]):
                kind, new = "dropped detach", source(value)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _OPPOSITES:
                func = source(node.func)
                kind, new = "min, max", func.removesuffix(name) + _OPPOSITES[name] + whole.removeprefix(func)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, second, *_]):
                plain = isinstance(first, ast.Name | ast.Attribute) and isinstance(second, ast.Name | ast.Attribute)
                if plain and name not in ("isinstance", "getattr", "hasattr"):
                    one, other, call = source(first), source(second), source(node.func)
                    given = whole.removeprefix(call)
                    turned = re.sub(f"({re.escape(one)})(,\\s+)({re.escape(other)})", r"\3\2\1", given, count=1)
                    kind, new = "swapped arguments", call + turned
        if new is not None and new != whole:
            yield kind, node, whole, new


def _computing(node: ast.AST) -> Iterator[Any]:
    """Nodes below that compute something: no annotations, messages, decorators, or what is for type checkers alone."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if hasattr(child, "lineno"):
                yield child
            yield from _computing(child)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def copy_of_the_tree(target: Path) -> Path:
    """The tracked files as they are now, in `target`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Pytest's exit status, None where it took too long, and what it said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not timing", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            done = subprocess.run(command, cwd=tree, env=environment, stdout=output, stderr=output, timeout=seconds)
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        output.seek(0)
        return status, output.read()


def try_fault(fault: Fault, tree: Path) -> dict[str, Any]:
    """Plants the fault in a copy of the tree, runs its tests, and takes it out again."""
    path, planted = tree / fault.file, fault.planted()
    assert planted is not None
    before, start = path.read_bytes(), time.monotonic()
    compiled = Path(
        importlib.util.cache_from_source(str(path))
    )  # is not distinguished from one of the same second and size
    try:
        path.write_text(planted)
        compiled.unlink(missing_ok=True)
        status, said = run_tests(tree, tests_of(fault), SECONDS)
    finally:
        path.write_bytes(before)
        compiled.unlink(missing_ok=True)
    if status in (4, 5) and not re.search(r"^ERROR tests/", said, re.MULTILINE):  # else a file that no longer loads
        raise click.ClickException(f"{fault.name}: pytest finds no tests: {' '.join(said.split())[-300:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    by = f"no end within {SECONDS} s" if status is None else failed[1] if failed else f"exit status {status}"
    result, by = ("survived", "") if status == 0 else ("killed", by)
    return {
        "key": fault.key,
        "name": fault.name,
        "result": result,
        "by": by,
        "seconds": round(time.monotonic() - start),
    }


def kept() -> dict[str, dict[str, Any]]:
    """By key, the last result of each fault; a line that was cut off is none."""
    found = {}
    for line in KEPT.read_text().splitlines() if KEPT.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["key"]] = row
    return found


def keep(row: dict[str, Any]) -> None:
    """Appends a result in one write."""
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("ab") as file:
        file.write(f"\n{json.dumps(row)}\n".encode())


def write_result(faults: Sequence[Fault], seed: int) -> tuple[int, int]:
    """`RESULT.md`; returns how many survived and of how many that are not equivalent."""
    results, same = kept(), equivalents()
    counts, tables = Counter[str](), {False: list[str](), True: list[str]()}
    for fault in faults:
        row = results.get(fault.key, {"result": "not run", "by": ""})
        result = "equivalent" if row["result"] == "survived" and fault.name in same else row["result"]
        counts[result] += 1
        said = {"killed": f"killed by `{row['by']}`", "equivalent": f"equivalent: {same.get(fault.name)}"}
        change = f"`{_shown(fault.old, fault.new)}` → `{_shown(fault.new, fault.old)}`"
        cells = [fault.name, f"`{fault.file}`", change, fault.breaks, said.get(result, f"**{result}**")]
        tables[fault.drawn].append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    counted = sum(counts.values()) - counts["equivalent"] - counts["not run"]
    heading = "| fault | file | change | what it is | result |\n| - | - | - | - | - |\n"
    text = (
        "# What the tests notice\n\nWritten by `make mutate`. "
        f"{len(faults)} faults: {counts['killed']} killed, {counts['survived']} survived, {counts['equivalent']} "
        f"equivalent, {counts['not run']} not run. Of those that were run and are not equivalent "
        f"{100 * counts['survived'] / max(counted, 1):.1f} % survive.\n\n"
        f"## Written by hand\n\n{heading}{chr(10).join(tables[False])}\n\n"
        f"## Drawn with seed {seed}\n\n{heading}{chr(10).join(tables[True])}\n"
    )
    (HERE / "RESULT.md").write_text(text)
    return counts["survived"], counted


def _shown(text: str, other: str) -> str:
    """The lines in which one text is not the other, in one line."""
    lines = [line.strip() for line in text.splitlines() if line not in other.splitlines()]
    return " ".join(lines or text.split()) or "nothing"


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Tries the faults of these names alone, and again.")
@click.option("--seed", default=0, show_default=True, help="Of the faults that are drawn.")
@click.option("--workers", default=1, show_default=True, help="Faults that are tried at once.")
def main(only: tuple[str, ...], seed: int, workers: int) -> None:
    """Plants faults in copies of the package and reports which of them the tests notice."""
    console = Console()
    faults = [*written(), *draw(seed)]
    stale = [fault for fault in faults if fault.planted() is None]
    for fault in stale:
        console.print(f"stale: {fault.name}: {fault.file} does not have its old text exactly once", markup=False)
    unknown = set(only) - {fault.name for fault in faults}
    if unknown:
        raise click.ClickException(f"no fault is called {', '.join(sorted(unknown))}")
    found, usable = kept(), [fault for fault in faults if fault not in stale]

    def is_due(fault: Fault) -> bool:
        result = found.get(fault.key, {}).get("result")
        return result is None or (result == "survived" and fault.name not in equivalents())

    due = [fault for fault in usable if (fault.name in only if only else is_due(fault))]
    due.sort(key=lambda fault: fault.key)  # so that what a run that is stopped has tried is a fair sample
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as scratch:
        trees: SimpleQueue[Path] = SimpleQueue()
        for worker in range(workers):
            trees.put(copy_of_the_tree(Path(scratch) / str(worker)))
        if due:
            needed = list(dict.fromkeys(test for fault in due for test in tests_of(fault)))
            console.print(f"{len(due)} of {len(faults)} faults to try; first their tests without any fault")
            status, said = run_tests(Path(scratch) / "0", needed, 20 * SECONDS)
            if status != 0:
                raise click.ClickException(f"the tests do not pass without a fault:\n{said[-3000:]}")

        def attempt(fault: Fault) -> dict[str, Any]:
            tree = trees.get()
            try:
                return try_fault(fault, tree)
            finally:
                trees.put(tree)

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
            bar = progress.add_task("faults", total=len(due))
            for future in as_completed([pool.submit(attempt, fault) for fault in due]):
                row = future.result()
                keep(row)
                progress.advance(bar)
                seconds = f"{row['seconds']} s"
                line = f"{row['result']:9}{row['name']}  {seconds}  {row['by']}"
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    survived, counted = write_result(usable, seed)
    console.print(f"{survived} of {counted} that were run and are not equivalent survive; see tests/mutation/RESULT.md")
    if stale or survived > LARGEST_SHARE * counted:
        sys.exit(1)


if __name__ == "__main__":
    main()
