"""Rollouts: whole episodes of an actor in a vector environment."""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models import reads_tokens
from textsafe_gym.protocols import ResponseTask

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np
    from torch import Tensor

    from textsafe_gym.models.causal_lm import CausalLMActor
    from textsafe_gym.models.critics import LanguageCritics
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
            import torch

            language: Any = critics  # those that `make_critics` makes for a language model
            with torch.no_grad():
                return _play_responses(actor, env, seed, language, reference, group_size, share)
        if reads_tokens(env):
            _say_that_tokens_are_stepped(changing)
    from textsafe_gym.rollouts.stepping import play_steps

    if share[1] > 1:
        raise ConfigError("only whole responses of a language model can be shared by several processes; start one")
    return play_steps(actor, env, seed, critics, reference, group_size)


def _play_responses(
    actor: "CausalLMActor",
    env: "gym.vector.VectorEnv",
    seed: int,
    critics: "LanguageCritics | None",
    reference: "Reference | None",
    group_size: int,
    share: tuple[int, int],
) -> "Rollout":
    """One whole response in each sub-environment, generated with a cache and played at once; see `collect`, which has
    seen to it that the environment's base is a `ResponseTask` and none of its wrappers changes a step.

    Raises:
        ModelError: the environment's vocabulary is not the actor's.
    """
    import numpy as np
    import torch

    from textsafe_gym.models.encoding import same_vocabulary, vocabularies_differ
    from textsafe_gym.models.sampling import generate
    from textsafe_gym.types import Rollout, group_numbers

    task: Any = env.unwrapped
    if not same_vocabulary(actor.tokenizer, task.tokenizer):
        raise ModelError(vocabularies_differ(actor.tokenizer, task.tokenizer))
    groups = group_numbers(env.num_envs, group_size)
    together = share[1] * env.num_envs
    mine = slice(share[0] * env.num_envs, (share[0] + 1) * env.num_envs)
    starts, rows = (np.random.SeedSequence([seed, stream]).generate_state(together) for stream in (0, 1))
    env_seeds, row_seeds = starts[group_numbers(together, group_size).numpy()][mine].tolist(), rows[mine].tolist()
    observation, _ = env.reset(seed=env_seeds)
    width, budget = task.max_prompt_length, task.max_response_length
    prompt = {name: torch.as_tensor(np.asarray(observation[name])[:, :width]) for name in observation}
    # In lower precision the cache's rounding would show in the ratios, so that they come from a pass as in training.
    exact = actor.model.dtype == torch.float32
    from_states = exact and (critics is None or critics.read_states)
    generated = generate(
        actor.model,
        prompt["input_ids"],
        prompt["attention_mask"],
        budget,
        actor.tokenizer.eos_token_id,
        row_seeds,
        actor.temperature,
        actor.vocab_size,
        keep_states=from_states and critics is not None,
        lockstep=actor.lockstep,
    )
    tokens, lengths = generated.tokens, generated.lengths
    played = task.play(tokens.cpu().numpy(), lengths.cpu().numpy())
    device = actor.device
    observations = {
        "input_ids": torch.as_tensor(played.input_ids).long().to(device),
        "attention_mask": torch.as_tensor(played.attention_mask).long().to(device),
    }
    mask = torch.arange(budget, device=device) < lengths[:, None]
    values: dict[str, Tensor] = {}
    if from_states:
        log_probs = generated.log_probs
        if critics is not None and generated.states is not None:
            found = critics.values(generated.states, tokens, mask, mask)
            values = {f"{kind}_values": x.masked_fill(~mask, 0.0) for kind, x in found.items()}
    else:
        old = actor.evaluate_in_chunks(observations, tokens, mask, critics)
        log_probs = old.log_probs
        for name, x in (("reward_values", old.reward_values), ("cost_values", old.cost_values)):
            if x is not None:
                values[name] = x.masked_fill(~mask, 0.0)
    last = mask & (torch.arange(budget, device=device) == lengths[:, None] - 1)

    def at_last_token(scores: "np.ndarray") -> "Tensor":
        return torch.as_tensor(scores, dtype=torch.float32, device=device)[:, None] * last

    # A response ends by EOS or by its budget, and both end the MDP: no state comes after, so there are no final values.
    return Rollout(
        observations=observations,
        actions=tokens,
        mask=mask,
        log_probs=log_probs,
        rewards=at_last_token(played.rewards),
        costs=at_last_token(played.costs),
        reference_log_probs=None if reference is None else reference.log_probs(observations, tokens, mask),
        named_costs={name: at_last_token(costs) for name, costs in played.named_costs.items()},
        groups=groups.to(device),
        infos=played.infos,
        **values,
    )


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
    """The name of the outermost wrapper that has a `step` of its own, or of the environment's class if its `step` is
    newer than its `play`, or of the limit that cuts episodes; else none."""
    import gymnasium as gym

    layer: Any = env
    task: Any = env.unwrapped
    while layer is not task:
        if type(layer).step is not gym.vector.VectorWrapper.step:
            return type(layer).__name__
        layer = layer.env
    newest = next(kind for kind in type(task).__mro__ if "step" in vars(kind) or "play" in vars(kind))
    if "play" not in vars(newest):
        return type(task).__name__
    limit = task.max_episode_steps
    return None if limit is None else f"max_episode_steps={limit}"
