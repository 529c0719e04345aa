"""Safe reinforcement learning algorithms for any Gymnasium environment that reports `info["cost"]`.

`algos.registration` says which there are, and how to add one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from algos.registration import available, config_class, definition, members, register
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.extras import require
from textsafe_gym.presets import SMALL, preset_settings

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.protocols import Actor, Critics, OfflineData

require("train")

__all__ = [
    "available",
    "check_processes",
    "config_class",
    "critics_of",
    "definition",
    "load",
    "make",
    "members",
    "register",
]


def make(
    name: str,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Actor | str | Path | None" = None,
    demonstrations: "OfflineData | None" = None,
    processes: "ProcessGroup | None" = None,
    *,
    critics: "Critics | None" = None,
    data: "OfflineData | None" = None,
    preset: str = SMALL,
    **config: object,
) -> "Trainer":
    """An algorithm ready to learn.

    Args:
        name: one of `available()` or `members()`, or "MODULE:CLASS" for a class of your own.
        env: an id, an environment or a vector environment. An id or a single registered environment is made anew as a
            vector environment of `episodes_per_iteration`, and refused if it was changed since; one that is not
            registered, as of a subclass, plays one episode at a time.
        policy: to start from: an actor, or a model folder or hub id; by default the one that suits the environment.
        demonstrations: supervised episodes for the PTX term; without them there is none.
        processes: those that train together, such as `textsafe_gym.parallel.deepspeed.start` gives; without them,
            this one.
        critics: of that actor; by default the ones that the algorithm uses are made, as heads or networks of their own.
        data: what an algorithm learns from that samples nothing, of the kind that it declares.
        preset: the settings to begin with: "small", as the command line and the examples have it, which suits the
            embedded world and small models; or "paper", the official script's for billions of weights.
        **config: fields of the algorithm's `Config`, over those of the preset.

    Returns:
        A trainer: `.learn()`, `.save(directory)`, `.actor`, `.algorithm`.

    Raises:
        UnknownNameError: no such algorithm, preset or environment.
        ConfigError: a setting is unknown or wrong, or what the algorithm learns from is missing.
        ModelError: the policy cannot be loaded or does not fit.
    """
    from algos.core.loop import Setup, Trainer
    from algos.core.sources import Dataset, Rollouts, planned
    from textsafe_gym.config import Settings, merge, validate
    from textsafe_gym.envs.making import check_cost_names, own_cost_limit, vectorised
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.protocols import CostTask
    from textsafe_gym.types import Agent

    own = definition(name)
    given = merge(preset_settings(preset, name, own.config), Settings(config))
    settings = validate(own.config, Settings(given.values), name, listed=f"textsafe algos {name}")
    processes = processes or SingleProcess()
    check_processes(name, processes)
    if own.offline and not isinstance(data, own.kind):
        raise ConfigError(f"{name} learns from {own.kind.counted}; give data=<{own.kind.__name__}> (--data FILE)")
    if not own.offline and data is not None:
        raise ConfigError(f"{name} learns from what it samples; leave data out, or take an algorithm such as dpo")
    if own.offline and demonstrations is not None:
        raise ConfigError(f"{name} has no PTX term; leave demonstrations out")
    vector = vectorised(env, 1 if own.offline else max(1, settings.episodes_per_iteration // processes.world_size))
    own_policy = policy is None
    actor, made = _actor_and_critics(vector, policy, own.critics, settings.seed)
    agent = Agent(actor, critics if critics is not None else made, actor.reference())
    limit = settings.cost_limit if settings.cost_limit is not None else own_cost_limit(vector)
    iterations = planned(settings, 0 if data is None else len(data))
    algorithm = own.algorithm(Setup(agent, settings, limit, iterations, demonstrations, processes, vector))
    # Where a wrapper may add costs, the first iteration shows which there are.
    if isinstance(vector, CostTask) and vector.unwrapped is vector:
        check_cost_names(given.section("cost_limits").values, vector.cost_names)
    source: Rollouts | Dataset
    if data is not None:
        source = Dataset(data, settings)
    else:
        source = Rollouts(agent, vector, settings, processes, algorithm.optimizer.engine)
    return Trainer(name, algorithm, source, vector, settings, own_policy, preset)


def critics_of(name: str) -> tuple[str, ...]:
    """The critics that an algorithm uses: "reward", "cost", both or none.

    Raises:
        UnknownNameError: no such algorithm.
    """
    return definition(name).critics


def check_processes(name: str, processes: "ProcessGroup") -> None:
    """Refuses what an algorithm cannot do in several processes.

    Raises:
        ConfigError: it sets the policy's weights itself, which DeepSpeed keeps in parts, or brings its own optimisers.
    """
    from algos.core.settings import TrustRegionConfig
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
    policy: "Actor | str | Path | None" = None,
    demonstrations: "OfflineData | None" = None,
    processes: "ProcessGroup | None" = None,
    *,
    critics: "Critics | None" = None,
    data: "OfflineData | None" = None,
) -> "Trainer":
    """A trainer that continues from a checkpoint as if it had never stopped.

    Args:
        directory: what `Trainer.save` wrote.
        env: as for `make`.
        policy: what was given to `make`: the policy that training *started* from, whose frozen copy the KL is measured
            to; its trained tensors come from the checkpoint.
        demonstrations: as for `make`.
        critics: as for `make`.
        data: as for `make`.
        processes: as for `make`; not necessarily of as many processes as before.

    Raises:
        RunError: there is no checkpoint, it is damaged, or it does not fit.
    """
    from algos.core.checkpoint import load_checkpoint

    state = load_checkpoint(Path(directory))
    if not {"name", "config", "iteration", "own_policy"} <= state.keys():
        raise RunError(f"'{directory}' is not a checkpoint of a trainer; give the folder that `save` wrote")
    if policy is None and not state["own_policy"]:
        raise RunError(
            f"the run in '{directory}' began from a policy of the caller's; give the same again: load(..., policy=...)"
        )
    held = {"preset": state.get("preset", SMALL), **state["config"]}
    trainer = make(state["name"], env, policy, demonstrations, processes, critics=critics, data=data, **held)
    trainer.own_policy = state["own_policy"]
    trainer.restore(state)
    return trainer


def _actor_and_critics(
    env: "gym.vector.VectorEnv", policy: "Actor | str | Path | None", kinds: tuple[str, ...], seed: int
) -> "tuple[Actor, Critics | None]":
    import torch

    from textsafe_gym.models import make_actor, make_critics

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a fresh network's weights
        actor = make_actor(env, policy) if policy is None or isinstance(policy, str | Path) else policy
        return actor, make_critics(actor, env, kinds)
