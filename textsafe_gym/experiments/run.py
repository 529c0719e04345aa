"""One run and its directory: config.yaml, metrics.jsonl, evaluation.jsonl, summary.json, checkpoints/."""

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.config import dump
from textsafe_gym.envs.making import check_cost_names
from textsafe_gym.errors import ConfigError, DataError, ExecutionError, RunError, TextsafeError
from textsafe_gym.evaluation.records import REQUIRED
from textsafe_gym.experiments.allocator import keep_freed_memory
from textsafe_gym.experiments.build import (
    cost_limit_of,
    cost_limits_of,
    make_actor,
    make_env,
    make_trainer,
    problem_of,
    saved_trainer,
)
from textsafe_gym.experiments.cards import write_policy_card
from textsafe_gym.experiments.directory import CONFIG, make_directory, same_request
from textsafe_gym.experiments.spec import INITIAL, RunSpec
from textsafe_gym.experiments.tracking import Track, Tracking
from textsafe_gym.files import (
    Row,
    append_row,
    read_json,
    read_rows,
    recover_directory,
    remove_leftovers,
    write_json,
    write_rows,
    write_text,
)
from textsafe_gym.models import task_of
from textsafe_gym.models.files import one_line
from textsafe_gym.offline import KINDS
from textsafe_gym.protocols import Enumerable, PromptTask, ResponseTask
from textsafe_gym.rollouts import collect

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.protocols import Actor

CHECKPOINT = Path("checkpoints") / "latest"
CHECKPOINT_EVERY = 10  # iterations; a killed run repeats at most so many

Report = Callable[[Row], None]


def check(spec: RunSpec, played: set[str] | None = None, processes: "ProcessGroup | None" = None) -> None:
    """Everything that can be wrong with a run comes out here, before a directory is made.

    Builds the environment, the policy and the algorithm and plays a few episodes, which also runs the scorers.

    Args:
        spec: the run.
        played: which environments and policies have been played already; is added to.
        processes: processes that are to do the run together.

    Raises:
        TextsafeError: what is wrong.
    """
    size, batch = processes.world_size if processes else 1, spec.num_envs
    if batch % size:
        raise ConfigError(f"episodes_per_iteration = {batch} is not shared evenly by {size} processes")
    if processes is not None:
        import algos

        algos.check_processes(spec.algorithm, processes)
    try:
        _try_out(spec, played, processes)
    finally:
        gc.collect()  # models, which would otherwise lie next to the run's own for a while


def _try_out(spec: RunSpec, played: set[str] | None, processes: "ProcessGroup | None") -> None:
    # Several episodes, as a judge may be right for one alone, and a part of an iteration, as the algorithm wants.
    group, batch = int(spec.config.get("group_size", 1)), spec.num_envs
    env = make_env(spec, next((n for n in range(max(4, group), batch) if not (n % group or batch % n)), batch))
    try:
        actor = make_actor(spec, env, processes)
        if processes is not None:
            processes.check(actor)
        if spec.algorithm != INITIAL:
            make_trainer(spec, env, actor, few=True)
        if processes is not None and processes.streams_layers:
            return  # a model that no process holds alone, so that none can try it out
        key = repr((spec.env, spec.policy))
        named = spec.config.get("cost_limits") or {}
        if played is None or named or key not in played:
            rollout = collect(actor, env, 0)
            # A text environment scores every cost of a response; another may report one when it occurs.
            if isinstance(env.unwrapped, ResponseTask):
                check_cost_names(named, rollout.named_costs)
            _try_prompts(spec, env)
            if played is not None:
                played.add(key)
    finally:
        env.close()


def _try_prompts(spec: RunSpec, env: "gym.vector.VectorEnv") -> None:
    """Resets an environment that has evaluation prompts to some of them, as the evaluation is going to."""
    from textsafe_gym.experiments.play import GivenPrompts

    task = task_of(env)
    if not isinstance(task, PromptTask) or not task.evaluation_prompts:
        return
    given, prompts = GivenPrompts(env), task.evaluation_prompts
    given.prompts = [prompts[i % len(prompts)].text for i in range(env.num_envs)]
    try:
        given.reset(seed=0)
    except TextsafeError:
        raise
    except Exception as error:  # a wrapper of the user's may raise whatever it likes
        raise ConfigError(
            f"env {spec.env['id']}: an evaluation sets its prompts, and reset(options={{'prompt': ...}}) raised "
            f"{type(error).__name__}: {one_line(error)}; pass options on to the text environment"
        ) from error


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Holds a lock for as long as a process works in a run's directory; the system frees it if the process dies."""
    from filelock import FileLock, Timeout

    # Of a lock that is a file's mere existence, which it falls back to, a killed process would leave one behind.
    lock = FileLock(directory / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{directory}: another process is at work on this run") from None
    try:
        yield
    finally:
        lock.release()


def execute(
    spec: RunSpec, directory: Path, report: Report, processes: "ProcessGroup | None" = None, track: Track | None = None
) -> Row:
    """Does a run, or what is left of it, in its directory.

    Args:
        spec: has passed `check`.
        directory: is made; a finished run in it is returned as it is, an unfinished one continued from its last
            checkpoint, which leads to the same result.
        report: is called after each iteration with {"done", "total", "metrics"}.
        processes: processes that do it together, of which the first alone writes.
        track: which trackers show it; TensorBoard always does.

    Returns:
        The summary.

    Raises:
        TextsafeError: settings differ from those saved, or training had to stop.
        ExecutionError: something unforeseen, with a traceback in `error.log`.
    """
    from textsafe_gym.parallel.process_group import SingleProcess

    keep_freed_memory()
    processes = processes or SingleProcess()
    with processes.together("opening the run"):
        if processes.rank == 0:
            make_directory(directory)
            if (directory / CONFIG).exists():
                same_request(spec, directory)
            else:
                write_text(directory / CONFIG, dump(spec.as_dict()))
    if (directory / "summary.json").exists():
        return _finished(directory / "summary.json")
    with _alone_in(directory) if processes.rank == 0 else nullcontext():
        try:
            with Tracking(spec, directory, track or Track()) as tracking:
                return _execute(spec, directory, report, processes, tracking)
        except TextsafeError:
            raise
        except (Exception, SystemExit) as error:  # which the user's own code may call
            log, message = directory / "error.log", f"{spec.label} seed {spec.seed}: {type(error).__name__}: {error}"
            with suppress(OSError):  # where the disk is full
                write_text(log, traceback.format_exc())
                message += f"; see {log}"
            raise ExecutionError(message) from error


def _finished(path: Path) -> Row:
    """A finished run's summary.

    Raises:
        DataError: it is damaged.
    """
    summary = read_json(path)
    means = summary.get("evaluation")
    if not isinstance(means, dict) or not all(isinstance(means.get(name), int | float) for name in REQUIRED):
        raise DataError(f"{path}: no 'evaluation' with reward and cost; delete it, and --resume evaluates anew")
    return summary


def _train(
    spec: RunSpec,
    env: "gym.vector.VectorEnv",
    actor: "Actor",
    directory: Path,
    report: Report,
    processes: "ProcessGroup",
    tracking: Tracking,
) -> "tuple[Trainer, list[Row]]":
    """Trains from the last checkpoint, or from the start, to the end of the budget.

    Returns:
        The trainer, and the rows of `metrics.jsonl`.
    """
    checkpoint, path = directory / CHECKPOINT, directory / "metrics.jsonl"
    if recover_directory(checkpoint):
        trainer = saved_trainer(spec, env, actor, checkpoint, processes)
    else:
        trainer = make_trainer(spec, env, actor, processes)
    rows = read_rows(path, drop_torn_tail=True)[: trainer.iteration] if path.exists() else []
    if len(rows) < trainer.iteration:
        raise RunError(f"{path}: {len(rows)} rows, but the checkpoint is of iteration {trainer.iteration}")
    processes.barrier("the start of training")  # all have read what the first is about to write
    if processes.rank == 0:
        remove_leftovers(checkpoint)
        write_rows(path, rows)
        tracking.start(rows)
    total = trainer.source.iterations

    def on_iteration(metrics: dict[str, float]) -> None:
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        rows.append(row)
        if processes.rank == 0:
            append_row(path, row)
            tracking.log(row)
        if trainer.iteration % CHECKPOINT_EVERY == 0 or trainer.iteration == total:
            trainer.save(checkpoint)
        report({"done": trainer.iteration, "total": total, "metrics": row})

    trainer.learn(on_iteration=on_iteration)
    return trainer, rows


def _execute(spec: RunSpec, directory: Path, report: Report, processes: "ProcessGroup", tracking: Tracking) -> Row:
    from textsafe_gym.evaluation.records import summarise
    from textsafe_gym.experiments.play import play_samples
    from textsafe_gym.models.causal_lm import CausalLMActor

    started = time.perf_counter()
    env = make_env(spec, spec.num_envs // processes.world_size)
    actor = make_actor(spec, env, processes)
    reference = actor.reference()
    metrics: list[Row] = []
    playing: AbstractContextManager[None] = nullcontext()
    if spec.algorithm != INITIAL:
        trainer, metrics = _train(spec, env, actor, directory, report, processes, tracking)
        playing = trainer.algorithm.optimizer.engine.generating()
    elif processes.rank == 0:
        tracking.start([])
    identity = {"algorithm": spec.algorithm, "label": spec.label, "seed": spec.seed}

    def on_batch(done: int, total: int) -> None:
        report({"done": done, "total": total, "evaluating": True})

    batch = spec.evaluation_envs // processes.world_size
    judged = env if batch == env.num_envs else make_env(spec, batch)
    with playing:
        samples = spec.evaluation_samples
        rows = play_samples(samples, actor, judged, spec.seed, identity, reference, on_batch, processes)
    limit, limits = cost_limit_of(spec, env), cost_limits_of(spec)
    # An enumerable environment knows a policy's expectations, at the temperature that its reference has.
    task, exactly = env.unwrapped, {}
    if isinstance(task, Enumerable) and isinstance(actor, CausalLMActor) and actor.temperature == 1:
        exactly = {"exact": task.evaluate(actor.model)._asdict()}
    if judged is not env:
        judged.close()
    env.close()
    units = {kind.unit: kind.counted for kind in KINDS.values()}
    speeds = [row["tokens_per_second"] for row in metrics if row.get("tokens_per_second")]
    summary = {
        **identity,
        "evaluation_seed": spec.seed,
        "cost_limit": limit,
        **({"cost_limits": limits} if limits else {}),
        **{name: metrics[-1].get(name, 0) if metrics else 0 for name in ("episodes", *units)},
        "units": units,
        "problem": problem_of(spec),
        "seconds": round(time.perf_counter() - started, 2),
        "evaluation": summarise(rows, limit, limits),
        **exactly,
    }
    if speeds:
        summary["tokens_per_second"] = math.fsum(speeds) / len(speeds)
    if processes.rank == 0:
        write_rows(directory / "evaluation.jsonl", rows)
        if spec.algorithm != INITIAL:
            write_policy_card(directory / CHECKPOINT / "policy", spec, summary, env)
        write_json(directory / "summary.json", summary)
        (directory / "error.log").unlink(missing_ok=True)
        tracking.finish(summary["evaluation"])
    return summary
