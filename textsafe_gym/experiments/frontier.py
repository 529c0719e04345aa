"""What is attainable, from samples of the untrained policy: `frontier`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.config import Values, dump, flat, read_yaml
from textsafe_gym.console import is_live, progress_console
from textsafe_gym.errors import ConfigError, DataError
from textsafe_gym.experiments.arguments import check_arguments, settings_or_assignments
from textsafe_gym.experiments.result import Result
from textsafe_gym.files import Row, replacing, write_json, write_text
from textsafe_gym.installation import shipped
from textsafe_gym.presets import SMALL
from textsafe_gym.registry import did_you_mean

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

    from textsafe_gym.evaluation.report import Table
    from textsafe_gym.evaluation.reweighting import Constraint, Samples
    from textsafe_gym.experiments.saved import SavedPolicy

_AT_ONCE = 512  # responses that are sampled in one batch, at most
_LEAST = 4  # samples a prompt, of which halves are taken
_COLUMNS = ("reward", "cost")
_BOUNDED = {
    "mean": "the mean cost",
    "kl_in_cost": "cost + β·KL",
    "per_prompt": "each prompt's mean cost",
    "probability": "P(cost > 0)",
    "cvar": "CVaR",
}


def frontier(
    env: str | Path | Mapping[str, object] | None = None,
    *,
    settings: Mapping[str, object] | Sequence[str] | None = None,
    samples: int = 256,
    beta: float | Iterable[float] | None = None,
    cost_limit: float | Mapping[str, float] | None = None,
    constraint: "Constraint" = "mean",
    cvar_level: float = 0.9,
    seed: int = 0,
    out: str | Path = "runs/frontier",
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Estimates what any policy could attain, as `textsafe frontier` does: an optimum at the limit, a front, best of n
    samples.

    Draws responses of the untrained policy to each evaluation prompt and scores them once; one file for each answer to
    all prompts, so that an interrupted call goes on, and more samples can be added, with `resume`. Writes frontier.json
    and frontier.png; see `textsafe_gym.evaluation.frontier` for what is estimated, and how.

    Args:
        env: as for `train`.
        settings: below "env" and "policy".
        samples: responses to each prompt, at least 4.
        beta: weights β > 0 of the KL to the untrained policy; the front is that of the first. By default the
            environment's own, else the preset's `kl_coefficient`.
        cost_limit: on what is bounded, or from the names of costs to a limit on each one's mean; by default the
            environment's, which is one on the mean.
        constraint: "mean", "probability" (of a cost above 0) or "cvar", as the algorithms' setting; "kl_in_cost" (mean
            cost + β·KL) or "per_prompt" (each prompt's mean cost), as the problems of `study`.
        cvar_level: of "cvar", in [0, 1): the worst share 1 - cvar_level of the responses counts.
        seed: of the responses.
        out: an empty or new directory.
        resume: go on with, or add to, what is there.
        quiet: show no progress.

    Returns:
        Of no run; its values are those of `frontier.json`.

    Raises:
        TextsafeError: a setting is wrong, the environment has no limit, or a file is damaged.
    """
    from textsafe_gym.evaluation.frontier import reference_frontier
    from textsafe_gym.experiments.build import cost_limit_of
    from textsafe_gym.experiments.directory import CONFIG, check_out, make_directory, same_request
    from textsafe_gym.experiments.saved import saved_policy

    check_arguments({"out": out}, env=env, settings=settings, seed=seed)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < _LEAST:
        raise ConfigError(f"--samples {samples}: expected a whole number, at least {_LEAST}")
    _check_constraint(constraint, cvar_level, cost_limit)
    directory = Path(out)
    check_out(directory, resume)
    saved = saved_policy(None, env, settings_or_assignments(settings), seed)
    if resume:
        same_request(saved.spec, directory)
    vector = _open(saved)
    weights = _weights(beta, vector)
    limit = cost_limit_of(saved.spec, vector) if cost_limit is None else cost_limit
    if limit is None:
        raise ConfigError(f"env {saved.spec.env['id']} has no cost limit; give --cost-limit")
    make_directory(directory / "samples")
    write_text(directory / CONFIG, dump(saved.spec.as_dict()))
    columns = _sample(saved, vector, samples, directory / "samples", quiet)
    vector.close()
    drawn = _stacked(columns, limit)
    sizes = [2**k for k in range(samples.bit_length()) if 2**k <= samples]
    found = reference_frontier(drawn, limit, weights, sizes, constraint, cvar_level, seed)
    values = {"env": saved.spec.env["id"], **found}
    write_json(directory / "frontier.json", values)
    draw = partial(_draw, values, directory / "frontier.png")
    return Result(directory, {"directory": str(directory), **values}, _tables(values), draw, [])


def _check_constraint(constraint: str, cvar_level: float, cost_limit: object) -> None:
    from textsafe_gym.evaluation.reweighting import CONSTRAINTS

    if constraint not in CONSTRAINTS:
        raise ConfigError(f"--constraint {constraint}: expected one of {', '.join(CONSTRAINTS)}")
    if not 0 <= cvar_level < 1:
        raise ConfigError(f"--cvar-level {cvar_level}: expected a number from 0 up to, but not, 1")
    named = isinstance(cost_limit, Mapping)
    limits: list[Any] = [*cost_limit.values()] if isinstance(cost_limit, Mapping) else [cost_limit]
    if not limits or not all(own is None or (isinstance(own, int | float) and math.isfinite(own)) for own in limits):
        raise ConfigError(f"--cost-limit {cost_limit}: expected a finite number, or a name and one")
    if named and constraint != "mean":
        raise ConfigError(f"--constraint {constraint}: limits on costs by name are on their means")
    if cost_limit is None and constraint in ("probability", "cvar"):
        raise ConfigError(f"--constraint {constraint} needs --cost-limit; the environment's is one on the mean cost")


def _stacked(columns: "list[dict[str, np.ndarray]]", limit: object) -> "Samples":
    """All samples in one piece; a named cost that one of them has not counts as 0."""
    import numpy as np

    from textsafe_gym.evaluation.reweighting import Samples

    none = np.zeros_like(columns[0]["reward"])
    names = list(dict.fromkeys(name for one in columns for name in one))
    whole = {name: np.stack([one.get(name, none) for one in columns], 1) for name in names}
    named = {name: own for name, own in whole.items() if name not in _COLUMNS}
    for name in limit if isinstance(limit, Mapping) else ():
        if name not in named:
            known = did_you_mean(name, named) or f"named costs: {', '.join(named) or 'none'}"
            raise ConfigError(f"--cost-limit {name}: not a cost of the environment; {known}")
    return Samples(whole["reward"], whole["cost"], named)


def _open(saved: "SavedPolicy") -> "gym.vector.VectorEnv":
    """The environment, in batches as large as its prompts make sense of."""
    from textsafe_gym.experiments.build import make_env
    from textsafe_gym.models import task_of
    from textsafe_gym.protocols import PromptTask

    vector = make_env(saved.spec, 1)
    task = task_of(vector)
    count = len(task.evaluation_prompts) if isinstance(task, PromptTask) else 0
    vector.close()
    if count < 2:  # samples are of one state each, and intervals are over states
        raise ConfigError(f"env {saved.spec.env['id']}: {count} evaluation prompts; a frontier is of at least 2")
    return make_env(saved.spec, min(count, _AT_ONCE))


def _weights(beta: float | Iterable[float] | None, vector: "gym.vector.VectorEnv") -> list[float]:
    from textsafe_gym.envs.exact import ExactView
    from textsafe_gym.envs.optimum import checked_kl_coefficient

    if beta is None:
        own = vector.unwrapped
        preset = read_yaml(shipped("preset")[SMALL]).values["kl_coefficient"]
        beta = own.kl_coefficient if isinstance(own, ExactView) else preset
    given = list(dict.fromkeys(beta)) if isinstance(beta, Iterable) else [beta]
    if not given or 0.0 in [checked_kl_coefficient(x) for x in given]:
        raise ConfigError("--beta: expected numbers above 0, the weight of the KL to the untrained policy")
    return [float(x) for x in given]


def _sample(
    saved: "SavedPolicy", vector: "gym.vector.VectorEnv", samples: int, folder: Path, quiet: bool
) -> "list[dict[str, np.ndarray]]":
    """By sample, the columns (M,) of all prompts; those that are there already are read."""
    import numpy as np
    from rich.progress import Progress

    from textsafe_gym.evaluation.records import CUT
    from textsafe_gym.experiments.build import make_actor
    from textsafe_gym.experiments.play import evaluate_policy

    actor = None
    found: list[dict[str, np.ndarray]] = []
    console = progress_console(quiet)
    with Progress(console=console, transient=True, disable=not is_live(console)) as bars:
        for number in bars.track(range(samples), description="sampling"):
            path = folder / f"{number:05d}.npz"
            if path.exists():
                found.append(_read(path, len(found[0]["reward"]) if found else None))
                continue
            actor = actor or make_actor(saved.spec, vector)
            rows = evaluate_policy(actor, vector, saved.seed, {}, sample=number)
            if any(row.get("finish_reason") == CUT for row in rows):
                env_id = saved.spec.env["id"]
                raise ConfigError(f"env {env_id}: a limit on steps cuts responses, which nothing has scored; lift it")
            taken = {name for row in rows for name in row.get("costs", {})} & {*_COLUMNS, "file", "allow_pickle"}
            if taken:
                raise ConfigError(f"a cost is called '{taken.pop()}', which stands for something else here; rename it")
            own = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _COLUMNS}
            for name in sorted({name for row in rows for name in row.get("costs", {})}):  # absent counts as 0
                own[name] = np.array([row.get("costs", {}).get(name, 0.0) for row in rows], dtype=np.float64)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **own)  # type: ignore[arg-type]
            found.append(own)
    return found


def _read(path: Path, prompts: int | None) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with np.load(path) as held:
            own = {name: held[name] for name in (*_COLUMNS, *sorted(set(held.files) - set(_COLUMNS)))}
    except Exception as error:  # numpy and zipfile raise unrelated types
        raise DataError(f"{path}: damaged ({type(error).__name__}); delete it, and it is sampled again") from None
    if any(x.shape != (prompts or len(own["reward"]),) or not np.isfinite(x).all() for x in own.values()):
        raise DataError(f"{path}: not the samples of this run's prompts; delete it, and it is sampled again")
    return own


def _tables(values: Row) -> "list[Table]":
    from textsafe_gym.evaluation.report import Cell, Table, cell

    def shown(row: Row, name: str, digits: int = 2) -> Cell:
        part, _, key = name.partition(".")  # "costs.NAME"
        found, ends = (row.get(part), row["intervals"].get(part))
        found, ends = (found[key], ends.get(key) if ends else None) if key and found else (found, ends)
        if found is None:
            return Cell("–")
        low, high = ends or (None, None)
        return cell({"mean": found, "low": low, "high": high}, digits)

    def state(row: Row) -> Cell:
        return Cell("slack" if row["slack"] else "active" if row["feasible"] else "infeasible")

    named = list(values.get("cost_limits", {}))
    names = {"reward": "reward", "cost": "cost", "kl": "KL, nats", "multiplier": "λ"}
    if values["constraint"] in ("kl_in_cost", "probability", "cvar"):
        names["bounded"] = _BOUNDED[values["constraint"]]
    names |= {f"costs.{name}": f"cost {name}" for name in named} | {
        f"multipliers.{name}": f"λ {name}" for name in named
    }
    limits = " and ".join(f"{name} {own:g}" for name, own in values["cost_limits"].items()) if named else None
    limit = f"cost limit {limits or format(values['cost_limit'], 'g')}"
    limit += "" if values["constraint"] == "mean" else f" on {_BOUNDED[values['constraint']]}"
    note = f"{values['samples']} samples to each of {values['prompts']} prompts; {limit}; 95 % interval over prompts."
    note += "" if values["trusted"] else f" {_doubt(values)}"

    def optima(rows: Sequence[Row], key: str) -> list[list[Cell]]:
        return [
            [Cell(f"{row[key]:g}" if isinstance(row[key], float) else row[key]), *(shown(row, name) for name in names),
             Cell(f"{row['effective_sample_size']:.1f}"), state(row)] for row in rows
        ]  # fmt: skip

    best = [
        [Cell(str(row["n"])), *(shown(row, name) for name in ("reward", "cost", "multiplier")), Cell(f"{soft:.2f}"),
         Cell(f"{row['kl']:.2f} of {row['kl_bound']:.2f}"), Cell(str(row["judge_calls"])),
         Cell("yes" if row["feasible"] else "")]
        for row, soft in zip(values["best_of_n"], (row["reward"] for row in values["soft_best_of_n"]), strict=True)
    ]  # fmt: skip
    columns = [*names.values(), "effective samples", "limit"]
    tables = [
        Table("Attainable at the limit", note, ["β", *columns], optima(values["by_kl_coefficient"], "kl_coefficient"))
    ]
    if values["by_constraint"]:
        note = f"β = {values['kl_coefficient']:g}; the same limit on the mean cost, with the KL, and for each prompt."
        tables.append(
            Table("By what is bounded", note, ["bounded", *columns], optima(values["by_constraint"], "constraint"))
        )
    note = f"Of n answers of the untrained policy that of most reward - λ·cost; λ makes the mean meet the {limit}."
    tables.append(
        Table(
            "Best of n",
            note,
            ["n", "reward", "cost", "λ", "soft: reward", "KL of at most", "judge calls", "keeps the limit"],
            best,
        )
    )
    return tables


def _doubt(values: Row) -> str:
    from textsafe_gym.evaluation.frontier import TRUSTED

    size = values["at_limit"]["effective_sample_size"]
    return (
        f"{size:.1f} effective samples a prompt are too few to trust the optimum ({TRUSTED:g} will do): the responses "
        f"that it lives on are hardly among the samples; --samples {values['samples_needed']} may show them."
    )


def _draw(values: Row, path: Path) -> list[Path]:
    from textsafe_gym.evaluation.figures import frontier_plane

    frontier_plane(values, path)
    return [path]


def known_frontier(place: str | Path | None, configs: Sequence[Values]) -> Row | None:
    """What is attainable where runs were made: as a call of `frontier` found it, or as the embedded world ships it.

    Args:
        place: the directory of that call, or its frontier.json; none: the shipped one, if the runs are of the embedded
            world as it comes.
        configs: what the runs' config.yaml hold.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: it is of another environment or policy, or of a limit on something other than the mean cost.
    """
    from textsafe_gym import embedded_world
    from textsafe_gym.experiments.directory import CONFIG
    from textsafe_gym.files import read_json

    held = [_origin(config) for config in configs if config]
    if place is None:
        return read_json(embedded_world.FRONTIER) if held and all(own == _EMBEDDED for own in held) else None
    path = Path(place)
    path = path / "frontier.json" if path.is_dir() else path
    found = read_json(path)
    needed = (
        "env",
        "constraint",
        "kl_coefficient",
        "cost_range",
        "reference",
        "at_limit",
        "front",
        "by_constraint",
        "best_of_n",
    )
    missing = [key for key in needed if key not in found]
    if missing:
        raise DataError(f"{path}: no '{missing[0]}'; is this what textsafe frontier wrote?")
    if found["constraint"] != "mean" or "cost_limit" not in found:
        raise ConfigError(f"--frontier {place}: its limit is not on the mean of the whole cost, as these runs' are")
    for other in held:
        if other["env.id"] != found["env"]:
            raise ConfigError(f"--frontier {place}: made in {found['env']}, and the runs in {other['env.id']}")
    if (path.parent / CONFIG).exists():
        own = _origin(read_yaml(path.parent / CONFIG).values)
        for other in held:
            for key in sorted(own.keys() | other.keys()):
                if own.get(key) != other.get(key):
                    raise ConfigError(
                        f"--frontier {place}: made with {key} {own.get(key, 'not set')}, and the runs with "
                        f"{other.get(key, 'not set')}; make one for them by textsafe frontier"
                    )
    return found


_EMBEDDED: dict[str, object] = {"env.id": "SafeRLHF-v0"}


def _origin(config: Values) -> dict[str, object]:
    """What decides the untrained policy's responses and their scores, by dotted keys."""
    apart = ("env.kwargs.cost_limit", "env.kwargs.device", *(["policy.model"] if "source" in config else []))
    held = flat({key: config.get(key, {}) for key in ("env", "policy")})
    kept = {key for key in held if key.startswith("env.")} | {"policy.model", "policy.temperature"}
    return {key: value for key, value in held.items() if key in kept - {*apart} and value not in ({}, None)}
