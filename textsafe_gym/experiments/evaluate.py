"""Saved policies on the evaluation prompts: `evaluate`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.config import dump
from textsafe_gym.console import is_live, progress_console
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import check_arguments, settings_or_assignments
from textsafe_gym.experiments.result import Result
from textsafe_gym.files import Row, write_json, write_rows, write_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from textsafe_gym.evaluation.summaries import Run


def evaluate(
    sources: str | Path | Iterable[str | Path],
    env: str | Path | Mapping[str, object] | None = None,
    *,
    settings: Mapping[str, object] | Sequence[str] | None = None,
    seed: int | None = None,
    samples: int | None = None,
    out: str | Path = "runs/evaluate",
    quiet: bool = False,
) -> Result:
    """Plays saved policies on the evaluation prompts, as `textsafe evaluate` does.

    Writes a directory each, with evaluation.jsonl and summary.json, which `pareto` reads.

    Args:
        sources: directories of runs, folders that a trainer's `save` wrote, and policies' folders or hub ids.
        env: as for `train`; by default what each was trained in, and "SafeRLHF-v0" for a policy alone.
        settings: below "env" and "policy", over those of the run.
        seed: of the responses; by default that of a run's training, and 0 for a policy alone.
        samples: responses to each prompt; by default those of the first run's own evaluation, and 1 for a policy alone.
        out: an empty or new directory.
        quiet: show no progress.

    Returns:
        Of one run a source; its values are as those of `comparison.json`.

    Raises:
        TextsafeError: something is missing, damaged or wrong; nothing was written.
    """
    from rich.progress import Progress

    from textsafe_gym.evaluation.records import summarise
    from textsafe_gym.evaluation.summaries import Run, compare_runs, load_runs, settings_of, tables_of
    from textsafe_gym.experiments.build import cost_limit_of, cost_limits_of
    from textsafe_gym.experiments.directory import CONFIG, check_out, folder_of, make_directory
    from textsafe_gym.experiments.play import play_samples
    from textsafe_gym.experiments.saved import open_saved, saved_policy

    check_arguments({"sources": sources, "out": out}, samples=samples, env=env, settings=settings, seed=seed)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise ConfigError("nothing to evaluate; give a run's or a model's directory")
    directory = Path(out)
    check_out(directory, resume=None)
    policies = [saved_policy(str(source), env, settings_or_assignments(settings), seed) for source in given]
    names = [folder_of(f"{saved.spec.label}-{saved.spec.seed}") for saved in policies]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"'{given[names.index(name)]}' and '{given[i]}' are both '{name}'; evaluate them apart")
    # The seed draws the same for each only in batches of one size, here the first's.
    batch = policies[0].spec.evaluation_envs
    samples = samples or policies[0].spec.evaluation_samples
    played = [replace(saved.spec, evaluation_batch=batch, evaluation_samples=samples) for saved in policies]
    configs = [
        {**spec.as_dict(), "evaluation_seed": saved.seed, "source": saved.source}
        for saved, spec in zip(policies, played, strict=True)
    ]
    specs = [saved.spec for saved in policies]
    identities = [{"algorithm": spec.algorithm, "label": spec.label, "seed": spec.seed} for spec in specs]
    settings_of(
        [
            Run(Path(saved.source), {**identity, "cost_limit": None}, [], config)
            for saved, identity, config in zip(policies, identities, configs, strict=True)
        ]
    )
    # All are opened and played before anything is written.
    results = []
    console = progress_console(quiet)
    with Progress(console=console, transient=True, disable=not is_live(console)) as bars:
        for saved, identity in zip(policies, identities, strict=True):
            spec = saved.spec
            task = bars.add_task(spec.label.replace("[", r"\["), total=None)
            vector, actor, reference = open_saved(saved, batch)
            rows = play_samples(samples, actor, vector, saved.seed, identity, reference, _shown_on(bars, task))
            limit, limits = cost_limit_of(spec, vector), cost_limits_of(spec)
            summary = {**identity, "evaluation_seed": saved.seed, "cost_limit": limit}
            summary |= {"cost_limits": limits} if limits else {}
            results.append((rows, {**summary, "evaluation": summarise(rows, limit, limits)}))
            vector.close()
    directories = []
    for name, config, (rows, summary) in zip(names, configs, results, strict=True):
        place = directory / name
        make_directory(place)
        write_text(place / CONFIG, dump(config))
        write_rows(place / "evaluation.jsonl", rows)
        write_json(place / "summary.json", summary)
        directories.append(place)
    runs = load_runs(directories)
    comparison = compare_runs(runs)
    draw = partial(_draw, runs, comparison, directory)
    return Result(directory, {"directory": str(directory), **comparison}, tables_of(comparison), draw, runs)


def _draw(runs: "Sequence[Run]", comparison: Row, directory: Path) -> list[Path]:
    from textsafe_gym.evaluation.figures import comparison_planes

    return list(comparison_planes(runs, comparison, directory / "pareto.png").values())


def _shown_on(bars: "Progress", task: "TaskID") -> Callable[[int, int], None]:
    return lambda done, total: bars.update(task, completed=done, total=total)
