"""Safe reinforcement learning algorithms for any Gymnasium environment that reports `info["cost"]`.

`algos.registration` says which there are, and how to add one.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from algos.registration import available, config_class, definition, members, register
from textsafe_gym.errors import ConfigError, RunError, UnknownNameError
from textsafe_gym.presets import SMALL

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.types import Demonstrations, Policy

__all__ = ["available", "check_processes", "config_class", "definition", "load", "make", "members", "register"]


def make(
    name: str,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Policy | str | Path | None" = None,
    demonstrations: "Demonstrations | None" = None,
    processes: "ProcessGroup | None" = None,
    preset: str = SMALL,
    **config: Any,
) -> "Trainer":
    """An algorithm ready to learn.

    Args:
        name: one of `available()` or `members()`, or "MODULE:CLASS" for a class of your own.
        env: an id, an environment or a vector environment. An id or a single registered environment is made anew as a
            vector environment of `episodes_per_iteration`; one that is not registered, or whose wrappers cannot be made
            again, plays one episode at a time.
        policy: an object, or a model folder or hub id; by default the one that suits the environment.
        demonstrations: supervised episodes for the PTX term; without them there is none.
        processes: those that train together, such as `textsafe_gym.parallel.deepspeed.start` gives; without them,
            this one.
        preset: the settings to begin with: "small", as the command line and the examples have it, which suits the
            embedded world and small models; or "paper", the official script's for billions of weights.
        **config: fields of the algorithm's `Config`, over those of the preset.

    Returns:
        A trainer: `.learn()`, `.save(directory)`, `.policy`, `.algorithm`.

    Raises:
        UnknownNameError: no such algorithm, preset or environment.
        ConfigError: a setting is unknown or wrong.
        ModelError: the policy cannot be loaded or does not fit.
    """
    from algos.core.loop import Trainer, plan
    from algos.core.optim import Setup
    from textsafe_gym.config import Settings, merge, validate
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.presets import preset_settings
    from textsafe_gym.types import own_cost_limit

    own = definition(name)
    given = merge(preset_settings(preset, name, own.config), Settings(config))
    settings = validate(own.config, Settings(given.values), name)
    processes = processes or SingleProcess()
    check_processes(name, processes)
    vector = _vectorised(env, max(1, settings.episodes_per_iteration // processes.world_size))
    own_policy = policy is None
    if policy is None or isinstance(policy, str | Path):
        policy = _make_policy(vector, policy, settings.seed)
    limit = settings.cost_limit if settings.cost_limit is not None else own_cost_limit(vector)
    algorithm = own.algorithm(Setup(policy, settings, limit, plan(settings), demonstrations, processes, vector))
    return Trainer(name, algorithm, vector, settings, limit, own_policy)


def check_processes(name: str, processes: "ProcessGroup") -> None:
    """Refuses what an algorithm cannot do in several processes.

    Raises:
        ConfigError: it sets the policy's weights itself, which DeepSpeed keeps in parts, or brings its own optimisers.
    """
    from algos.core.trust_region import TrustRegionConfig
    from textsafe_gym.parallel.process_group import SingleProcess

    if isinstance(processes, SingleProcess):
        return
    own = definition(name)
    if own.one_process:
        raise ConfigError(f"{name} {own.one_process}; leave --deepspeed out")
    if issubclass(own.config, TrustRegionConfig):
        raise ConfigError(
            f"{name} sets the policy's weights itself, which DeepSpeed cannot split; leave --deepspeed out"
        )


def load(
    directory: str | Path,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Policy | str | Path | None" = None,
    demonstrations: "Demonstrations | None" = None,
    processes: "ProcessGroup | None" = None,
) -> "Trainer":
    """A trainer that continues from a checkpoint as if it had never stopped.

    Args:
        directory: what `Trainer.save` wrote.
        env: as for `make`.
        policy: what was given to `make`: the policy that training *started* from, whose frozen copy the KL is measured
            to; its trained tensors come from the checkpoint.
        demonstrations: as for `make`.
        processes: as for `make`; not necessarily of as many processes as before.

    Raises:
        RunError: there is no checkpoint, it is damaged, or it does not fit.
    """
    from algos.core.checkpoint import load_checkpoint

    state = load_checkpoint(Path(directory))
    if not {"name", "config", "iteration", "own_policy"} <= state.keys():
        raise RunError(f"'{directory}' is no checkpoint of a trainer; give the folder that `save` wrote")
    if policy is None and not state["own_policy"]:
        raise RunError(
            f"the run in '{directory}' began from a policy of the caller's; give the same again: load(..., policy=...)"
        )
    trainer = make(state["name"], env, policy, demonstrations, processes, **state["config"])
    trainer.own_policy = state["own_policy"]
    trainer.restore(state)
    return trainer


def _vectorised(env: Any, episodes: int) -> "gym.vector.VectorEnv":
    import gymnasium as gym

    from textsafe_gym.models import check_plain
    from textsafe_gym.models.infos import make_vec

    if isinstance(env, gym.vector.VectorEnv):
        return env
    try:
        if isinstance(env, str):
            return make_vec(env, episodes)
        if isinstance(env, gym.Env):
            # Gymnasium notes no arguments of a wrapper that is no `gymnasium.utils.RecordConstructorArgs`.
            if env.spec is None or any(wrapper.kwargs is None for wrapper in env.spec.additional_wrappers):
                check_plain(env.observation_space)
                return gym.vector.SyncVectorEnv([lambda: env])
            if not env.spec.additional_wrappers:
                return make_vec(env.spec, episodes)
            check_plain(env.observation_space)
            return make_vec(env.spec, episodes, vectorization_mode="sync")  # one of its own has no place for wrappers
    except (gym.error.Error, ModuleNotFoundError) as error:
        if getattr(error, "name", None):
            raise  # the module of "module:id" is there and lacks another
        raise UnknownNameError(f"cannot make the environment: {' '.join(str(error).split())}") from None
    raise ConfigError(f"env is a {type(env).__name__}; give an id, a gymnasium.Env or a gymnasium.vector.VectorEnv")


def _make_policy(env: Any, model: str | Path | None, seed: int) -> "Policy":
    import torch

    from textsafe_gym.models import make_policy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a fresh network's weights
        return make_policy(env, model=model)
