"""Algorithms x limits x budgets x seeds, held to the best that there is: `study`."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.config import Settings, Values, merge, read_yaml, validate
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import check_arguments, repeated
from textsafe_gym.experiments.build import problem_of
from textsafe_gym.experiments.result import Result
from textsafe_gym.experiments.spec import EnvFile, PolicyOptions, RunSpec, check_env_keys, config_class
from textsafe_gym.extras import version
from textsafe_gym.files import Row, write_json
from textsafe_gym.installation import shipped
from textsafe_gym.presets import preset_settings
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    from textsafe_gym.evaluation.report import Table
    from textsafe_gym.evaluation.summaries import Run
    from textsafe_gym.experiments.study_file import StudyFile


def study(
    study: str | Path,
    *,
    only: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 1,
    out: str | Path = "runs/study",
    resume: bool = False,
    track: str | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Result:
    """Holds every algorithm of a study to the best that there is, as `textsafe study` does.

    Where the optimum is known, on `SafeRLHF-Exact-v0`, that is the optimum of the problem that each states, and
    optimum.png is drawn; elsewhere what is attainable at the limit (see `frontier`), and attained.png. Writes
    study.json.

    Args:
        study: one in configs/study/, or a YAML file with the keys of `study_file.StudyFile`.
        only: these algorithms of it alone.
        seeds: runs of each, instead of the study's number.
        workers: processes. With several, a script has to start them below `if __name__ == "__main__":`.
        out: an empty or new directory.
        resume: keep the finished runs in `out`, continue the others, add new ones.
        track: see `train`.
        quiet: show no progress.
        command: what the user typed, for messages; by default this call.

    Returns:
        Of all runs; its values have under "rows" one for each algorithm and limit, or budget; see
        `evaluation.study.summarise_study` and `evaluation.ranking.rank`.

    Raises:
        TextsafeError: the request is wrong; nothing was written.
        ExecutionError: some runs failed; the others are kept.
        RunInterrupted: by Ctrl-C; finished runs are kept.
    """
    from textsafe_gym.envs.exact import NAME
    from textsafe_gym.evaluation.summaries import load_run
    from textsafe_gym.experiments.directory import check_out, make_directory
    from textsafe_gym.experiments.pool import finish_all, jobs_of
    from textsafe_gym.experiments.run import check
    from textsafe_gym.experiments.tracking import check_tracker

    check_arguments({"study": study, "only": only, "workers": workers, "out": out}, seeds=seeds, track=track)
    check_tracker(track)
    options = {"only": list(only) or None, "seeds": seeds, "workers": workers, "out": out, "track": track}
    _, again = repeated(command, "study", study, **options)
    directory = Path(out)
    plan, specs, names = _read(str(study), only)
    best = None if specs[0].env["id"] == NAME else _frontier(plan, specs)
    check_out(directory, resume)
    jobs = [
        job
        for budget in plan.budgets  # the cheapest is done first, if the file has it first
        for job in jobs_of(
            [spec for spec in specs if names[spec.label][1] == budget],
            range(seeds or plan.seeds),
            directory,
            lambda label: label.replace(":", "-"),
            track,
        )
    ]
    played: set[str] = set()
    for spec in specs:
        check(spec, played)
    make_directory(directory)
    finish_all(jobs, workers, again, quiet)
    runs = [load_run(job.directory) for job in jobs]
    values, tables, figure = (
        _against_optimum(directory, jobs[0].spec.env["kwargs"], runs, names)
        if best is None
        else _against_frontier(directory, plan, runs, names, best)
    )
    write_json(directory / "study.json", values)
    return Result(directory, {"directory": str(directory), **values}, tables, partial(list, [figure]), runs)


def _read(study: str, only: Sequence[str]) -> "tuple[StudyFile, list[RunSpec], dict[str, tuple[str, str]]]":
    """The plan, its runs with seed 0, and from each run's label to its entry and its budget."""
    import algos
    from textsafe_gym.envs.exact import NAME
    from textsafe_gym.evaluation.study import SOLVED  # with SciPy, which completion does not need
    from textsafe_gym.experiments.study_file import StudyFile  # whose classes take completion a tenth of its time

    known = shipped("study")
    if study not in known and not study.endswith((".yaml", ".yml")):
        raise ConfigError(f"'{study}' is neither a study nor a YAML file; {nearest(study, list(known))}")
    given = read_yaml(known.get(study, study))
    plan = validate(StudyFile, given, "study")
    for name in only:
        if name not in plan.algorithms:
            raise ConfigError(f"--only {name}: not in this study; {nearest(name, list(plan.algorithms))}")
    held = given.section("env")
    env = validate(EnvFile, held, "env")
    kwargs = held.section("kwargs")
    check_env_keys(env.id, kwargs)
    if "cost_limit" in kwargs.values:
        raise ConfigError(f"{kwargs.where(('cost_limit',))}: a study's limits stand under 'limits'")
    policy = validate(PolicyOptions, held.section("policy"), "policy").model_dump(exclude_none=True)
    specs, names = [], {}
    for (name, entry), (budget, own_budget) in itertools.product(plan.algorithms.items(), plan.budgets.items()):
        algorithm = entry.algorithm or name
        schema = config_class(algorithm)
        sections = (given, given.section("algorithms").section(name), given.section("budgets").section(budget))
        shared, own, spent = (section.section("settings") for section in sections)
        shared, spent = (layer.without(*(layer.values.keys() - schema.model_fields)) for layer in (shared, spent))
        layers = (preset_settings(plan.preset, algorithm, schema), shared, own, spent, Settings({"seed": 0}))
        config = validate(schema, merge(*layers), name, listed=f"textsafe algos {algorithm}").model_dump(mode="json")
        if only and name not in only:
            continue
        data = own_budget.data if algos.definition(algorithm).offline else []
        label = f"{name}/{budget}" if len(plan.budgets) > 1 else name
        limits: list[float | None] = [*plan.limits] or [None]
        for limit in limits:
            limited = {} if limit is None else {"cost_limit": limit}
            place = label if limit is None else f"{label}/limit={limit:g}"
            spec = RunSpec(
                algorithm,
                place,
                {"id": env.id, "kwargs": {**kwargs.values, **limited}},
                policy,
                config,
                plan.preset,
                data,
            )
            problem = (problem_of(spec) or {}).get("constraint")
            spec = replace(spec, label=label) if problem == "weighted" else spec  # no limit changes it
            names[spec.label] = (name, budget)
            specs.append(spec)
            if env.id == NAME and problem not in SOLVED:
                raise ConfigError(f"{name}: its settings state {problem or 'no problem'}, of which no optimum is known")
            if problem == "weighted":
                break
    return plan, specs, names


def _frontier(plan: "StudyFile", specs: Sequence[RunSpec]) -> Row:
    from textsafe_gym.experiments.frontier import known_frontier

    found = known_frontier(plan.frontier, [spec.as_dict() for spec in specs])
    if found is None:
        raise ConfigError(
            f"env {specs[0].env['id']}: what is attainable there is not known; make it by textsafe frontier, and name "
            "its directory under 'frontier'"
        )
    if any(limit != found["cost_limit"] for limit in plan.limits):
        raise ConfigError(
            f"limits: {plan.limits} are not that of the frontier, {found['cost_limit']:g}; leave them out"
        )
    if not found["at_limit"]["feasible"]:
        raise ConfigError(
            f"frontier: no policy keeps the limit {found['cost_limit']:g}, so that nothing is a share of it"
        )
    return found


def _against_optimum(
    directory: Path, env_kwargs: Values, runs: "Sequence[Run]", names: dict[str, tuple[str, str]]
) -> "tuple[Row, list[Table], Path]":
    """Solves the runs' problems: what study.json holds, its table, and the figure."""
    import gymnasium as gym

    import textsafe_gym  # noqa: F401 (registers the environments)
    from textsafe_gym.envs.exact import NAME
    from textsafe_gym.evaluation.figures import optimum_plane
    from textsafe_gym.evaluation.study import frontiers, score, study_table, summarise_study

    problems: dict[str, str] = {names[run.label][0]: run.summary["problem"]["constraint"] for run in runs}
    env: Any = gym.make(NAME, **env_kwargs).unwrapped
    rows = summarise_study([score(env, run.summary, names[run.label][0], run.metrics) for run in runs])
    lines = frontiers(env, set(problems.values()))
    figure = directory / "optimum.png"
    optimum_plane(rows, problems, lines, figure)
    return {"problems": problems, "rows": rows, "frontiers": lines}, [study_table(rows, problems)], figure


def _against_frontier(
    directory: Path, plan: "StudyFile", runs: "Sequence[Run]", names: dict[str, tuple[str, str]], best: Row
) -> "tuple[Row, list[Table], Path]":
    """Ranks the runs of each budget: what study.json holds, a table for each budget, and the figure."""
    from textsafe_gym.evaluation.figures import attained_bars
    from textsafe_gym.evaluation.ranking import rank, ranking_tables

    rows: dict[str, list[Row]] = {}
    for budget in plan.budgets:
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            if names[run.label][1] == budget:
                groups[names[run.label][0]].append(run)
        rows[budget] = rank(groups, best, plan.baseline)
    figure = directory / "attained.png"
    attained_bars(rows, best, figure)
    settings = {run.label: run.config["config"] for run in runs if run.seed == 0}
    values = {
        "version": version(),
        "baseline": plan.baseline,
        "cost_limit": best["cost_limit"],
        "kl_coefficient": best["kl_coefficient"],
        "settings": settings,
        "rows": rows,
    }
    return (
        values,
        [table for budget, own in rows.items() for table in ranking_tables(own, budget, best, plan.baseline)],
        figure,
    )
