"""`textsafe frontier`: what is attainable, before any training."""

from pathlib import Path
from typing import Any

import click

from textsafe_gym.cli.options import Seed, env_option, out_option, output_options, print_json, print_tables, set_option
from textsafe_gym.cli.terminal import is_quiet, say

_EXAMPLE = """\b
Examples:
  textsafe frontier --samples 128 --out runs/frontier
  textsafe frontier --samples 512 --out runs/frontier --resume
  textsafe frontier --env my_task.yaml --beta 0.05 --beta 0.2 --cost-limit -1
  textsafe frontier --constraint cvar --cvar-level 0.9 --cost-limit 2
"""


@click.command(epilog=_EXAMPLE)
@env_option
@set_option
@click.option("--samples", type=int, default=256, show_default=True, metavar="N", help="Responses to each prompt.")
@click.option(
    "--beta",
    type=float,
    multiple=True,
    metavar="X",
    help="Weight of the KL. Repeatable. [the environment's or 0.05]",
)
@click.option(
    "--cost-limit",
    "limits",
    multiple=True,
    metavar="X",
    help="On what is bounded, or NAME=X on the mean of one cost. Repeatable. [the environment's]",
)
@click.option(
    "--constraint",
    type=click.Choice(["mean", "kl_in_cost", "per_prompt", "probability", "cvar"]),
    default="mean",
    show_default=True,
    help="What the limit bounds.",
)
@click.option("--cvar-level", type=float, default=0.9, show_default=True, help="Of cvar.")
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Of the responses.")
@out_option("runs/frontier")
@click.option("--resume", is_flag=True, help="Go on with the directory, or add samples to it.")
@output_options
def frontier(
    env: str | None,
    assignments: tuple[str, ...],
    samples: int,
    beta: tuple[float, ...],
    limits: tuple[str, ...],
    constraint: Any,
    cvar_level: float,
    seed: int,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """What any policy could attain at the cost limit, estimated from samples of the untrained one.

    The optimum of reward - β·KL under the limit, the front from no limit down to the least cost, and the best of n
    samples; writes frontier.json and frontier.png.
    """
    from textsafe_gym.experiments import frontier as estimate

    result = estimate(
        env, settings=assignments, samples=samples, beta=beta or None, cost_limit=_cost_limit(limits),
        constraint=constraint, cvar_level=cvar_level, seed=seed, out=out or "runs/frontier", resume=resume,
        quiet=is_quiet(),
    )  # fmt: skip
    figure = result.figures[0]
    if as_json:
        print_json(result.values)
        return
    print_tables(result.tables)
    say(f"Figure: {figure}")


def _cost_limit(given: tuple[str, ...]) -> float | dict[str, float] | None:
    """One number, or numbers by name."""
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise click.BadParameter(
                f"'{text}': expected a number, or NAME=NUMBER", param_hint="--cost-limit"
            ) from None
        if name in found:
            raise click.BadParameter(f"'{text}': given twice", param_hint="--cost-limit")
        found[name] = value
    if "" in found and len(found) > 1:
        raise click.BadParameter("one number, or names with numbers", param_hint="--cost-limit")
    return found.get("", found or None)
