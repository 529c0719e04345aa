"""`textsafe compare`: algorithms x seeds, and the report on them."""

from pathlib import Path

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import (
    Seed,
    frontier_option,
    out_option,
    output_options,
    print_json,
    print_tables,
    run_options,
    samples_option,
    track_option,
)
from textsafe_gym.cli.terminal import is_quiet, say

_EXAMPLE = """\b
Examples:
  textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo
  textsafe compare ppo_lagrangian reward_shaping --seeds 3 --vary reward_shaping.cost_weight=0.5,1,2 --vary
    ppo_lagrangian.env.cost_limit=-1,0,1 --out runs/sweep
  textsafe compare ppo ppo_lagrangian --set ppo_lagrangian.multiplier_init=2 --out runs/lambda
  textsafe compare ppo_lagrangian my_package:MyAlgorithm --seeds 3 --out runs/mine
"""


@click.command(epilog=_EXAMPLE)
@click.argument("algorithms", metavar="ALGO...", nargs=-1, required=True, shell_complete=values.algorithms)
@run_options
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Runs of each.")
@click.option("--seed", type=Seed(), default=0, show_default=True, help="First seed.")
@click.option(
    "--vary",
    multiple=True,
    metavar="ALGO.KEY=V1,V2,...",
    shell_complete=values.variants,
    help="One setting of ALGO for each value; env.KEY too.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, metavar="W", help="Processes.")
@out_option("runs/compare")
@frontier_option
@samples_option
@click.option("--resume", is_flag=True, help="Keep the finished runs in --out, continue the others, add new ones.")
@track_option
@output_options
@click.pass_obj
def compare(
    command: str,
    algorithms: tuple[str, ...],
    env: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    preset: str | None,
    episodes: int | None,
    data: tuple[str, ...],
    seeds: int,
    seed: int,
    vary: tuple[str, ...],
    workers: int,
    out: Path | None,
    frontier: Path | None,
    samples: int | None,
    resume: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Trains every ALGO with every seed, from the same policy, and writes tables, figures and report.html.

    The untrained policy is evaluated next to them as "initial". Settings may be given for one algorithm alone
    (--set ALGO.KEY=VALUE). All runs that sample play the same number of episodes; a method that learns from
    what is there already (dpo) reads what --data names instead, and the table says how much.
    """
    from textsafe_gym.experiments import compare as run

    result = run(
        algorithms,
        env,
        config=config,
        settings=assignments,
        preset=preset,
        episodes=episodes,
        data=data,
        seeds=seeds,
        seed=seed,
        vary=vary,
        workers=workers,
        out=out or "runs/compare",
        frontier=frontier,
        samples=samples,
        resume=resume,
        track=track,
        quiet=is_quiet(),
        command=command,
    )
    if as_json:
        print_json(result.values)
        return
    print_tables(result.tables)
    say(f"Report: {result.directory / 'report.html'}")
