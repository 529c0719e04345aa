"""Whole episodes of any actor in any vector environment, step by step."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textsafe_gym.envs.infos import InfoReader, autoreset_mode, of_six_values
from textsafe_gym.errors import ConfigError
from textsafe_gym.models import reads_tokens
from textsafe_gym.models.files import one_line
from textsafe_gym.protocols import Actor, Critics, Info, Reference
from textsafe_gym.types import Rollout, group_numbers


@torch.no_grad()
def play_steps(
    actor: Actor,
    env: gym.vector.VectorEnv,
    seed: int,
    critics: Critics | None,
    reference: Reference | None,
    group_size: int,
) -> Rollout:
    """Plays one whole episode in each sub-environment, under any autoreset mode; see `textsafe_gym.rollouts.collect`.

    Raises:
        ConfigError: the environment's info lacks a cost, or its steps are not Gymnasium's.
        ModelError: an observation or the actor's output is not finite.
    """
    groups = group_numbers(env.num_envs, group_size)
    seeds = np.random.SeedSequence([seed, 0]).generate_state(env.num_envs)[groups.numpy()].tolist()
    player = actor.player(env, int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    mode, read = autoreset_mode(env), InfoReader(env)
    try:
        observation, _ = env.reset(seed=seeds)
    except gym.error.Error as error:  # some vector environments of Gymnasium's own take one seed alone
        raise ConfigError(
            f"{read.name} takes no list of seeds: {one_line(error)}; make it with vectorization_mode='sync'"
        ) from None
    running, truncated = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    infos: list[Info] = [{} for _ in running]
    masks, rewards, costs = [], [], []
    named: list[list[dict[str, float]]] = []
    while running.any():
        action = player.act(observation)
        try:
            observation, reward, terminations, truncations, info = env.step(action)
        except (gym.error.Error, ValueError) as error:
            if not of_six_values(error):
                raise
            raise ConfigError(
                f"{read.name}: step returns more than five values; if the cost is among them, adapt the "
                "environment with textsafe_gym.adapters.safety_gymnasium.from_safety_gymnasium"
            ) from None
        over = terminations | truncations
        step_costs, parts = np.zeros(env.num_envs), [dict[str, float]() for _ in running]
        for i in np.flatnonzero(running).tolist():
            # SAME_STEP hands the last observation and info of an ended episode over apart from the new one's.
            moved = mode == AutoresetMode.SAME_STEP and over[i]
            own = read(info["final_info"] if moved else info, i)
            step_costs[i], parts[i] = own["cost"], own.get("costs", {})
            if over[i]:
                infos[i] = own
                player.end(i, info["final_obs"][i] if moved else _row(observation, i))
                truncated[i] = truncations[i] and not terminations[i]
        masks.append(running.copy())
        rewards.append(np.array(reward))  # the environment may use its arrays again
        costs.append(step_costs)
        named.append(parts)
        running &= ~over
        if mode == AutoresetMode.DISABLED and over.any() and running.any():
            # Ended sub-environments may not be stepped, so they play on unrecorded.
            observation = env.reset(options={"reset_mask": over})[0]
    if truncated.all() and reads_tokens(env) and not np.any([rewards, costs]):
        _say_that_none_was_scored(env.num_envs, len(masks))
    observations, actions = player.episodes()
    mask = torch.as_tensor(np.stack(masks, 1)).to(actions.device)
    now = actor.evaluate(observations, actions, mask, critics)
    finals: dict[str, Tensor] = {}
    if critics is not None and truncated.any():
        cut = torch.as_tensor(truncated).to(actions.device)
        finals = {f"final_{kind}_values": x * cut for kind, x in player.final_values(critics).items()}
    names = sorted({name for parts in named for part in parts for name in part})

    def column(values: Sequence[object]) -> Tensor:
        return torch.as_tensor(np.asarray(values)).T.float().to(mask.device) * mask

    return Rollout(
        observations=observations,
        actions=actions,
        mask=mask,
        log_probs=now.log_probs,
        rewards=column(rewards),
        costs=column(costs),
        reference_log_probs=None if reference is None else reference.log_probs(observations, actions, mask),
        reward_values=now.reward_values,
        cost_values=now.cost_values,
        named_costs={name: column([[part.get(name, 0.0) for part in parts] for parts in named]) for name in names},
        groups=groups.to(mask.device),
        infos=infos,
        **finals,
    )


@cache
def _say_that_none_was_scored(responses: int, steps: int) -> None:
    """Once for each number of responses and of steps."""
    logging.getLogger(__name__).warning(
        "all %d responses were cut after at most %d tokens, and none was scored: there is nothing to learn from; raise "
        "max_episode_steps",
        responses,
        steps,
    )


def _row(observation: Any, i: int) -> object:
    """One sub-environment's part of a batched observation."""
    if isinstance(observation, dict):
        return {name: _row(x, i) for name, x in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_row(x, i) for x in observation)
    return observation[i]
