"""Rollouts: whole episodes of an actor in a vector environment."""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError
from textsafe_gym.models import reads_tokens
from textsafe_gym.protocols import ResponseTask

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.protocols import Actor, Critics, Reference
    from textsafe_gym.types import Rollout


def collect(
    actor: "Actor",
    env: "gym.vector.VectorEnv",
    seed: int,
    *,
    critics: "Critics | None" = None,
    reference: "Reference | None" = None,
    group_size: int = 1,
    share: tuple[int, int] = (0, 1),
) -> "Rollout":
    """Plays `env.num_envs` whole episodes, one in each sub-environment.

    A language model in a text environment's own vector form generates whole responses, which are played at once. Any
    other actor, and a language model in a wrapped or foreign text environment, goes step by step.

    Args:
        actor: acts.
        env: a vector environment of any autoreset mode.
        seed: every draw follows from it.
        critics: their values are recorded; without them there are none.
        reference: its log-probs are recorded; without it there are none, and no KL.
        group_size: sub-environments are reset alike in groups of so many neighbours; divides their number.
        share: (i, n) plays the i-th of n equal parts of what n times as many sub-environments would play.

    Raises:
        ConfigError: the environment does not report a cost, or cannot be shared.
        ModelError: actor and environment do not fit, or something is not finite.
    """
    from textsafe_gym.models.causal_lm import CausalLMActor

    if isinstance(actor, CausalLMActor):
        changing = _changes_steps(env) if isinstance(env.unwrapped, ResponseTask) else type(env.unwrapped).__name__
        if changing is None:
            from textsafe_gym.rollouts.responses import play_responses

            language: Any = critics  # those that `make_critics` makes for a language model
            return play_responses(actor, env, seed, language, reference, group_size, share)
        if reads_tokens(env):
            _say_that_tokens_are_stepped(changing)
    from textsafe_gym.rollouts.stepping import play_steps

    if share[1] > 1:
        raise ConfigError("only whole responses of a language model can be shared by several processes; start one")
    return play_steps(actor, env, seed, critics, reference, group_size)


@cache
def _say_that_tokens_are_stepped(changing: str) -> None:
    """Once for each kind of environment."""
    logging.getLogger(__name__).warning(
        "responses are played token by token through %s: each token costs a step of every sub-environment, and each "
        "finished response a call of the score models of its own; a text environment of gymnasium.make_vec without "
        "wrappers plays and scores whole batches",
        changing,
    )


def _changes_steps(env: "gym.vector.VectorEnv") -> str | None:
    """The name of the outermost wrapper that has a `step` of its own, or of the limit that cuts episodes; else none."""
    import gymnasium as gym

    layer: Any = env
    task: Any = env.unwrapped
    while layer is not task:
        if type(layer).step is not gym.vector.VectorWrapper.step:
            return type(layer).__name__
        layer = layer.env
    limit = task.max_episode_steps
    return None if limit is None else f"max_episode_steps={limit}"
