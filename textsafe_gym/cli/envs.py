"""`textsafe envs`."""

import click

from textsafe_gym.cli.options import json_option, print_json

_EXAMPLE = """\b
Example:
  textsafe envs
  textsafe train ppo --env SafeRLHF-v0 --set env.cost_limit=-1
"""


@click.command(epilog=_EXAMPLE)
@json_option
def envs(as_json: bool) -> None:
    """Lists the environments, and the presets that --env takes as well.

    Any other Gymnasium environment that reports info["cost"] works too: --env ID or --env MODULE:ID.
    """
    from rich.console import Console
    from rich.table import Table

    from textsafe_gym.cli.request import PRESETS
    from textsafe_gym.envs import ENVIRONMENTS

    found = [{"name": name, "kind": "environment", "about": _about(entry[0])} for name, entry in ENVIRONMENTS.items()]
    for path in sorted(PRESETS.glob("*.yaml")):
        found.append({"name": path.stem, "kind": "preset", "about": _comment(path.read_text(encoding="utf-8"))})
    if as_json:
        print_json(found)
        return
    table = Table("name", "kind", "what it is")
    for entry in found:
        table.add_row(entry["name"], entry["kind"], entry["about"])
    Console().print(table)


def _comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _about(entry_point: str) -> str:
    """First line of a class's docstring, read without importing its module."""
    import ast
    import importlib.util
    from pathlib import Path

    module, _, name = entry_point.partition(":")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ""
    for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""
