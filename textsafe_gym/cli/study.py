"""`textsafe study`: algorithms x limits x seeds on an environment whose optimum is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.cli import values
from textsafe_gym.cli.options import out_option, output_options, print_json, print_tables, track_option
from textsafe_gym.cli.terminal import say
from textsafe_gym.config import Settings
from textsafe_gym.presets import SMALL

if TYPE_CHECKING:
    from textsafe_gym.experiments.spec import RunSpec

_EXAMPLE = """\b
Examples:
  textsafe study exact --workers 2 --out runs/study
  textsafe study exact --only cpo --only ppo_lagrangian --seeds 2 --out runs/two
  textsafe study my_study.yaml --resume --out runs/mine
"""


class Entry(BaseModel):
    """One algorithm of a study."""

    model_config = ConfigDict(extra="forbid")

    problem: Literal["mean", "kl_in_cost", "per_prompt", "priced"] = Field(
        "mean", description="whose optimum it is held to; priced: it has no limit, and a price or none"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="of this algorithm, over those of all")


class StudyFile(BaseModel):
    """What a study's YAML file holds."""

    model_config = ConfigDict(extra="forbid")

    env: dict[str, Any] = Field(description="keyword arguments of SafeRLHF-Exact-v0, but for cost_limit")
    preset: str = Field(SMALL, description="settings that all begin with")
    seeds: int = Field(gt=0, description="runs of each algorithm at each limit")
    limits: list[float] = Field(min_length=1, description="cost limits")
    settings: dict[str, Any] = Field(description="of every algorithm that has them, over the preset's")
    algorithms: dict[str, Entry] = Field(min_length=1, description="by name")


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
    """Holds every algorithm of STUDY to the exact optimum of the problem that it states.

    STUDY is one in configs/study/ or a YAML file with env, seeds, limits, settings and algorithms. Writes study.json
    and optimum.png.
    """
    from textsafe_gym.experiments.pool import Job, finish_all
    from textsafe_gym.experiments.run import check, check_out, make_directory, same_request
    from textsafe_gym.experiments.tracking import Track

    out = out or Path("runs/study")
    plan, specs = _read(study, only)
    check_out(out, resume)
    tracked = Track(track, out.resolve().name)
    jobs = [
        Job(spec.with_seed(seed), out / spec.label.replace(":", "-") / f"seed_{seed}", tracked)
        for seed in range(seeds or plan.seeds)
        for spec in specs
    ]
    for job in jobs:
        if (job.directory / "config.yaml").exists():
            same_request(job.spec, job.directory)
    played: set[str] = set()
    for spec in specs:
        check(spec, played)
    make_directory(out)
    finish_all(jobs, workers, command)
    problems: dict[str, str] = {
        name: plan.algorithms[name].problem for name in dict.fromkeys(spec.algorithm for spec in specs)
    }
    rows = _measure(out, jobs, problems)
    if as_json:
        print_json({"directory": str(out), "rows": rows})
        return
    from textsafe_gym.evaluation.study import study_table

    print_tables([study_table(rows, problems)])
    say(f"Figure: {out / 'optimum.png'}")


def _read(study: str, only: Sequence[str]) -> "tuple[StudyFile, list[RunSpec]]":
    """The plan, and its runs with seed 0."""
    from textsafe_gym.config import merge, read_yaml, validate
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.experiments.spec import RunSpec, config_class
    from textsafe_gym.presets import preset_settings, presets
    from textsafe_gym.registry import nearest

    known = presets("study")
    if study not in known and not study.endswith((".yaml", ".yml")):
        raise ConfigError(f"no study and no YAML file '{study}'; {nearest(study, list(known))}")
    given = read_yaml(known.get(study, study))
    plan = validate(StudyFile, given, "study")
    if "cost_limit" in plan.env:
        raise ConfigError(f"{given.where(('env', 'cost_limit'))}: a study's limits stand under 'limits'")
    for name in only:
        if name not in plan.algorithms:
            raise ConfigError(f"--only {name}: not in this study; {nearest(name, list(plan.algorithms))}")
    specs = []
    for name, entry in plan.algorithms.items():
        schema = config_class(name)
        shared = given.section("settings")
        shared = shared.without(*(key for key in shared.values if key not in schema.model_fields))
        own = given.section("algorithms").section(name).section("settings")
        layers = (preset_settings(plan.preset, name, schema), shared, own, Settings({"seed": 0}))
        config = validate(schema, merge(*layers), name).model_dump(mode="json")
        if only and name not in only:
            continue
        limits = plan.limits[:1] if entry.problem == "priced" else plan.limits
        for limit in limits:
            label = name if entry.problem == "priced" else f"{name} limit={limit:g}"
            env = {"id": "SafeRLHF-Exact-v0", "kwargs": {**plan.env, "cost_limit": limit}}
            specs.append(RunSpec(name, label.replace(" ", "/"), env, {}, config, plan.preset))
    return plan, specs


def _measure(out: Path, jobs: Sequence[Any], problems: dict[str, str]) -> list[dict[str, Any]]:
    """Reads the runs, solves their problems, writes study.json and the figure."""
    import gymnasium as gym

    import textsafe_gym  # noqa: F401 (registers the environments)
    from textsafe_gym.evaluation.figures import optimum_plane
    from textsafe_gym.evaluation.files import read_json, write_json
    from textsafe_gym.evaluation.study import frontiers, score, summarise_study

    env: Any = gym.make("SafeRLHF-Exact-v0", **jobs[0].spec.env["kwargs"]).unwrapped
    scores = []
    for job in jobs:
        problem = problems[job.spec.algorithm]
        price = job.spec.config.get("cost_weight", 0.0)
        scores.append(score(env, problem, read_json(job.directory / "summary.json"), price))
    rows = summarise_study(scores)
    lines = frontiers(env, set(problems.values()))
    write_json(out / "study.json", {"problems": problems, "rows": rows, "frontiers": lines})
    optimum_plane(rows, problems, lines, out / "optimum.png")
    return rows
