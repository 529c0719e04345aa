"""Algorithms x seeds, and the report on them: `compare`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.config import Settings, Values, dump, parse_assignments, parse_value, split_key
from textsafe_gym.console import is_live, progress_console
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import check_arguments, plain, repeated, settings_or_assignments
from textsafe_gym.experiments.result import Result
from textsafe_gym.experiments.spec import INITIAL, RunSpec, build_spec, config_class
from textsafe_gym.files import Row, write_json
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    from textsafe_gym.evaluation.summaries import Run

_SAMPLES = 4  # prompts whose responses the report shows


def compare(
    algorithms: Sequence[str],
    env: str | Path | Mapping[str, object] | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, object] | Sequence[str] | None = None,
    preset: str | None = None,
    episodes: int | None = None,
    data: Sequence[str | Path] = (),
    seeds: int = 3,
    seed: int = 0,
    vary: Mapping[str, Sequence[object]] | Sequence[str] = (),
    workers: int = 1,
    out: str | Path = "runs/compare",
    frontier: str | Path | None = None,
    samples: int | None = None,
    resume: bool = False,
    track: str | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Result:
    """Trains every algorithm with every seed, from the same policy, as `textsafe compare` does.

    The untrained policy is evaluated next to them as "initial". Writes comparison.json, figures and report.html.

    Args:
        algorithms: names of `algos.available()`.
        env: see `train`.
        config: see `train`.
        settings: see `train`; below an algorithm's name those for it alone. One that only some of the algorithms have
            applies to these, and a line says which have it not.
        preset: see `train`.
        episodes: responses to generate (or episodes to play) in all, for each run that samples.
        data: see `train`; for those of the algorithms that sample nothing.
        seeds: runs of each.
        seed: the first of them.
        vary: from "ALGORITHM.KEY" to the values that are compared, such as {"reward_shaping.cost_weight": [0.5, 1]}.
        workers: processes. With several, a script has to start them below `if __name__ == "__main__":`.
        out: an empty or new directory.
        frontier: the directory of a call of `frontier`, to show what is attainable; by default the embedded world's.
        samples: responses to each evaluation prompt; by default those of `config`, if that is of a run, else 1.
        resume: keep the finished runs in `out`, continue the others, add new ones.
        track: see `train`.
        quiet: show no progress.
        command: what the user typed, for the report and for messages; by default this call.

    Returns:
        Of all runs; its values are those of `comparison.json`.

    Raises:
        TextsafeError: the request is wrong; nothing was written.
        ExecutionError: some runs failed; the others are kept.
        RunInterrupted: by Ctrl-C; finished runs are kept.
    """
    from textsafe_gym.evaluation.report import left_out_note
    from textsafe_gym.evaluation.summaries import load_run, tables_of
    from textsafe_gym.experiments.data import data_note
    from textsafe_gym.experiments.directory import check_out, folder_of, make_directory
    from textsafe_gym.experiments.frontier import known_frontier
    from textsafe_gym.experiments.pool import finish_all, jobs_of
    from textsafe_gym.experiments.tracking import check_tracker

    needed = {"algorithms": algorithms, "data": data, "vary": vary, "workers": workers, "out": out}
    check_arguments(
        {**needed, "seeds": seeds, "seed": seed}, env=env, config=config, settings=settings, preset=preset,
        episodes=episodes, samples=samples, track=track,
    )  # fmt: skip
    check_tracker(track)
    algorithms = [algorithms] if isinstance(algorithms, str) else list(algorithms)
    call: Values = {"env": env, "config": config, "settings": settings, "preset": preset}
    call |= {"episodes": episodes, "data": data or None, "seeds": seeds, "seed": seed}
    repeat, again = repeated(
        command,
        "compare",
        algorithms,
        **call,
        vary=vary or None,
        workers=workers,
        out=out,
        frontier=frontier,
        samples=samples,
        track=track,
    )
    directory = Path(out)
    specs = _specs(
        algorithms,
        vary,
        env=env,
        config=None if config is None else str(config),
        assignments=settings_or_assignments(settings),
        preset=preset,
        episodes=episodes,
        data=data,
    )
    if samples is not None:
        specs = [replace(spec, evaluation_samples=samples) for spec in specs]
    check_out(directory, resume)
    known = known_frontier(frontier, [spec.as_dict() for spec in specs])
    jobs = jobs_of(specs, range(seed, seed + seeds), directory, folder_of, track)
    _check_all(specs, quiet)
    left_out = _left_out_of(specs)
    for note in (data_note(specs), f"note: {left_out_note(left_out)}" if left_out else ""):
        if note:
            progress_console(quiet).print(note, markup=False, highlight=False, soft_wrap=True)
    make_directory(directory)
    finish_all(jobs, workers, again, quiet)
    order = [spec.label for spec in specs]
    runs = sorted((load_run(job.directory) for job in jobs), key=lambda run: (order.index(run.label), run.seed))
    comparison, figures = _report(directory, runs, specs, repeat, known)
    return Result(
        directory, {"directory": str(directory), **comparison}, tables_of(comparison), partial(list, figures), runs
    )


def _specs(
    algorithms: Sequence[str],
    vary: Mapping[str, Sequence[object]] | Sequence[str],
    *,
    assignments: Settings | Sequence[str],
    **options: Any,
) -> list[RunSpec]:
    """The untrained policy and every variant of every algorithm, with seed 0."""
    import algos

    if not algorithms:
        raise ConfigError("no algorithm is given; name at least one to compare")
    for name in algorithms:
        config_class(name)
        if algorithms.count(name) > 1:
            raise ConfigError(f"'{name}' is given twice; use --vary for variants of one algorithm")
    variants = parse_vary(vary, algorithms)
    given = assignments if isinstance(assignments, Settings) else parse_assignments(assignments, algorithms)
    known = {*algos.available(), *algos.members()}
    for name in given.values:
        if name in known and name not in algorithms:
            raise ConfigError(f"--set {name}.KEY: '{name}' is not compared; {nearest(name, list(algorithms))}")
    options["assignments"] = given
    others = {*algos.available(), *algorithms}
    offline = {name: algos.definition(name).offline for name in algorithms}

    def spec_of(name: str, varied: Mapping[str, object] | None = None) -> RunSpec:
        own = dict(options)
        if len(set(offline.values())) > 1:  # each kind of method has its own of the two budgets
            own |= {"episodes": None} if offline[name] else {"data": ()}
        return build_spec(name, seed=0, varied=varied, compared=algorithms, others=sorted(others - {name}), **own)

    specs = [spec_of(name, varied) for name, own in variants.items() for varied in own]
    budgets = {spec.label: spec.config["episodes"] for spec in specs if not spec.data}
    if len(set(budgets.values())) > 1:
        listed = ", ".join(f"{label} {number}" for label, number in budgets.items())
        raise ConfigError(f"all algorithms must have the same budget; set --episodes (now: {listed})")
    # The untrained policy plays in the environment as given, without any variant's changes.
    plain = spec_of(next((name for name in algorithms if not offline[name]), algorithms[0]))
    kept = {name: plain.config.get(name) for name in ("seed", "cost_limit")}
    initial = replace(plain, algorithm=INITIAL, label=INITIAL, config=kept, data=[], left_out=())
    # Which draws an evaluation prompt gets depends on the batch, and runs of one seed share theirs.
    return [replace(spec, evaluation_batch=plain.num_envs) for spec in (initial, *specs)]


def parse_vary(
    arguments: Sequence[str] | Mapping[str, Sequence[object]], algorithms: Sequence[str]
) -> dict[str, list[Values]]:
    """The variants of each algorithm: all combinations of its `--vary` values, or one empty variant.

    Args:
        arguments: ALGO.KEY=V1,V2,...; or from ALGO.KEY to the values.
        algorithms: those that are compared.

    Raises:
        ConfigError: not of the form ALGO.KEY=V1,V2,..., or of an algorithm that is not compared.
    """
    axes: dict[str, dict[str, list[object]]] = {name: {} for name in algorithms}
    listed = arguments if isinstance(arguments, Mapping) else {}
    for argument in arguments:
        target, equals, text = (argument, "=", "listed") if listed else argument.partition("=")
        algorithm, *path = split_key(target, axes)
        key = ".".join(path)
        if not equals or not path or not all(path) or not text.strip():
            raise ConfigError(f"--vary {argument}: expected ALGO.KEY=V1,V2,...")
        if algorithm not in axes:
            raise ConfigError(f"--vary {argument}: '{algorithm}' is not compared; {nearest(algorithm, list(axes))}")
        if key in axes[algorithm]:
            raise ConfigError(f"--vary {argument}: '{target}' is varied twice")
        source = f"--vary {argument}"
        if listed:
            values = [plain(value, source) for value in listed[argument]]
        else:
            values = [parse_value(part, source) for part in text.split(",")]
        if any(value is None or isinstance(value, dict | list) for value in values):
            raise ConfigError(f"--vary {argument}: every value must be a number, a word, or true or false")
        if len(set(map(str, values))) < len(values):
            raise ConfigError(f"--vary {argument}: a value stands twice")
        axes[algorithm][key] = values
    return {
        name: [dict(zip(own, combination, strict=True)) for combination in product(*own.values())]
        for name, own in axes.items()
    }


def _left_out_of(specs: Sequence[RunSpec]) -> dict[str, list[str]]:
    """From each setting that was given for several algorithms to those of them that do not have it."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        for key in spec.left_out:
            found.setdefault(key, [])
            if spec.algorithm not in found[key]:
                found[key].append(spec.algorithm)
    return found


def _check_all(specs: Sequence[RunSpec], quiet: bool) -> None:
    from textsafe_gym.experiments.run import check

    played: set[str] = set()
    console = progress_console(quiet)
    with console.status("checking the request") if is_live(console) else nullcontext():
        for spec in specs:
            check(spec, played)


def _report(
    out: Path, runs: Sequence["Run"], specs: Sequence[RunSpec], command: str, frontier: Row | None
) -> tuple[Row, list[Path]]:
    """Writes comparison.json, the figures and the report; returns what the first holds, and the figures' paths."""
    from textsafe_gym.evaluation.figures import comparison_planes, learning_curves, without_curve
    from textsafe_gym.evaluation.report import UNITS, write_report
    from textsafe_gym.evaluation.summaries import budget_of, compare_runs, tables_of

    comparison = compare_runs(runs, frontier) | {"left_out": _left_out_of(specs)}
    write_json(out / "comparison.json", comparison)
    units = UNITS[comparison["task"]]
    curves = f"Training {units.prompts}; each point a mean of neighbouring iterations."
    if unsampled := without_curve(comparison):
        curves += f" Without a curve: {', '.join(unsampled)}, which samples no {units.episodes}."
    plane = f"Evaluation {units.prompts}; the front joins settings that no other beats."
    if frontier:
        plane += (
            " The grey line is what any policy could attain at each cost, with its 95 % interval over prompts; the "
            "squares are the best of n answers of the untrained policy, under the limit."
        )
    shown = [
        *(("Learning curves", curves, path) for path in learning_curves(runs, comparison, out / "learning_curves.png")),
        *(
            (f"Reward against {f'the cost {name}' if name else 'cost'}", plane, path)
            for name, path in comparison_planes(runs, comparison, out / "pareto.png").items()
        ),
    ]
    first = [run for run in runs if run.seed == runs[0].seed]
    picked = _spread(first[0].rows)
    samples = [run.rows[i] for i in picked for run in first if "response" in run.rows[i]]
    seeds = len({run.seed for run in runs})
    write_report(
        out / "report.html",
        title="Comparison: " + ", ".join(dict.fromkeys(spec.algorithm for spec in specs[1:])),
        subtitle=f"{specs[0].env['id']}, {budget_of(comparison)} a run, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{len(first[0].rows)} evaluation {units.episodes} a run.",
        tables=tables_of(comparison),
        figures=shown,
        samples=samples,
        command=command,
        settings=dump({spec.label: {"env": spec.env, "policy": spec.policy, "config": spec.config} for spec in specs}),
    )
    return comparison, [path for *_, path in shown]


def _spread(rows: Sequence[Row]) -> list[int]:
    """Indices of the first row of each group of prompts in turn, `_SAMPLES` in all."""
    by_group: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_group.setdefault(row.get("group", ""), []).append(i)
    rounds = zip(*(own[:_SAMPLES] for own in by_group.values()), strict=False)
    return [i for own in rounds for i in own][: max(_SAMPLES, len(by_group))]
