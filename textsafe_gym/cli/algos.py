"""`textsafe algos`: which algorithms there are, and the settings of one."""

import click
from pydantic import BaseModel

from textsafe_gym.cli import values
from textsafe_gym.cli.options import json_option, preset_option, print_json
from textsafe_gym.cli.terminal import output
from textsafe_gym.files import Row
from textsafe_gym.presets import section_of

_EXAMPLE = """\b
Examples:
  textsafe algos
  textsafe algos ppo_lagrangian
  textsafe algos ppo_lagrangian --preset paper
  textsafe algos my_package:MyAlgorithm
"""


@click.command(epilog=_EXAMPLE)
@click.argument("algorithm", metavar="[ALGO]", required=False, shell_complete=values.algorithms)
@preset_option
@json_option
def algos(algorithm: str | None, preset: str | None, as_json: bool) -> None:
    """Lists the algorithms, or the settings of ALGO that --set reaches, with their values under a preset."""
    from rich.markup import escape
    from rich.table import Table

    if algorithm is None:
        found = values.algorithm_names()
        if as_json:
            print_json([{"name": name, "about": about} for name, about in found.items()])
            return
        table = Table("name", "what it does")
        for name, about in found.items():
            table.add_row(name, escape(about))
        output(quiet=False).print(table)
        return
    from textsafe_gym.config import validate
    from textsafe_gym.experiments.spec import config_class, preset_for
    from textsafe_gym.presets import SMALL

    schema = config_class(algorithm)
    resolved = validate(schema, preset_for(algorithm, preset or SMALL), algorithm).model_dump(mode="json")
    settings = _listed(schema, resolved)
    if as_json:
        print_json(settings)
        return
    table = Table("key", "value", "what it does")
    for entry in settings:
        table.add_row(entry["key"], escape(str(entry["value"])), escape(entry["about"]))
    output(quiet=False).print(table)


def _listed(schema: type[BaseModel], values: Row, prefix: str = "") -> list[Row]:
    """Key, value and meaning of each setting; those of a section by their path."""
    found = []
    for name, field in schema.model_fields.items():
        section = section_of(schema, name)
        if section is not None:
            found += _listed(section, values[name], f"{prefix}{name}.")
        else:
            found.append({"key": f"{prefix}{name}", "value": values[name], "about": field.description or ""})
    return found
