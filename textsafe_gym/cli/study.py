"""`textsafe study`: algorithms x limits x budgets x seeds, held to the best that there is."""

from pathlib import Path

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import out_option, output_options, print_json, print_tables, track_option
from textsafe_gym.cli.terminal import is_quiet, say

_EXAMPLE = """\b
Examples:
  textsafe study exact --workers 2 --out runs/study
  textsafe study world --workers 2 --out runs/world
  textsafe study exact --only cpo --only ppo_lagrangian --seeds 2 --out runs/two
  textsafe study my_study.yaml --resume --out runs/mine
"""


@click.command(epilog=_EXAMPLE)
@click.argument("study", metavar="STUDY|FILE", shell_complete=values.studies)
@click.option(
    "--only",
    multiple=True,
    metavar="ALGO",
    shell_complete=values.algorithms,
    help="This algorithm of the study's alone. Repeatable.",
)
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Runs of each, instead of the study's number.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, metavar="W", help="Processes.")
@out_option("runs/study")
@click.option("--resume", is_flag=True, help="Keep the finished runs in --out, continue the others, add new ones.")
@track_option
@output_options
@click.pass_obj
def study(
    command: str,
    study: str,
    only: tuple[str, ...],
    seeds: int | None,
    workers: int,
    out: Path | None,
    resume: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Holds every algorithm of STUDY to the best that there is.

    On SafeRLHF-Exact-v0 that is the exact optimum of the problem that each states; elsewhere what is attainable at the
    limit, as `textsafe frontier` finds it and the embedded world ships it. STUDY is one in configs/study/ or a YAML
    file with env, seeds, budgets, algorithms and, where needed, limits, settings, preset, baseline and frontier.
    Writes study.json and a figure.
    """
    from textsafe_gym.experiments import study as run

    result = run(
        study,
        only=only,
        seeds=seeds,
        workers=workers,
        out=out or "runs/study",
        resume=resume,
        track=track,
        quiet=is_quiet(),
        command=command,
    )
    if as_json:
        print_json(result.values)
        return
    print_tables(result.tables)
    say(f"Figure: {result.figures[0]}")
