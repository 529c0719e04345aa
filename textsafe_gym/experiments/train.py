"""One run from its arguments to its files: `experiments.train`."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.console import progress_console
from textsafe_gym.errors import ConfigError, RunInterrupted
from textsafe_gym.experiments.arguments import check_arguments, repeated, settings_or_assignments
from textsafe_gym.experiments.result import Result
from textsafe_gym.files import Row

if TYPE_CHECKING:
    from textsafe_gym.evaluation.summaries import Run
    from textsafe_gym.parallel.process_group import ProcessGroup


def train(
    algorithm: str,
    env: str | Path | Mapping[str, object] | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, object] | Sequence[str] | None = None,
    preset: str | None = None,
    episodes: int | None = None,
    data: Sequence[str | Path] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    deepspeed: str | Path | None = None,
    timeout: float = 600.0,
    on_memory_plan: Callable[[Row], object] | None = None,
    track: str | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Result:
    """Trains a policy and evaluates it, as `textsafe train` does.

    Args:
        algorithm: a name of `algos.available()`.
        env: a Gymnasium id, a shipped configuration or a YAML file; or what such a file holds: {"id": ...,
            "kwargs": {...}, "policy": {...}}. By default "SafeRLHF-v0".
        config: a YAML file of settings, a shipped one ("round1" is the paper's), or a run's `config.yaml`.
        settings: the algorithm's, and below "env" and "policy" those of both; nested or dotted keys, as --set has them.
        preset: settings to begin with: "small", the default, suits small models; "paper" has the official script's.
            A run's `config.yaml` has all of its own, and goes with no other preset.
        episodes: responses to generate (or episodes to play) in all.
        data: of a method that samples nothing, what it learns from: files, "hub:NAME[:SPLIT]" or "simulated:N", the
            environment's own; by default 4096 of them.
        seed: all randomness follows from it; by default 0.
        out: an empty or new directory; by default runs/ALGORITHM-SEED.
        resume: continue the run in `out`; its settings are those that it began with.
        deepspeed: a DeepSpeed config, or the name of a shipped one, under torchrun or alone.
        timeout: with `deepspeed`: seconds after which a process that others wait for is taken for lost.
        on_memory_plan: is handed the plan of the run's memory (`memory.memory_plan`) before anything is loaded; what no
            device has room for is refused then.
        track: "wandb", "mlflow" or "trackio"; event files for TensorBoard are always written.
        quiet: show no progress.
        command: what the user typed, for the message of an interrupted run; by default this call.

    Returns:
        Of one run; its values are those of `summary.json`. Of several processes only the first has tables and runs.

    Raises:
        TextsafeError: the request is wrong, or training had to stop; nothing was written if the request was.
        ExecutionError: something unforeseen; the message names the file with the traceback.
        RunInterrupted: by Ctrl-C.
    """
    from textsafe_gym.evaluation.summaries import compare_runs, load_run, tables_of
    from textsafe_gym.experiments.data import data_note
    from textsafe_gym.experiments.directory import CONFIG, check_out, folder_of, same_request
    from textsafe_gym.experiments.memory import check_room, memory_plan
    from textsafe_gym.experiments.pool import Job, run_all
    from textsafe_gym.experiments.run import check
    from textsafe_gym.experiments.spec import build_spec, config_class
    from textsafe_gym.experiments.tracking import Track, check_tracker
    from textsafe_gym.files import read_json

    check_arguments(
        {"algorithm": algorithm, "data": data, "timeout": timeout}, env=env, config=config, settings=settings,
        preset=preset, episodes=episodes, seed=seed, out=out, deepspeed=deepspeed, track=track,
    )  # fmt: skip
    config_class(algorithm)
    check_tracker(track)
    processes = joined(deepspeed, timeout)
    plan: Row = {}
    with processes.together("the request"):
        if resume:
            if out is None:
                raise ConfigError("resume=True needs out, the directory of the run to continue")
            check_out(Path(out), resume=True)
            config = config or Path(out) / CONFIG
        spec = build_spec(
            algorithm,
            env=env,
            config=None if config is None else str(config),
            assignments=settings_or_assignments(settings),
            episodes=episodes,
            data=data,
            seed=seed,
            preset=preset,
        )
        directory = Path(out) if out is not None else Path("runs") / f"{folder_of(algorithm)}-{spec.seed}"
        check_out(directory, resume)
        if resume:
            same_request(spec, directory)
        if on_memory_plan is not None:
            plan = {"memory": memory_plan(spec, processes)}
            if processes.rank == 0:
                on_memory_plan(plan["memory"])
            check_room(plan["memory"])
        check(spec, processes=processes)
    if (note := data_note([spec])) and processes.rank == 0:
        progress_console(quiet).print(note, markup=False, highlight=False, soft_wrap=True)
    try:
        failures = run_all([Job(spec, directory, Track(track))], workers=1, processes=processes, quiet=quiet)
    except KeyboardInterrupt:
        short = None if command is None else f"textsafe train {algorithm} --out {directory}"
        _, again = repeated(short, "train", algorithm, out=directory)
        raise RunInterrupted(f"continue with: {again}") from None
    for failure in failures.values():
        raise failure
    values = {"directory": str(directory), **plan}
    if processes.rank > 0:
        return Result(directory, values, [], list, [])
    run = load_run(directory)
    values |= read_json(directory / "summary.json")
    comparison = compare_runs([run])
    return Result(directory, values, tables_of(comparison), partial(_draw, run, comparison, directory), [run])


def _draw(run: "Run", comparison: Row, directory: Path) -> list[Path]:
    from textsafe_gym.evaluation.figures import learning_curves

    return learning_curves([run], comparison, directory / "learning_curves.png")


def joined(deepspeed: str | Path | None, timeout: float) -> "ProcessGroup":
    """The processes that train: this one, or with DeepSpeed those that torchrun has started.

    Raises:
        ConfigError: the DeepSpeed config is wrong, or there are several processes and no config.
    """
    from textsafe_gym.installation import shipped
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.registry import nearest

    if deepspeed is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("several processes were started, but without --deepspeed each would train alone")
        return SingleProcess()
    from textsafe_gym.parallel.deepspeed import start
    from textsafe_gym.parallel.deepspeed_config import read_config

    known = shipped("deepspeed")
    path = known.get(str(deepspeed), Path(deepspeed))
    if not path.is_file():
        raise ConfigError(
            f"--deepspeed {deepspeed}: no such file or shipped configuration; {nearest(str(deepspeed), list(known))}"
        )
    return start(read_config(path), timeout)
