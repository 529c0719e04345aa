"""`textsafe evaluate`: plays a saved policy on the evaluation prompts."""

from pathlib import Path

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import (
    Seed,
    env_option,
    out_option,
    output_options,
    print_json,
    print_tables,
    samples_option,
    set_option,
)
from textsafe_gym.cli.terminal import is_quiet, say

_EXAMPLE = """\b
Examples:
  textsafe evaluate runs/demo/ppo/seed_0 --out runs/again
  textsafe evaluate runs/one --samples 8 --out runs/eight-answers
  textsafe evaluate runs/a my_model --set env.evaluation_prompts=prompts.txt --out runs/on-my-prompts
"""


@click.command(epilog=_EXAMPLE)
@click.argument("sources", metavar="RUN|MODEL...", nargs=-1, required=True, shell_complete=values.directories)
@env_option
@set_option
@click.option("--seed", type=Seed(), help="Of the episodes. [a run's own; 0 for a model]")
@samples_option
@out_option("runs/evaluate")
@output_options
def evaluate(
    sources: tuple[str, ...],
    env: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    samples: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Plays saved policies on the evaluation prompts; writes a directory each, with evaluation.jsonl and summary.json.

    RUN is the directory of a run, or one that a trainer's `save` wrote; MODEL a policy's directory or hub id. With
    --env or --set env.KEY=VALUE the prompts and judges are others than those of training.
    """
    from textsafe_gym.experiments import evaluate as play

    result = play(
        sources, env, settings=assignments, seed=seed, samples=samples, out=out or "runs/evaluate", quiet=is_quiet()
    )
    if as_json:
        print_json(result.values)
        return
    print_tables(result.tables)
    say(f"Episodes: {', '.join(str(run.directory / 'evaluation.jsonl') for run in result.runs)}")
