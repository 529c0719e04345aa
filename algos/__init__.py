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
from textsafe_gym.extras import require
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from algos.core.loop import Trainer
    from textsafe_gym.parallel.process_group import ProcessGroup
    from textsafe_gym.types import Demonstrations, Policy

require("train")

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


def _hint(name: str) -> str:
    from algos.omnisafe import names

    theirs = {full.removeprefix(OMNISAFE).lower(): full for full in names()}
    if name.lower() in theirs.keys() - available().keys():
        return f"did you mean '{theirs[name.lower()]}'?"
    return nearest(name, list(available()))


def _definition(name: str) -> _Definition:
    if name.startswith(OMNISAFE):
        from algos.omnisafe import Algorithm, config_class

        return _Definition(config_class(name), partial(Algorithm, name))
    if name not in available():
        raise UnknownNameError(f"unknown algorithm '{name}'; {_hint(name)}")
    if name in _registered:
        return _registered[name]
    module = importlib.import_module(f"algos.{name}")
    return _Definition(module.Config, module.Algorithm)


def make(
    name: str,
    env: "gym.Env | gym.vector.VectorEnv | str",
    policy: "Policy | str | Path | None" = None,
    demonstrations: "Demonstrations | None" = None,
    processes: "ProcessGroup | None" = None,
    **config: Any,
) -> "Trainer":
    """An algorithm ready to learn.

    Args:
        name: one of `available()`, or "omnisafe:PPOLag" and the like.
        env: an id, an environment or a vector environment. An id or a single registered environment is made anew as a
            vector environment of `episodes_per_iteration`; one that is not registered, or whose wrappers cannot be made
            again, plays one episode at a time.
        policy: an object, or a model folder or hub id; by default the one that suits the environment.
        demonstrations: supervised episodes for the PTX term; without them there is none.
        processes: those that train together, such as `textsafe_gym.parallel.deepspeed.start` gives; without them,
            this one.
        **config: fields of the algorithm's `Config`.

    Returns:
        A trainer: `.learn()`, `.save(directory)`, `.policy`, `.algorithm`.

    Raises:
        UnknownNameError: no such algorithm or environment.
        ConfigError: a setting is unknown or wrong.
        ModelError: the policy cannot be loaded or does not fit.
    """
    from algos.core.loop import Trainer, plan
    from algos.core.optim import Setup
    from textsafe_gym.config import Settings, validate
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.types import own_cost_limit

    own = _definition(name)
    settings = validate(own.config, Settings(config), name)
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
    if name.startswith(OMNISAFE):
        raise ConfigError(f"{name} steps the policy by optimisers of its own; leave --deepspeed out")
    if issubclass(config_class(name), TrustRegionConfig):
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
