"""Actors, critics and score models; importing this loads no model library."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.protocols import PromptTask

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.models.score import ScoreModel
    from textsafe_gym.protocols import Actor, Critics

CRITICS = ("heads", "separate")


def make_actor(env: "gym.vector.VectorEnv", model: str | Path | None = None, **options: Any) -> "Actor":
    """The actor that suits an environment.

    Args:
        env: a vector environment; one whose observations are tokens gets a language model, any other an MLP.
        model: the language model's folder or hub id; by default the environment's own `default_policy`.
        **options: of `CausalLMActor.load` or of `MLPActor`.

    Raises:
        ModelError: there is no model to load, it does not fit, or an MLP was asked to load one.
        ConfigError: an option is wrong, or the spaces are for no actor.
    """
    from gymnasium.vector import AsyncVectorEnv

    from textsafe_gym.models.mlp import CONFIG, MLPActor

    if reads_tokens(env):
        from textsafe_gym.models.causal_lm import CausalLMActor

        task = task_of(env)
        source = task.default_policy if model is None and isinstance(task, PromptTask) else model
        if source is None and isinstance(env.unwrapped, AsyncVectorEnv):
            raise ModelError(
                "the policy of an environment in processes of its own is out of reach; leave "
                "vectorization_mode='async' out, or give a model's folder or hub id"
            )
        if source is None:
            raise ModelError("this environment brings no policy of its own; give a model's folder or hub id")
        if isinstance(source, tuple):
            begin, tokenizer = source
            return CausalLMActor(copy.deepcopy(begin), tokenizer, **options)
        if Path(source, CONFIG).is_file():
            raise ModelError(
                f"policy '{source}' is a multilayer perceptron, which reads no texts; name its environment"
            )
        return CausalLMActor.load(source, **options)
    if model is not None:
        return MLPActor.load(model, **options)
    return MLPActor(env.single_observation_space, env.single_action_space, **options)


def make_critics(
    actor: "Actor",
    env: "gym.vector.VectorEnv",
    kinds: Sequence[str],
    critics: str = "heads",
    reward_critic: "ScoreModel | str | Path | None" = None,
    cost_critic: "ScoreModel | str | Path | None" = None,
) -> "Critics | None":
    """The critics that suit an actor; none where no kind is asked for.

    Args:
        actor: made by `make_actor`, or by hand.
        env: a vector environment, whose reward and cost model separate critics of a language model begin as.
        kinds: "reward", "cost", both or none.
        critics: of a language model: "heads" on its trunk, or "separate" models.
        reward_critic: a score model, or where one lies, that a separate critic begins as instead.
        cost_critic: likewise.

    Raises:
        ConfigError: an option is wrong.
        ModelError: a separate critic has no model to begin as, or one that does not fit.
    """
    given = {"reward": reward_critic, "cost": cost_critic}
    for kind, source in given.items():
        if source is not None and kind not in kinds:
            logging.getLogger(__name__).warning("%s_critic is not used: the algorithm has no %s critic", kind, kind)
    if not kinds:
        return None
    from textsafe_gym.models.mlp import MLPActor, MLPCritics

    if isinstance(actor, MLPActor):
        if critics != "heads" or any(source is not None for source in given.values()):
            raise ConfigError("critics, reward_critic and cost_critic are for language models; an MLP's are MLPs")
        return MLPCritics(actor, kinds)
    from textsafe_gym.models.critics import HeadCritics, SeparateCritics

    language_actor: Any = actor
    if critics == "heads":
        if reward_critic is not None or cost_critic is not None:
            raise ModelError("critics='heads' takes no reward_critic or cost_critic; set critics='separate'")
        return HeadCritics(language_actor, kinds)
    if critics != "separate":
        raise ModelError(f"critics='{critics}' is unknown; known: {', '.join(CRITICS)}")
    task = task_of(env)
    own = task.score_models if isinstance(task, PromptTask) else {}
    sources = {kind: own.get(kind) if given[kind] is None else given[kind] for kind in kinds}
    return SeparateCritics(language_actor, sources)


def reads_tokens(env: "gym.vector.VectorEnv") -> bool:
    """Whether a vector environment's observations are texts in tokens, in their own batched form or copied."""
    from gymnasium.spaces import Dict

    space = env.single_observation_space
    return isinstance(space, Dict) and "input_ids" in space.spaces


def task_of(env: "gym.vector.VectorEnv") -> object:
    """The base of a vector environment, or of the first of its sub-environments where it is Gymnasium's own."""
    from gymnasium.vector import SyncVectorEnv

    base = env.unwrapped
    return base.envs[0].unwrapped if isinstance(base, SyncVectorEnv) else base


def load_policy(source: str | Path, **options: Any) -> "Actor":
    """Loads what an actor's `save` wrote, whichever kind it is.

    Args:
        source: its folder or hub id; of a run, `RUN/checkpoints/latest/policy`.
        **options: of `CausalLMActor.load` or of `MLPActor.load`.

    Raises:
        ModelError: missing or corrupt.
    """
    from textsafe_gym.models import mlp
    from textsafe_gym.models.files import find_file

    if find_file(source, mlp.CONFIG) is not None:
        return mlp.MLPActor.load(source, **options)
    from textsafe_gym.models.causal_lm import CausalLMActor

    return CausalLMActor.load(source, **options)
