"""`textsafe envs`: which environments there are, and the arguments of one."""

import click

from textsafe_gym.cli.options import json_option, print_json
from textsafe_gym.cli.terminal import output

_EXAMPLE = """\b
Example:
  textsafe envs
  textsafe train ppo --env SafeRLHF-v0 --set env.cost_limit=-1
"""


@click.command(epilog=_EXAMPLE)
@json_option
def envs(as_json: bool) -> None:
    """Lists the environments, and the shipped configurations that --env takes as well.

    Any other Gymnasium environment that reports info["cost"] works too: --env ID or --env MODULE:ID.
    """
    from rich.table import Table

    from textsafe_gym.envs import ENVIRONMENTS
    from textsafe_gym.installation import first_comment, shipped

    found = [{"name": name, "kind": "environment", "about": ENVIRONMENTS.about(name)} for name in ENVIRONMENTS]
    found += [
        {"name": name, "kind": "configuration", "about": first_comment(path)} for name, path in shipped("env").items()
    ]
    if as_json:
        print_json(found)
        return
    table = Table("name", "kind", "what it is")
    for entry in found:
        table.add_row(entry["name"], entry["kind"], entry["about"])
    output(quiet=False).print(table)
