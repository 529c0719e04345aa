"""`textsafe evaluate`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import Seed, env_option, out_option, output_options, print_json, print_tables, set_option
from textsafe_gym.cli.terminal import is_live, progress, say

_EXAMPLE = """\b
Examples:
  textsafe evaluate runs/demo/ppo/seed_0 --out runs/again
  textsafe evaluate runs/a my_model --set env.evaluation_prompts=prompts.txt --out runs/on-my-prompts
"""


@click.command(epilog=_EXAMPLE)
@click.argument("sources", metavar="RUN|MODEL...", nargs=-1, required=True, shell_complete=values.directories)
@env_option
@set_option
@click.option("--seed", type=Seed(), help="Of the responses. [a run's own; 0 for a model]")
@out_option("runs/evaluate")
@output_options
def evaluate(
    sources: tuple[str, ...],
    env: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Plays saved policies on the evaluation prompts; writes a directory each, with evaluation.jsonl and summary.json.

    RUN is the directory of a run; MODEL a policy's directory or hub id. With --env or --set env.KEY=VALUE the prompts
    and judges are others than those of training.
    """
    from rich.progress import Progress

    from textsafe_gym.config import dump
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.evaluation.play import evaluate_policy
    from textsafe_gym.evaluation.records import summarise
    from textsafe_gym.evaluation.summaries import compare_runs, load_runs, tables_of
    from textsafe_gym.experiments.run import check_out, cost_limit_of, make_directory
    from textsafe_gym.experiments.saved import MODEL, open_saved, saved_spec
    from textsafe_gym.experiments.spec import folder_of
    from textsafe_gym.files import write_json, write_rows, write_text

    out = out or Path("runs/evaluate")
    check_out(out, resume=None)
    specs = [saved_spec(source, env, assignments) for source in sources]
    if seed is not None:
        specs = [spec.with_seed(seed) for spec in specs]
    names = [folder_of(f"{spec.label}-{spec.seed}") for spec in specs]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(
                f"'{sources[names.index(name)]}' and '{sources[i]}' are both '{name}'; evaluate them apart"
            )
    # All are opened and played before anything is written.
    results = []
    console = progress()
    with Progress(console=console, transient=True, disable=not is_live(console)) as bars:
        for source, spec in zip(sources, specs, strict=True):
            task = bars.add_task(spec.label.replace("[", r"\["), total=None)
            vector, policy = open_saved(source, spec)
            identity = {"algorithm": spec.algorithm, "label": spec.label, "seed": spec.seed}
            rows = evaluate_policy(
                policy,
                vector,
                spec.seed,
                identity,
                _shown_on(bars, task),
            )
            if spec.algorithm == MODEL:
                rows = [{name: value for name, value in row.items() if name != "kl"} for row in rows]
            limit = cost_limit_of(spec, vector)
            results.append((spec, rows, {**identity, "cost_limit": limit, "evaluation": summarise(rows, limit)}))
            vector.close()
    directories = []
    for name, source, (spec, rows, summary) in zip(names, sources, results, strict=True):
        directory = out / name
        make_directory(directory)
        write_text(directory / "config.yaml", dump({**replace(spec).as_dict(), "source": source}))
        write_rows(directory / "evaluation.jsonl", rows)
        write_json(directory / "summary.json", summary)
        directories.append(directory)
    comparison = compare_runs(load_runs(directories))
    if as_json:
        print_json({"directory": str(out), **comparison})
        return
    print_tables(tables_of(comparison))
    say(f"Responses: {', '.join(str(directory / 'evaluation.jsonl') for directory in directories)}")


def _shown_on(bars: Any, task: Any) -> Callable[[int, int], None]:
    return lambda done, total: bars.update(task, completed=done, total=total)
