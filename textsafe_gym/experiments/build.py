"""What a run is made of: its environment, its policy and its algorithm, from its specification."""

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError, TextsafeError, UnknownNameError
from textsafe_gym.experiments.data import load_data
from textsafe_gym.experiments.spec import INITIAL, RunSpec, call
from textsafe_gym.installation import shipped
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.offline.demonstrations import Demonstrations
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.protocols import Actor, Critics

# Below so many parameters a second thread costs more than it gives, and one thread makes results repeat exactly.
_SMALL = 10_000_000

CRITIC_OPTIONS = ("critics", "reward_critic", "cost_critic")  # those of the policy's that are its critics'


def make_env(spec: RunSpec, num_envs: int) -> "gym.vector.VectorEnv":
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
    except TypeError as error:
        # What Python says of a class without a constructor, which names no argument.
        if not kwargs or _takes(env_id) or "takes no arguments" not in str(error):
            raise
        name = next(iter(kwargs))
        raise ConfigError(f"env {env_id}: takes no arguments, so that '{name}' cannot be set") from None
    except gym.error.UnregisteredEnv as error:
        hint = "" if "did you mean" in str(error).lower() else f"; {nearest(env_id, [*ENVIRONMENTS, *shipped('env')])}"
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


def make_actor(spec: RunSpec, env: "gym.vector.VectorEnv", processes: "ProcessGroup | None" = None) -> "Actor":
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
    actor = call(models.make_actor, "policy", options, env)
    # All of them, as a LoRA of few parameters may sit on a large model.
    if sum(parameter.numel() for parameter in actor.parameters()) < _SMALL:
        torch.set_num_threads(1)
    return actor


def make_trainer(
    spec: RunSpec,
    env: "gym.vector.VectorEnv",
    actor: "Actor",
    processes: "ProcessGroup | None" = None,
    few: bool = False,
) -> "Trainer":
    """The algorithm at work on an actor, in this process or in several.

    Args:
        spec: the run.
        env: its environment.
        actor: to start from.
        processes: those that train together.
        few: see `load_data`.

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
        data=load_data(spec, env, actor, few),
        preset=spec.preset,
        **spec.config,
    )


def make_critics(spec: RunSpec, env: "gym.vector.VectorEnv", actor: "Actor") -> "Critics | None":
    """The critics that the algorithm uses, as the policy's options have them; none where it uses none.

    Raises:
        TextsafeError: an option does not fit.
    """
    import algos
    from textsafe_gym import models

    options = {name: spec.policy[name] for name in CRITIC_OPTIONS if name in spec.policy}
    return models.make_critics(actor, env, algos.critics_of(spec.algorithm), **options)


def demonstrations(spec: RunSpec, env: "gym.vector.VectorEnv", actor: "Actor") -> "Demonstrations | None":
    """The environment's supervised pairs in the actor's form, if it has some and the algorithm wants them."""
    from textsafe_gym.models import task_of
    from textsafe_gym.offline.demonstrations import Demonstrations
    from textsafe_gym.protocols import PromptTask, TextActor

    task = task_of(env)
    if not spec.config.get("ptx_coefficient") or not isinstance(actor, TextActor) or not isinstance(task, PromptTask):
        return None
    rows = task.demonstrations
    budgets = task.max_prompt_length, task.max_response_length
    return Demonstrations.encode(rows, actor, *budgets) if rows else None


def cost_limit_of(spec: RunSpec, env: "gym.vector.VectorEnv") -> float | None:
    """The limit on the mean cost: the algorithm's, else the environment's own.

    None without one, and where the algorithm bounds something else than the mean of all costs.
    """
    from textsafe_gym.envs.making import own_cost_limit

    if spec.config.get("constraint", "mean") != "mean" or spec.config.get("cost_limits"):
        return None
    limit = spec.config.get("cost_limit")
    return own_cost_limit(env) if limit is None else float(limit)


def cost_limits_of(spec: RunSpec) -> dict[str, float]:
    """The algorithm's limits on the means of named costs; empty where it has none, or bounds something else."""
    return dict(spec.config.get("cost_limits") or {}) if spec.config.get("constraint", "mean") == "mean" else {}


def problem_of(spec: RunSpec) -> dict[str, object] | None:
    """The problem that a run's algorithm solves: what is bounded, what a cost weighs without that, and β.

    None where it states none; see `algos.core.settings.StepConfig.problem`.
    """
    import algos

    if spec.algorithm == INITIAL:
        return None
    own = algos.definition(spec.algorithm)
    constraint = own.problem(own.config.model_validate(spec.config))
    weights = {"cost_weight": spec.config.get("cost_weight", 0.0), "kl_coefficient": spec.config.get("kl_coefficient")}
    return None if constraint is None else {"constraint": constraint, **weights}


def saved_trainer(
    spec: RunSpec,
    env: "gym.vector.VectorEnv",
    actor: "Actor",
    checkpoint: Path,
    processes: "ProcessGroup | None" = None,
) -> "Trainer":
    """The algorithm as a checkpoint holds it; `actor` is the one that the run started from.

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
        data=load_data(spec, env, actor),
    )
