"""From run directories to one comparison: means and intervals over seeds, groups of prompts, the front."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from textsafe_gym.config import flat, read_yaml
from textsafe_gym.errors import DataError, RunError
from textsafe_gym.evaluation.attainable import attained, attained_of_own
from textsafe_gym.evaluation.intervals import share_interval, t_interval
from textsafe_gym.evaluation.pareto import RunPoint, analyse
from textsafe_gym.evaluation.records import by_prompt, data_units, read_evaluation, summarise
from textsafe_gym.evaluation.report import UNITS, Table, comparison_tables
from textsafe_gym.files import Row, read_json, read_rows
from textsafe_gym.limits import violation

_SKIPPED = {"episodes", "groups", "costs", "cost_limit"}
_ALL, _SHARE = (-math.inf, math.inf), (0.0, 1.0)
_BOUNDS = {
    "cost_violation": (0.0, math.inf),
    "tokens_per_second": (0.0, math.inf),
    "harmful_rate": _SHARE,
    "gold_harmful_rate": _SHARE,
    "finished": _SHARE,
}
# Keys of `config.yaml` in which repetitions may differ: seeds, devices, and what an evaluation adds.
_APART = {
    "config.seed",
    "evaluation_seed",
    "evaluation_batch",
    "evaluation_samples",
    "source",
    "policy.device",
    "env.kwargs.device",
}


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, as its directory holds it.

    Attributes:
        directory: where it lies.
        summary: of `summary.json`.
        rows: of `evaluation.jsonl`.
        config: of `config.yaml`; empty where there is none.
    """

    directory: Path
    summary: Row
    rows: list[Row]
    config: Row = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Run({self.label!r}, seed={self.seed}, directory={str(self.directory)!r})"

    @property
    def algorithm(self) -> str:
        """The algorithm's name; "initial" for the policy before training."""
        return str(self.summary["algorithm"])

    @property
    def label(self) -> str:
        """The algorithm with what was varied."""
        return str(self.summary["label"])

    @property
    def seed(self) -> int:
        """The seed of the run; runs of one label differ in it alone."""
        return int(self.summary["seed"])

    @property
    def cost_limits(self) -> dict[str, float]:
        """By name, the limits on the means of costs; empty where there is none but `cost_limit`."""
        return dict(self.summary.get("cost_limits", {}))

    @property
    def evaluation_seed(self) -> int:
        """The seed of the evaluated responses; by default the run's."""
        return int(self.summary.get("evaluation_seed", self.seed))

    @property
    def metrics(self) -> list[Row]:
        """Of `metrics.jsonl`; empty for a policy that was not trained."""
        path = self.directory / "metrics.jsonl"
        return read_rows(path) if path.exists() else []


def load_run(directory: Path) -> Run:
    """Reads a finished run's directory.

    Raises:
        DataError: a file is missing or damaged.
        ConfigError: `config.yaml` is damaged.
    """
    summary = read_json(directory / "summary.json")
    for name in ("algorithm", "label", "seed", "cost_limit"):
        if name not in summary:
            raise DataError(f"{directory / 'summary.json'}: no '{name}'; is this a run's summary?")
    path = directory / "config.yaml"
    config = read_yaml(path).values if path.exists() else {}
    return Run(directory, summary, read_evaluation(directory / "evaluation.jsonl"), config)


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """All finished runs in the directories and below them, each once.

    Raises:
        RunError: a directory is missing or has no finished run.
        DataError: a file is damaged.
    """
    found: dict[Path, Run] = {}
    for directory in directories:
        if not directory.is_dir():
            raise RunError(f"{directory}: no such directory")
        places = sorted(path.parent for path in directory.rglob("summary.json"))
        if not places:
            raise RunError(f"{directory}: no finished run here or below (no summary.json)")
        for place in places:
            found.setdefault(place.resolve(), load_run(place))
    return list(found.values())


def settings_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each label, by seed: each other's repetitions, which differ in their seeds alone.

    Raises:
        RunError: a label has two runs of one seed, or runs with different settings; or the runs are of different
            environments, whose rewards and costs do not compare.
    """
    known = [(run, env) for run in runs if (env := flat(run.config).get("env.id"))]
    for run, env in known:
        if env != known[0][1]:
            raise RunError(
                f"{run.directory}: of the environment {env}, and {known[0][0].directory} of {known[0][1]}; their "
                "rewards and costs do not compare, so take them apart"
            )
    by_label: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        by_label[run.label].append(run)
    for label, own in by_label.items():
        for run, following in pairwise(own):
            if run.seed == following.seed:
                raise RunError(
                    f"{following.directory}: '{label}' with seed {run.seed} is also in {run.directory}; leave one out"
                )
            held, here = _settings(run), _settings(following)
            # The preset last, as what it changed says more.
            for key in sorted(dict.fromkeys((*held, *here)), key="preset".__eq__):
                one, other = held.get(key, "not set"), here.get(key, "not set")
                if one != other:
                    raise RunError(
                        f"{following.directory}: '{label}' has {key} {other} here and {one} in {run.directory}; these "
                        "are two settings, not repetitions: leave one out, or compare them by --vary"
                    )
    return {run.label: by_label[run.label] for run in runs}


def _settings(run: Run) -> dict[str, object]:
    """What has to be equal in all repetitions, by dotted keys."""
    held = flat(run.config)
    source, model = held.get("source"), held.get("policy.model")
    if source and model and Path(str(model)).is_relative_to(str(source)):
        del held["policy.model"]  # the trained policy itself
    own = {key: value for key, value in held.items() if key not in _APART and value != {}}
    return own | {"cost_limit": run.summary["cost_limit"]}


def differing_arguments(runs: Sequence[Run]) -> list[str]:
    """The environment's arguments, apart from its cost limit, that are not the same in all runs."""
    held = [flat(run.config) for run in runs if run.config]
    names = {key: key.removeprefix("env.kwargs.") for own in held for key in own if key.startswith("env.kwargs.")}
    apart = ("cost_limit", "device")
    return [name for key, name in names.items() if name not in apart and len({str(own.get(key)) for own in held}) > 1]


def points_of(runs: Sequence[Run], cost: str = "") -> list[RunPoint]:
    """Each run in the reward-cost plane, of the cost of a name, or of all costs.

    Raises:
        RunError: see `settings_of`.
    """
    points = []
    for run in [run for own in settings_of(runs).values() for run in own]:
        means = summarise(run.rows, 0.0)
        points.append(RunPoint(run.algorithm, run.label, run.seed, means["reward"], _named(means, cost)))
    return points


def repetitions_of(runs: Sequence[Run]) -> list[RunPoint] | None:
    """What intervals are over: each prompt's means, with its number for a seed, where each setting has one run, and all
    have the same prompts; None: the runs themselves."""
    prompts = {tuple(dict.fromkeys((row.get("episode"), row.get("prompt")) for row in run.rows)) for run in runs}
    if len({run.label for run in runs}) < len(runs) or len(prompts) > 1:
        return None
    return [
        RunPoint(run.algorithm, run.label, number, means["reward"], means["cost"])
        for run in runs
        for number, means in enumerate(summarise(rows, None) for rows in by_prompt(run.rows))
    ]


def _of_group(means: Sequence[Row], name: str) -> list[Row]:
    return [mean["groups"][name] for mean in means if name in mean.get("groups", {})]


def _named(means: Row, cost: str) -> float:
    """The mean cost of a name, 0 where none was reported, or of all."""
    return float((means.get("costs", {}).get(cost, {"cost": 0.0}) if cost else means)["cost"])


def compare_runs(runs: Sequence[Run], frontier: Row | None = None) -> Row:
    """What `comparison.json` holds.

    Args:
        runs: finished ones, at least one; those of one label are each other's repetitions.
        frontier: what is attainable in their environment under their limit, as `frontier.json` holds it.

    Returns:
        "settings": from label to its algorithm, seeds, seeds of its evaluations, budget in episodes and in each of
        "units", cost limit, and intervals over runs of every metric, overall, for each group of prompts and, under
        "costs", for each named cost, whose limits are "cost_limits";
        and, with a frontier, "attainable" and "attainable_of_own": see `attainable`; "frontier" itself, or None;
        "pareto": see `pareto.analyse`; "task": "text" or "other", whether episodes are responses; "units": see
        `data_units`;
        "environments_differ_in": see `differing_arguments`.

    Raises:
        RunError: see `settings_of`.
    """
    settings, units = {}, data_units(run.summary for run in runs)
    for label, own in settings_of(runs).items():
        limit = own[0].summary["cost_limit"]
        means = [summarise(run.rows, limit, run.cost_limits) for run in own]
        for run, mean in zip(own, means, strict=True):
            if run.summary.get("tokens_per_second"):
                mean["tokens_per_second"] = run.summary["tokens_per_second"]
        single = [summarise(rows, None) for rows in by_prompt(own[0].rows)] if len(own) == 1 else []
        groups = list(dict.fromkeys(name for mean in means for name in mean.get("groups", {})))
        settings[label] = {
            "algorithm": own[0].algorithm,
            "seeds": [run.seed for run in own],
            "evaluation_seeds": [run.evaluation_seed for run in own],
            "runs": len(own),
            "episodes": own[0].summary.get("episodes"),
            **{name: own[0].summary.get(name, 0) for name in units},
            "cost_limit": limit,
            "cost_limits": own[0].cost_limits,
            "metrics": _intervals(means, single, limit),
            "costs": {
                name: _intervals(
                    [mean.get("costs", {}).get(name, {"cost": 0.0}) for mean in means],  # absent, a cost is 0
                    [{"cost": _named(mean, name)} for mean in single],
                    own[0].cost_limits.get(name),
                )
                for name in dict.fromkeys(name for mean in means for name in mean.get("costs", {}))
            },
            "groups": {name: _intervals(_of_group(means, name), _of_group(single, name)) for name in groups},
            "attainable": attained(own, frontier) if frontier else None,
            "attainable_of_own": attained_of_own(own, frontier) if frontier else None,
        }
    limits = {entry["cost_limit"] for entry in settings.values()}
    limit = limits.pop() if len(limits) == 1 else None
    pareto = analyse(points_of(runs), limit, None, frontier, repetitions_of(runs))
    return {
        "task": task_of_runs(runs),
        "units": units,
        "settings": settings,
        "frontier": frontier,
        "pareto": pareto,
        "environments_differ_in": differing_arguments(runs),
    }


def task_of_runs(runs: Sequence[Run]) -> str:
    """The key of `UNITS`: "text" where episodes are responses, else "other"."""
    return "text" if any("response" in row for run in runs for row in run.rows) else "other"


def budget_of(comparison: Row) -> str:
    """What a run of the comparison learned from, such as "512 responses or 4096 labelled pairs"."""
    parts = []
    for key, what in (("episodes", UNITS[comparison["task"]].episodes), *comparison["units"].items()):
        counts = sorted({entry[key] for entry in comparison["settings"].values() if entry[key]})
        parts += [f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {what}"] if counts else []
    return " or ".join(parts)


def _intervals(means: Sequence[Row], prompts: Sequence[Row] = (), limit: float | None = None) -> Row:
    """Means over runs with 95 % t intervals over them, or of one run over its `prompts`' own means; `limit` is the
    cost's."""
    names = list(dict.fromkeys(name for mean in means for name in mean if name not in _SKIPPED))
    found, responses = {}, sum(mean.get("episodes", 1) for mean in prompts)
    for name in names:
        values = [mean[name] for mean in means if name in mean]
        repeated, within = [mean[name] for mean in prompts if name in mean], _BOUNDS.get(name, _ALL)
        over = (
            share_interval(repeated, responses)
            if repeated and within is _SHARE
            else t_interval(repeated or values, within=within)
        ).as_dict()
        found[name] = {**over, "mean": t_interval(values).mean, "runs": len(values), "values": values}
    if prompts and limit is not None and found["cost"]["low"] is not None:
        ends = {end: violation(found["cost"][end] - limit) for end in ("low", "high")}
        found["cost_violation"] |= ends  # that of a prompt's own mean is no part of it
    return found


def tables_of(comparison: Row) -> list[Table]:
    """The tables of a comparison; a hypervolume is left out where there is nothing to compare."""
    tables = comparison_tables(comparison)
    return tables[:-1] if len(comparison["settings"]) == 1 else tables
