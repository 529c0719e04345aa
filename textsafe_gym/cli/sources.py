"""What source files say of themselves, read without importing them, as lists and completions have no time to."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def about(module: str, name: str) -> str:
    """First line of a class's docstring."""
    found = _find(module, name)
    return "" if found is None else (ast.get_docstring(found[1]) or "").partition("\n")[0]


def fields(module: str, name: str) -> dict[str, str]:
    """The fields of a pydantic model with their descriptions, those of its bases first."""
    found = _find(module, name)
    if found is None:
        return {}
    here, node = found
    known: dict[str, str] = {}
    for base in reversed(node.bases):  # as Python would resolve them
        if isinstance(base, ast.Name):
            known |= fields(here, base.id)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            known[statement.target.id] = _description(statement.value)
    return known


def parameters(module: str, name: str) -> list[str]:
    """Names that a class's `__init__` takes."""
    found = _find(module, name)
    for statement in [] if found is None else found[1].body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return [given.arg for given in [*statement.args.args[1:], *statement.args.kwonlyargs]]
    return []


def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class and the module that defines it, of which `module` may have imported it."""
    for node in _statements(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name) if node.module.startswith(("algos", "textsafe_gym")) else None
    return None


@cache
def _statements(module: str) -> tuple[ast.stmt, ...]:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ()
    return tuple(ast.parse(Path(found.origin).read_text(encoding="utf-8")).body)


def _description(value: ast.expr | None) -> str:
    """Of `Field(..., description="...")`."""
    for keyword in _keywords(value):
        if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""


def _keywords(value: ast.expr | None) -> Iterator[ast.keyword]:
    if isinstance(value, ast.Call):
        yield from value.keywords
