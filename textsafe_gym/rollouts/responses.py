"""Whole responses of a language model, generated with a cache and played in a text environment at once."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textsafe_gym.errors import ModelError
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.critics import LanguageCritics
from textsafe_gym.models.encoding import same_vocabulary, vocabularies_differ
from textsafe_gym.models.sampling import generate
from textsafe_gym.protocols import Reference
from textsafe_gym.types import Rollout, group_numbers


@torch.no_grad()
def play_responses(
    actor: CausalLMActor,
    env: gym.vector.VectorEnv,
    seed: int,
    critics: LanguageCritics | None,
    reference: Reference | None,
    group_size: int,
    share: tuple[int, int],
) -> Rollout:
    """Samples one whole response in each sub-environment; see `textsafe_gym.rollouts.collect`, which has seen to it
    that the environment's base is a `ResponseTask` and none of its wrappers changes a step.

    Raises:
        ModelError: the environment's vocabulary is not the actor's.
    """
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
    # In lower precision the cache's rounding would show in the ratios, so that a pass as in training has to tell.
    exact = actor.model.dtype == torch.float32
    from_states = exact and (critics is None or critics.read_states)
    said = generate(
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
    tokens, lengths = said.tokens, said.lengths
    played = task.play(tokens.cpu().numpy(), lengths.cpu().numpy())
    device = actor.device
    observations = {
        "input_ids": torch.as_tensor(played.input_ids).long().to(device),
        "attention_mask": torch.as_tensor(played.attention_mask).long().to(device),
    }
    mask = torch.arange(budget, device=device) < lengths[:, None]
    values: dict[str, Tensor] = {}
    if from_states:
        log_probs = said.log_probs
        if critics is not None and said.states is not None:
            found = critics.values(said.states, tokens, mask, mask)
            values = {f"{kind}_values": x.masked_fill(~mask, 0.0) for kind, x in found.items()}
    else:
        old = actor.evaluate_in_chunks(observations, tokens, mask, critics)
        log_probs = old.log_probs
        for name, x in (("reward_values", old.reward_values), ("cost_values", old.cost_values)):
            if x is not None:
                values[name] = x.masked_fill(~mask, 0.0)
    last = mask & (torch.arange(budget, device=device) == lengths[:, None] - 1)

    def paid(scores: np.ndarray) -> Tensor:
        return torch.as_tensor(scores, dtype=torch.float32, device=device)[:, None] * last

    # A response ends by EOS or by its budget, and both end the MDP: no state comes after, so there are no final values.
    return Rollout(
        observations=observations,
        actions=tokens,
        mask=mask,
        log_probs=log_probs,
        rewards=paid(played.rewards),
        costs=paid(played.costs),
        reference_log_probs=None if reference is None else reference.log_probs(observations, tokens, mask),
        named_costs={name: paid(costs) for name, costs in played.named_costs.items()},
        groups=groups.to(device),
        infos=played.infos,
        **values,
    )
