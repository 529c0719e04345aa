"""Safe reinforcement learning algorithms for any Gymnasium environment that reports `info["cost"]`.

Every module in this folder that holds a `Config` and an `Algorithm` is one, under the module's name; `register` adds
one that is defined elsewhere.
"""

import ast
import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from textsafe_gym.errors import ConfigError, RunError, UnknownNameError
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.protocols import Actor, Critics
    from textsafe_gym.types import Demonstrations, Preferences


OMNISAFE = "omnisafe:"


class _Definition(NamedTuple):
    """What makes an algorithm."""

    config: Any
    algorithm: Any


_registered: dict[str, _Definition] = {}


def available() -> dict[str, str]:
    """Each algorithm's name and one line about it, read without importing any."""
    outside = {name: (own.algorithm.__doc__ or "").partition("\n")[0] for name, own in _registered.items()}
    return _of_this_folder() | outside


def register(name: str, config: type, algorithm: type) -> None:
    """Makes an algorithm that is defined elsewhere known to `make`, `load` and `available` in this process.

    Args:
        name: what it is called from now on; one that was registered before is replaced.
        config: its settings, a subclass of `algos.core.optim.TrainingConfig`.
        algorithm: made from an `algos.core.optim.Setup`; what it needs is `algos.core.loop.Algorithm`.

    Raises:
        ConfigError: the name is one of this folder's.
    """
    if name in _of_this_folder():
        raise ConfigError(f"'{name}' is an algorithm of this package; register yours under another name")
    _registered[name] = _Definition(config, algorithm)


def _of_this_folder() -> dict[str, str]:
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if {"Config", "Algorithm"} <= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def config_class(name: str) -> type[Any]:
    """The pydantic model of an algorithm's settings.

    Args:
        name: one of `available()`, or "omnisafe:" and the name of one of OmniSafe's on-policy algorithms.

    Raises:
        UnknownNameError: no such algorithm; the message offers the nearest.
        ConfigError: OmniSafe is asked for and not installed.
    """
    found: type[Any] = _definition(name).config
    return found


def critics_of(name: str) -> tuple[str, ...]:
    """The critics that an algorithm uses: "reward", "cost", both or none.

    Raises:
        UnknownNameError: no such algorithm.
    """
    found: tuple[str, ...] = _definition(name).algorithm.critics
    return found


def source_of(name: str) -> str:
    """What an algorithm learns from: "rollouts" or "preferences".

    Raises:
        UnknownNameError: no such algorithm.
    """
    found: str = _definition(name).algorithm.source
    return found


def _hint(name: str) -> str:
    from algos.omnisafe import names

    theirs = {full.removeprefix(OMNISAFE).lower(): full for full in names()}
    if name.lower() in theirs.keys() - available().keys():
        return f"did you mean '{theirs[name.lower()]}'?"
    return nearest(name, list(available()))


def _definition(name: str) -> _Definition:
    if name.startswith(OMNISAFE):
        from algos.omnisafe import Algorithm, config_class

        made: Any = partial(Algorithm, name)
        made.source, made.critics = Algorithm.source, Algorithm.critics
        return _Definition(config_class(name), made)
    if name not in available():
        raise UnknownNameError(f"unknown algorithm '{name}'; {_hint(name)}")
    if name in _registered:
        return _registered[name]
    module = importlib.import_module(f"algos.{name}")
    return _Definition(module.Config, module.Algorithm)


def make(
    name: str,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Actor | str | Path | None" = None,
    demonstrations: "Demonstrations | None" = None,
    processes: "ProcessGroup | None" = None,
    *,
    critics: "Critics | None" = None,
    data: "Preferences | None" = None,
    **config: Any,
) -> "Trainer":
    """An algorithm ready to learn.

    Args:
        name: one of `available()`, or "omnisafe:PPOLag" and the like.
        env: an id, an environment or a vector environment. An id or a single registered environment is made anew as a
            vector environment of `episodes_per_iteration`; one that is not registered plays one episode at a time.
        policy: the actor to start from: an object, or a model folder or hub id; by default the one that suits the
            environment.
        demonstrations: supervised episodes for the PTX term; without them there is none.
        processes: those that train together, such as `textsafe_gym.parallel.deepspeed.start` gives; without them,
            this one.
        critics: of that actor; by default the ones that the algorithm uses are made, as heads or networks of their own.
        data: labelled pairs, for an algorithm that learns from preferences.
        **config: fields of the algorithm's `Config`.

    Returns:
        A trainer: `.learn()`, `.save(directory)`, `.actor`, `.algorithm`.

    Raises:
        UnknownNameError: no such algorithm or environment.
        ConfigError: a setting is unknown or wrong, or what the algorithm learns from is missing.
        ModelError: the policy cannot be loaded or does not fit.
    """
    from algos.core.loop import Trainer
    from algos.core.optim import Setup
    from algos.core.sources import Pairs, Rollouts, planned
    from textsafe_gym.config import Settings, validate
    from textsafe_gym.envs.making import own_cost_limit, vectorised
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.types import Agent

    own = _definition(name)
    settings = validate(own.config, Settings(config), name)
    processes = processes or SingleProcess()
    check_processes(name, processes)
    offline = own.algorithm.source == "preferences"
    if offline and data is None:
        raise ConfigError(f"{name} learns from labelled pairs; give data=<Preferences> (--data FILE)")
    if not offline and data is not None:
        raise ConfigError(f"{name} learns from what it samples; leave data out, or take an algorithm such as dpo")
    if offline and demonstrations is not None:
        raise ConfigError(f"{name} has no PTX term; leave demonstrations out")
    vector = vectorised(env, 1 if offline else max(1, settings.episodes_per_iteration // processes.world_size))
    own_policy = policy is None
    actor, made = _actor_and_critics(vector, policy, own.algorithm.critics, settings.seed)
    agent = Agent(actor, critics if critics is not None else made, actor.reference())
    limit = settings.cost_limit if settings.cost_limit is not None else own_cost_limit(vector)
    iterations = planned(settings, 0 if data is None else len(data))
    algorithm = own.algorithm(Setup(agent, settings, limit, iterations, demonstrations, processes, vector))
    source: Any
    if data is not None:
        source = Pairs(data, settings)
    else:
        source = Rollouts(agent, vector, settings, processes, algorithm.optimizer.engine)
    return Trainer(name, algorithm, source, settings, own_policy)


def check_processes(name: str, processes: "ProcessGroup") -> None:
    """Refuses what an algorithm cannot do in several processes.

    Raises:
        ConfigError: it sets the policy's weights itself, which DeepSpeed keeps in parts, or brings its own optimisers.
    """
    from algos.core.trust_region import TrustRegionConfig
    from textsafe_gym.parallel.process_group import SingleProcess

    if isinstance(processes, SingleProcess):
        return
    if name.startswith(OMNISAFE):
        raise ConfigError(f"{name} steps the policy by optimisers of its own; leave --deepspeed out")
    if issubclass(config_class(name), TrustRegionConfig):
        raise ConfigError(
            f"{name} sets the policy's weights itself, which DeepSpeed cannot split; leave --deepspeed out"
        )


def load(
    directory: str | Path,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Actor | str | Path | None" = None,
    demonstrations: "Demonstrations | None" = None,
    processes: "ProcessGroup | None" = None,
    *,
    critics: "Critics | None" = None,
    data: "Preferences | None" = None,
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
        raise RunError(f"'{directory}' is no checkpoint of a trainer; give the folder that `save` wrote")
    if policy is None and not state["own_policy"]:
        raise RunError(
            f"the run in '{directory}' began from a policy of the caller's; give the same again: load(..., policy=...)"
        )
    trainer = make(state["name"], env, policy, demonstrations, processes, critics=critics, data=data, **state["config"])
    trainer.own_policy = state["own_policy"]
    trainer.restore(state)
    return trainer


def _actor_and_critics(
    env: Any, policy: "Actor | str | Path | None", kinds: tuple[str, ...], seed: int
) -> "tuple[Actor, Critics | None]":
    import torch

    from textsafe_gym.models import make_actor, make_critics

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a fresh network's weights
        actor = make_actor(env, policy) if policy is None or isinstance(policy, str | Path) else policy
        return actor, make_critics(actor, env, kinds)
