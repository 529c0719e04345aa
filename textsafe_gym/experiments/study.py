"""Algorithms x limits x seeds on an environment whose optimum is known: `study`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.config import Settings, Values, merge, read_yaml, validate
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import check_arguments, repeated
from textsafe_gym.experiments.build import problem_of
from textsafe_gym.experiments.result import Result
from textsafe_gym.experiments.spec import DEFAULT_DATA, RunSpec, config_class
from textsafe_gym.files import Row, write_json
from textsafe_gym.installation import shipped
from textsafe_gym.presets import SMALL, preset_settings
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    from textsafe_gym.evaluation.summaries import Run


class Entry(BaseModel):
    """One algorithm of a study."""

    model_config = ConfigDict(extra="forbid")

    settings: Values = Field(default_factory=dict, description="of this algorithm, over those of all")


class StudyFile(BaseModel):
    """What a study's YAML file holds."""

    model_config = ConfigDict(extra="forbid")

    env: Values = Field(description="keyword arguments of SafeRLHF-Exact-v0, but for cost_limit")
    preset: str = Field(SMALL, description="settings that all begin with")
    seeds: int = Field(gt=0, description="runs of each algorithm at each limit")
    limits: list[float] = Field(min_length=1, description="cost limits")
    settings: Values = Field(description="of every algorithm that has them, over the preset's")
    data: list[str] = Field(
        default_factory=lambda: [DEFAULT_DATA], description="as --data, of the algorithms that sample nothing"
    )
    algorithms: dict[str, Entry] = Field(min_length=1, description="by name")


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
    """Holds every algorithm of a study to the exact optimum of the problem that it states, as `textsafe study` does.

    Writes study.json and optimum.png.

    Args:
        study: one in configs/study/, or a YAML file with the keys of `StudyFile`.
        only: these algorithms of it alone.
        seeds: runs of each, instead of the study's number.
        workers: processes. With several, a script has to start them below `if __name__ == "__main__":`.
        out: an empty or new directory.
        resume: keep the finished runs in `out`, continue the others, add new ones.
        track: see `train`.
        quiet: show no progress.
        command: what the user typed, for messages; by default this call.

    Returns:
        Of all runs; its values have under "rows" one for each algorithm and limit.

    Raises:
        TextsafeError: the request is wrong; nothing was written.
        ExecutionError: some runs failed; the others are kept.
        RunInterrupted: by Ctrl-C; finished runs are kept.
    """
    from textsafe_gym.evaluation.study import study_table
    from textsafe_gym.evaluation.summaries import Run, load_run
    from textsafe_gym.experiments.directory import check_out, make_directory
    from textsafe_gym.experiments.pool import finish_all, jobs_of
    from textsafe_gym.experiments.run import check
    from textsafe_gym.experiments.tracking import check_tracker

    check_arguments({"study": study, "only": only, "workers": workers, "out": out}, seeds=seeds, track=track)
    check_tracker(track)
    options = {"only": list(only) or None, "seeds": seeds, "workers": workers, "out": out, "track": track}
    _, again = repeated(command, "study", study, **options)
    directory = Path(out)
    plan, specs = _read(str(study), only)
    check_out(directory, resume)
    jobs = jobs_of(specs, range(seeds or plan.seeds), directory, lambda label: label.replace(":", "-"), track)
    played: set[str] = set()
    for spec in specs:
        check(spec, played)
    make_directory(directory)
    finish_all(jobs, workers, again, quiet)
    runs: list[Run] = [load_run(job.directory) for job in jobs]
    problems: dict[str, str] = {run.algorithm: run.summary["problem"]["constraint"] for run in runs}
    figure = directory / "optimum.png"
    rows = _measure(directory, jobs[0].spec.env["kwargs"], runs, problems, figure)
    values = {"directory": str(directory), "rows": rows}
    return Result(directory, values, [study_table(rows, problems)], partial(list, [figure]), runs)


def _read(study: str, only: Sequence[str]) -> tuple[StudyFile, list[RunSpec]]:
    """The plan, and its runs with seed 0."""
    import algos
    from textsafe_gym.evaluation.study import SOLVED  # with SciPy, which completion does not need

    known = shipped("study")
    if study not in known and not study.endswith((".yaml", ".yml")):
        raise ConfigError(f"'{study}' is neither a study nor a YAML file; {nearest(study, list(known))}")
    given = read_yaml(known.get(study, study))
    plan = validate(StudyFile, given, "study")
    if "cost_limit" in plan.env:
        raise ConfigError(f"{given.where(('env', 'cost_limit'))}: a study's limits stand under 'limits'")
    for name in only:
        if name not in plan.algorithms:
            raise ConfigError(f"--only {name}: not in this study; {nearest(name, list(plan.algorithms))}")
    specs = []
    for name in plan.algorithms:
        schema = config_class(name)
        shared = given.section("settings")
        shared = shared.without(*(key for key in shared.values if key not in schema.model_fields))
        own = given.section("algorithms").section(name).section("settings")
        layers = (preset_settings(plan.preset, name, schema), shared, own, Settings({"seed": 0}))
        config = validate(schema, merge(*layers), name, listed=f"textsafe algos {name}").model_dump(mode="json")
        if only and name not in only:
            continue
        data = plan.data if algos.definition(name).offline else []
        for limit in plan.limits:
            env = {"id": "SafeRLHF-Exact-v0", "kwargs": {**plan.env, "cost_limit": limit}}
            spec = RunSpec(name, f"{name}/limit={limit:g}", env, {}, config, plan.preset, data)
            problem = (problem_of(spec) or {}).get("constraint")
            if problem not in SOLVED:
                raise ConfigError(f"{name}: its settings state {problem or 'no problem'}, of which no optimum is known")
            if problem == "weighted":  # no limit changes it
                specs.append(replace(spec, label=name))
                break
            specs.append(spec)
    return plan, specs


def _measure(
    out: Path,
    env_kwargs: Values,
    runs: Sequence["Run"],
    problems: dict[str, str],
    figure: Path,
) -> list[Row]:
    """Solves the runs' problems, writes study.json and the figure."""
    import gymnasium as gym

    import textsafe_gym  # noqa: F401 (registers the environments)
    from textsafe_gym.evaluation.figures import optimum_plane
    from textsafe_gym.evaluation.study import frontiers, score, summarise_study

    env: Any = gym.make("SafeRLHF-Exact-v0", **env_kwargs).unwrapped
    scores = [score(env, run.summary) for run in runs]
    rows = summarise_study(scores)
    lines = frontiers(env, set(problems.values()))
    write_json(out / "study.json", {"problems": problems, "rows": rows, "frontiers": lines})
    optimum_plane(rows, problems, lines, figure)
    return rows
