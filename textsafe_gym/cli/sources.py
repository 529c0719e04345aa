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
    return {key: _description(statement.value) for key, statement in _declared(module, name).items()}


def choices(module: str, name: str) -> dict[str, list[str]]:
    """Those fields of a pydantic model that take few values, with these: what `Literal` lists, true and false."""
    found = {key: _listed(statement.annotation) for key, statement in _declared(module, name).items()}
    return {key: values for key, values in found.items() if values}


def parameters(module: str, name: str) -> list[str]:
    """Names that a class's `__init__` takes."""
    found = _find(module, name)
    for statement in [] if found is None else found[1].body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return [given.arg for given in [*statement.args.args[1:], *statement.args.kwonlyargs]]
    return []


def _declared(module: str, name: str) -> dict[str, ast.AnnAssign]:
    """Where the fields of a class and of its bases are declared."""
    found = _find(module, name)
    if found is None:
        return {}
    here, node = found
    known: dict[str, ast.AnnAssign] = {}
    for base in reversed(node.bases):  # as Python would resolve them
        if isinstance(base, ast.Name):
            known |= _declared(here, base.id)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            known[statement.target.id] = statement
    return known


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


def _listed(annotation: ast.expr) -> list[str]:
    """The values of `Literal[...]` and of `bool`, also in a union with None."""
    if isinstance(annotation, ast.BinOp):
        return [*_listed(annotation.left), *_listed(annotation.right)]
    if isinstance(annotation, ast.Name):
        return ["true", "false"] if annotation.id == "bool" else []
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        inside = annotation.slice
        values = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        return [str(value.value) for value in values if isinstance(value, ast.Constant)]
    return []


def _description(value: ast.expr | None) -> str:
    """Of `Field(..., description="...")`."""
    for keyword in _keywords(value):
        if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""


def _keywords(value: ast.expr | None) -> Iterator[ast.keyword]:
    if isinstance(value, ast.Call):
        yield from value.keywords
