"""`textsafe compare`: algorithms x seeds, and the report on them."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import (
    Seed,
    data_option,
    out_option,
    output_options,
    print_json,
    print_tables,
    run_options,
    track_option,
)
from textsafe_gym.cli.terminal import is_live, progress, say

if TYPE_CHECKING:
    from textsafe_gym.experiments.spec import RunSpec

_EXAMPLE = """\b
Examples:
  textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo
  textsafe compare ppo_lagrangian reward_shaping --seeds 3 --vary reward_shaping.cost_weight=0.5,1,2 --vary
    ppo_lagrangian.env.cost_limit=-1,0,1 --out runs/sweep
  textsafe compare ppo ppo_lagrangian --set ppo_lagrangian.multiplier_init=2 --out runs/lambda
  textsafe compare ppo_lagrangian omnisafe:PPOLag omnisafe:CPO --seeds 3 --out runs/omnisafe
"""
_SAMPLES = 4  # prompts whose responses the report shows


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
@data_option
@out_option("runs/compare")
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
    episodes: int | None,
    seeds: int,
    seed: int,
    vary: tuple[str, ...],
    workers: int,
    data: tuple[str, ...],
    out: Path | None,
    resume: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Trains every ALGO with every seed, from the same policy, and writes tables, figures and report.html.

    The untrained policy is evaluated beside them as "initial". Settings may be given for one algorithm alone
    (--set ALGO.KEY=VALUE). All runs that sample generate the same number of responses; methods that learn from labelled
    pairs (dpo) read those of --data instead, and the tables say how many.
    """
    from textsafe_gym.experiments.pool import Job, finish_all
    from textsafe_gym.experiments.run import check_out, make_directory, same_request
    from textsafe_gym.experiments.spec import folder_of
    from textsafe_gym.experiments.tracking import Track

    out = out or Path("runs/compare")
    specs = _specs(algorithms, vary, env=env, config=config, assignments=assignments, episodes=episodes, data=data)
    check_out(out, resume)
    tracked = Track(track, out.resolve().name)
    jobs = [
        Job(spec.with_seed(number), out / folder_of(spec.label) / f"seed_{number}", tracked)
        for number in range(seed, seed + seeds)
        for spec in specs
    ]
    for job in jobs:
        if (job.directory / "config.yaml").exists():
            same_request(job.spec, job.directory)
    _check_all(specs)
    make_directory(out)
    finish_all(jobs, workers, command)
    comparison = _report(out, [job.directory for job in jobs], specs, command)
    if as_json:
        print_json({"directory": str(out), **comparison})
        return
    from textsafe_gym.evaluation.summaries import tables_of

    print_tables(tables_of(comparison))
    say(f"Report: {out / 'report.html'}")


def _specs(algorithms: Sequence[str], vary: Sequence[str], **options: Any) -> "list[RunSpec]":
    """The untrained policy and every variant of every algorithm, with seed 0."""
    from dataclasses import replace

    from textsafe_gym.errors import ConfigError
    from textsafe_gym.experiments.spec import INITIAL, build_spec, config_class, parse_vary

    for name in algorithms:
        config_class(name)
        if algorithms.count(name) > 1:
            raise ConfigError(f"'{name}' is given twice; use --vary for variants of one algorithm")
    variants = parse_vary(vary, algorithms)
    import algos
    from textsafe_gym.config import parse_assignments
    from textsafe_gym.registry import nearest

    for name in parse_assignments(options["assignments"]).values:
        if name in values.algorithm_names() and name not in algorithms:
            raise ConfigError(f"--set {name}.KEY: '{name}' is not compared; {nearest(name, list(algorithms))}")

    others = {*algos.available(), *algorithms}
    of_one_kind = len({algos.source_of(name) for name in algorithms}) == 1

    def spec_of(name: str, varied: dict[str, Any] | None = None) -> "RunSpec":
        # Of a mixed comparison's two budgets each kind of method takes its own.
        other = () if of_one_kind else ("episodes",) if algos.source_of(name) == "preferences" else ("data",)
        own = {key: value for key, value in options.items() if key not in other}
        return build_spec(name, seed=0, varied=varied, others=sorted(others - {name}), **{"episodes": None, **own})

    specs = [spec_of(name, varied) for name, own in variants.items() for varied in own]
    budgets = {spec.label: spec.config["episodes"] for spec in specs if not spec.data}
    if len(set(budgets.values())) > 1:
        given = ", ".join(f"{label} {number}" for label, number in budgets.items())
        raise ConfigError(f"all algorithms must generate the same number of responses; set --episodes (now: {given})")
    # The untrained policy plays in the environment as given, without any variant's changes.
    plain = spec_of(algorithms[0])
    kept = ("seed", "episodes_per_iteration", "cost_limit")
    config = {name: plain.config.get(name) for name in kept}
    initial = replace(plain, algorithm=INITIAL, label=INITIAL, config=config, data=[])
    return [initial, *specs]


def _check_all(specs: "Sequence[RunSpec]") -> None:
    from textsafe_gym.experiments.run import check

    played: set[str] = set()
    console = progress()
    with console.status("checking the request") if is_live(console) else nullcontext():
        for spec in specs:
            check(spec, played)


def _report(out: Path, directories: Sequence[Path], specs: "Sequence[RunSpec]", command: str) -> dict[str, Any]:
    """Reads the runs and writes comparison.json, the figures and the report."""
    from textsafe_gym.config import dump
    from textsafe_gym.evaluation.figures import learning_curves, reward_cost_plane
    from textsafe_gym.evaluation.files import write_json
    from textsafe_gym.evaluation.report import write_report
    from textsafe_gym.evaluation.summaries import budget_of, compare_runs, load_run, points_of, tables_of

    order = [spec.label for spec in specs]
    runs = sorted(
        (load_run(directory) for directory in directories), key=lambda run: (order.index(run.label), run.seed)
    )
    comparison = compare_runs(runs)
    write_json(out / "comparison.json", comparison)
    curves = {label: [run.metrics for run in runs if run.label == label] for label in order[1:]}
    labels = {label: comparison["settings"][label]["algorithm"] for label in order}
    limit = comparison["pareto"]["cost_limit"]
    learning_curves(curves, labels, limit, out / "learning_curves.png")
    points = [{"label": p.label, "reward": p.reward, "cost": p.cost} for p in points_of(runs)]
    reward_cost_plane(comparison["pareto"]["points"], points, limit, out / "pareto.png")
    first = [run for run in runs if run.seed == runs[0].seed]
    picked = _spread(first[0].rows)
    samples = [run.rows[i] for i in picked for run in first if "response" in run.rows[i]]
    seeds = len({run.seed for run in runs})
    write_report(
        out / "report.html",
        title="Comparison: " + ", ".join(dict.fromkeys(spec.algorithm for spec in specs[1:])),
        subtitle=f"{specs[0].env['id']}, {budget_of(comparison)} a run, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{len(first[0].rows)} evaluation responses a run.",
        tables=tables_of(comparison),
        figures=[
            (
                "Learning curves",
                "Training prompts; each point a mean of neighbouring iterations.",
                out / "learning_curves.png",
            ),
            (
                "Reward against cost",
                "Evaluation prompts; the front joins settings that no other beats.",
                out / "pareto.png",
            ),
        ],
        samples=samples,
        command=command.replace(" --resume", ""),
        settings=dump({spec.label: {"env": spec.env, "policy": spec.policy, "config": spec.config} for spec in specs}),
    )
    return comparison


def _spread(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Indices of the first row of each group of prompts in turn, `_SAMPLES` in all."""
    by_group: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_group.setdefault(row.get("group", ""), []).append(i)
    rounds = zip(*(own[:_SAMPLES] for own in by_group.values()), strict=False)
    return [i for own in rounds for i in own][: max(_SAMPLES, len(by_group))]
