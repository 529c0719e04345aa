"""One run and its directory: config.yaml, metrics.jsonl, evaluation.jsonl, summary.json, checkpoints/."""

import fcntl
import gc
import inspect
import math
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.cli.outcomes import WorkFailed
from textsafe_gym.config import dump, read_yaml
from textsafe_gym.errors import ConfigError, DataError, RunError, TextsafeError, UnknownNameError
from textsafe_gym.evaluation.files import append_row, read_json, read_rows, write_json, write_rows, write_text
from textsafe_gym.evaluation.records import REQUIRED
from textsafe_gym.experiments.allocator import keep_freed_memory
from textsafe_gym.experiments.cards import write_policy_card
from textsafe_gym.experiments.pairs import preferences
from textsafe_gym.experiments.spec import INITIAL, RunSpec, call
from textsafe_gym.experiments.tracking import Track, Tracking
from textsafe_gym.presets import presets
from textsafe_gym.protocols import Enumerable
from textsafe_gym.registry import nearest
from textsafe_gym.rollouts import collect

if TYPE_CHECKING:
    from textsafe_gym.parallel.process_group import ProcessGroup

CHECKPOINT = Path("checkpoints") / "latest"
CHECKPOINT_EVERY = 10  # iterations; a killed run repeats at most so many
# Below so many parameters a second thread costs more than it gives, and one thread makes results repeat exactly.
_SMALL = 10_000_000

CRITIC_OPTIONS = ("critics", "reward_critic", "cost_critic")  # those of the policy's that are its critics'

Report = Callable[[dict[str, Any]], None]


def make_env(spec: RunSpec, num_envs: int) -> Any:
    """The vector environment of a run.

    Raises:
        TextsafeError: the id, a keyword or what it names is wrong.
    """
    import gymnasium as gym

    from textsafe_gym.envs import ENVIRONMENTS
    from textsafe_gym.envs.making import make_vec

    env_id, kwargs = spec.env["id"], spec.env["kwargs"]
    try:
        return call(
            lambda **options: make_vec(env_id, num_envs, **options),
            f"env {env_id}",
            kwargs,
            known=lambda: _takes(env_id),
        )
    except TextsafeError as error:
        raise _located(error, spec) from None
    except gym.error.UnregisteredEnv as error:
        hint = "" if "did you mean" in str(error).lower() else f"; {nearest(env_id, [*ENVIRONMENTS, *presets('env')])}"
        hint += "; one of your own module is module:id" if hint and ":" not in env_id else ""
        raise UnknownNameError(f"unknown environment '{env_id}': {str(error).rstrip('.')}{hint}") from None
    except ModuleNotFoundError as error:
        # Gymnasium raises this anew, without a name, where the part of the id before the colon cannot be imported.
        if ":" not in env_id or error.name is not None:
            raise
        raise UnknownNameError(f"unknown environment '{env_id}': {error}") from None
    except gym.error.Error as error:
        raise ConfigError(f"env {env_id}: {error}") from None


def _located(error: TextsafeError, spec: RunSpec) -> TextsafeError:
    """An error about one of the environment's kwargs, by its name or what it names, with where that was written."""
    message = str(error)
    for name, place in spec.places.items():
        value = spec.env["kwargs"][name]
        if re.match(rf"{re.escape(name)}\b", message) or (isinstance(value, str) and value and value in message):
            return type(error)(f"{message} ({place})")
    return error


def _takes(env_id: str) -> list[str]:
    """Keyword arguments of a registered environment, if its maker names them."""
    import gymnasium as gym

    found = gym.registry.get(env_id.rpartition(":")[2])
    make: Any = found.entry_point if found else None
    if isinstance(make, str):
        make = gym.envs.registration.load_env_creator(make)
    takes = inspect.signature(make).parameters.values() if make else []
    return [taken.name for taken in takes if taken.kind is not taken.VAR_KEYWORD]


def make_actor(spec: RunSpec, env: Any, processes: "ProcessGroup | None" = None) -> Any:
    """The starting policy of a run; on the CPU where no device is to hold it whole.

    Raises:
        TextsafeError: the model or an option does not fit.
    """
    import torch

    from textsafe_gym import models

    torch.manual_seed(spec.seed)  # a fresh MLP's weights; a language model draws nothing
    options = {name: value for name, value in spec.policy.items() if name not in CRITIC_OPTIONS}
    if processes is not None and processes.streams_layers and "device" in options:
        options["device"] = "cpu"
    actor: Any = call(models.make_actor, "policy", options, env)
    # All of them, as an adapter of few parameters may sit on a large model.
    if sum(parameter.numel() for parameter in actor.parameters()) < _SMALL:
        torch.set_num_threads(1)
    return actor


def make_trainer(
    spec: RunSpec, env: Any, actor: Any, processes: "ProcessGroup | None" = None, few: bool = False
) -> Any:
    """The algorithm at work on an actor, in this process or in several.

    Args:
        spec: the run.
        env: its environment.
        actor: to start from.
        processes: those that train together.
        few: see `preferences`.

    Raises:
        TextsafeError: settings, actor and environment do not go together.
    """
    import algos

    return algos.make(
        spec.algorithm,
        env,
        actor,
        demonstrations(spec, env, actor),
        processes,
        critics=make_critics(spec, env, actor),
        data=preferences(spec, env, actor, few),
        **spec.config,
    )


def make_critics(spec: RunSpec, env: Any, actor: Any) -> Any:
    """The critics that the algorithm uses, as the policy's options have them; none where it uses none.

    Raises:
        TextsafeError: an option does not fit.
    """
    import algos
    from textsafe_gym import models

    options = {name: spec.policy[name] for name in CRITIC_OPTIONS if name in spec.policy}
    return models.make_critics(actor, env, algos.critics_of(spec.algorithm), **options)


def demonstrations(spec: RunSpec, env: Any, actor: Any) -> Any:
    """The environment's supervised pairs in the actor's form, if it has some and the algorithm wants them."""
    from textsafe_gym.models.causal_lm import CausalLMActor
    from textsafe_gym.protocols import PromptTask

    task = env.unwrapped
    if (
        not spec.config.get("ptx_coefficient")
        or not isinstance(actor, CausalLMActor)
        or not isinstance(task, PromptTask)
    ):
        return None
    rows = task.demonstrations
    return actor.demonstrations(rows, task.max_prompt_length, task.max_response_length) if rows else None


def cost_limit_of(spec: RunSpec, env: Any) -> float | None:
    """The limit on the mean cost: the algorithm's, else the environment's own.

    None without one, and where the algorithm bounds something else than the mean of all costs.
    """
    from textsafe_gym.envs.making import own_cost_limit

    if spec.config.get("constraint", "mean") != "mean" or spec.config.get("cost_limits"):
        return None
    limit = spec.config.get("cost_limit")
    return own_cost_limit(env) if limit is None else float(limit)


def check(spec: RunSpec, played: set[str] | None = None, processes: "ProcessGroup | None" = None) -> None:
    """Everything that can be wrong with a run comes out here, before a directory is made.

    Builds the environment, the policy and the algorithm and plays one episode, which also runs the scorers.

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
        gc.collect()  # models, which would otherwise lie beside the run's own for a while


def _try_out(spec: RunSpec, played: set[str] | None, processes: "ProcessGroup | None") -> None:
    env = make_env(spec, int(spec.config.get("group_size", 1)))
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
            unknown = sorted(named.keys() - rollout.named_costs.keys())
            if unknown:
                known = ", ".join(rollout.named_costs) or "none"
                raise ConfigError(
                    f"cost_limits: '{unknown[0]}' is no cost of the environment; its named costs: {known}"
                )
            if played is not None:
                played.add(key)
    finally:
        env.close()


def check_out(out: Path, resume: bool | None) -> None:
    """Refuses a directory that holds something already, cannot be made, or has nothing to resume.

    Args:
        out: the directory.
        resume: whether --resume was given; None for a command that has no such option.

    Raises:
        RunError: see above.
    """
    try:
        filled = out.is_dir() and any(out.iterdir())
        blocked = next((part for part in (out, *out.parents) if part.exists() and not part.is_dir()), None)
    except OSError as error:
        raise RunError(f"--out {out}: {error.strerror}") from None
    if blocked is not None:
        raise RunError(f"--out {out}: {blocked} is a file, not a directory")
    if filled and not resume:
        hint = "choose another" if resume is None else "add --resume to continue it, or choose another"
        raise RunError(f"--out {out} exists and is not empty; {hint}")
    if resume and not filled:
        raise RunError(f"--resume: there is nothing to resume in {out}")


def make_directory(out: Path) -> None:
    """Makes a directory and those above it.

    Raises:
        RunError: the system refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror}") from None


def same_request(spec: RunSpec, directory: Path) -> None:
    """Refuses to continue a run with other settings.

    Raises:
        ConfigError: the saved settings differ, or cannot be read.
    """
    saved = _flat(read_yaml(directory / "config.yaml").values)
    wanted = _flat(spec.as_dict())
    names = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if names:
        changes = "; ".join(f"{name} was {saved.get(name)!r}, now {wanted.get(name)!r}" for name in names)
        raise ConfigError(f"{directory / 'config.yaml'}: cannot resume with other settings: {changes}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Holds a lock for as long as a process works in a run's directory; the system frees it if the process dies."""
    with (directory / "config.yaml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{directory}: another process is at work on this run") from None
        yield


def execute(
    spec: RunSpec, directory: Path, report: Report, processes: "ProcessGroup | None" = None, track: Track | None = None
) -> dict[str, Any]:
    """Does a run, or what is left of it, in its directory.

    Args:
        spec: has passed `check`.
        directory: is made; a finished run in it is returned as it is, an unfinished one continued from its last
            checkpoint, which leads to the same result.
        report: is told of each iteration: {"done", "total", "metrics"}.
        processes: processes that do it together, of which the first alone writes.
        track: which trackers show it; TensorBoard always does.

    Returns:
        The summary.

    Raises:
        TextsafeError: settings differ from those saved, or training had to stop.
        WorkFailed: something unforeseen, with a traceback in `error.log`.
    """
    from textsafe_gym.parallel.process_group import SingleProcess

    keep_freed_memory()
    processes = processes or SingleProcess()
    with processes.together("opening the run"):
        if processes.rank == 0:
            make_directory(directory)
            if (directory / "config.yaml").exists():
                same_request(spec, directory)
            else:
                write_text(directory / "config.yaml", dump(spec.as_dict()))
    if (directory / "summary.json").exists():
        return _finished(directory / "summary.json")
    with _alone_in(directory) if processes.rank == 0 else nullcontext():
        try:
            with Tracking(spec, directory, track or Track()) as tracking:
                return _execute(spec, directory, report, processes, tracking)
        except TextsafeError:
            raise
        except Exception as error:
            log, message = directory / "error.log", f"{spec.label} seed {spec.seed}: {type(error).__name__}: {error}"
            with suppress(OSError):  # where the disk is full
                write_text(log, traceback.format_exc())
                message += f"; see {log}"
            raise WorkFailed(message) from error


def _finished(path: Path) -> dict[str, Any]:
    """A finished run's summary.

    Raises:
        DataError: it is damaged.
    """
    summary = read_json(path)
    means = summary.get("evaluation")
    if not isinstance(means, dict) or not all(isinstance(means.get(name), int | float) for name in REQUIRED):
        raise DataError(f"{path}: no 'evaluation' with reward and cost; delete it, and --resume evaluates anew")
    return summary


def saved_trainer(
    spec: RunSpec,
    env: Any,
    actor: Any,
    checkpoint: Path,
    processes: "ProcessGroup | None" = None,
    few: bool = False,
) -> Any:
    """The algorithm as a checkpoint holds it; `actor` is the one that the run started from; see `make_trainer`.

    Raises:
        RunError: the checkpoint is missing or damaged.
    """
    import algos

    return algos.load(
        checkpoint,
        env,
        actor,
        demonstrations(spec, env, actor),
        processes,
        critics=make_critics(spec, env, actor),
        data=preferences(spec, env, actor, few),
    )


def _train(
    spec: RunSpec, env: Any, actor: Any, directory: Path, report: Report, processes: "ProcessGroup", tracking: Tracking
) -> tuple[Any, list[Any]]:
    """Trains from the last checkpoint, or from the start, to the end of the budget.

    Returns:
        The trainer, and the rows of `metrics.jsonl`.
    """
    checkpoint, path = directory / CHECKPOINT, directory / "metrics.jsonl"
    aside = checkpoint.with_name(f".{checkpoint.name}.old")  # where a kill in the midst of saving leaves the old one
    if checkpoint.exists() or aside.exists():
        trainer = saved_trainer(spec, env, actor, checkpoint, processes)
    else:
        trainer = make_trainer(spec, env, actor, processes)
    rows = read_rows(path, drop_torn_tail=True)[: trainer.iteration] if path.exists() else []
    if len(rows) < trainer.iteration:
        raise RunError(f"{path}: {len(rows)} rows, but the checkpoint is of iteration {trainer.iteration}")
    processes.barrier("the start of training")  # all have read what the first is about to write
    if processes.rank == 0:
        for leftover in checkpoint.parent.glob(f".{checkpoint.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
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


def _execute(
    spec: RunSpec, directory: Path, report: Report, processes: "ProcessGroup", tracking: Tracking
) -> dict[str, Any]:
    from textsafe_gym.evaluation.play import evaluate_policy
    from textsafe_gym.evaluation.records import summarise

    started = time.perf_counter()
    env = make_env(spec, spec.num_envs // processes.world_size)
    actor = make_actor(spec, env, processes)
    reference = actor.reference()
    metrics: list[dict[str, Any]] = []
    playing: AbstractContextManager[None] = nullcontext()
    if spec.algorithm != INITIAL:
        trainer, metrics = _train(spec, env, actor, directory, report, processes, tracking)
        playing = trainer.algorithm.optimizer.engine.generating()
    elif processes.rank == 0:
        tracking.start([])
    identity = {"algorithm": spec.algorithm, "label": spec.label, "seed": spec.seed}

    def on_batch(done: int, total: int) -> None:
        report({"done": done, "total": total, "evaluating": True})

    with playing:
        rows = evaluate_policy(actor, env, spec.seed, identity, reference, on_batch, processes)
    limit = cost_limit_of(spec, env)
    # An enumerable environment knows a policy's expectations, at the temperature that its reference has.
    enumerable = isinstance(env.unwrapped, Enumerable) and actor.temperature == 1
    exactly = {"exact": env.unwrapped.evaluate(actor.model)._asdict()} if enumerable else {}
    env.close()
    speeds = [row["tokens_per_second"] for row in metrics if row.get("tokens_per_second")]
    summary = {
        **identity,
        "cost_limit": limit,
        "episodes": metrics[-1]["episodes"] if metrics else 0,
        "pairs": metrics[-1].get("pairs", 0) if metrics else 0,
        "seconds": round(time.perf_counter() - started, 2),
        "evaluation": summarise(rows, limit),
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
