"""What passes between rooms: a policy's interface and the rollouts that it makes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import torch
from torch import Tensor

from textsafe_gym.errors import ConfigError


@dataclass(frozen=True)
class Evaluation:
    """A policy's view of given actions; everything has shape (B, T), dtype float, and means nothing outside the mask.

    Attributes:
        log_probs: log π(a_t|s_t) under the distribution that the policy samples from (temperature included).
        entropy: of that distribution, in nats.
        reward_values, cost_values: V_R(s_t) and V_C(s_t).
    """

    log_probs: Tensor
    entropy: Tensor
    reward_values: Tensor
    cost_values: Tensor


@dataclass(frozen=True)
class Rollout:
    """B whole episodes of at most T steps, right-padded; step t is valid where `mask[b, t]`.

    What a state is, only the policy knows: `observations` is opaque to the algorithms, which index it by episode.

    Attributes:
        observations: named tensors with leading dimension B (a language model: input_ids and attention_mask of the
            whole sequence; an MLP: one observation a step).
        actions: (B, T) int64, or (B, T, A) float.
        mask: (B, T) bool, true on each episode's steps, a prefix of the row.
        log_probs: (B, T), of the actions under the distribution that they were sampled from.
        reference_log_probs: (B, T), the same under the frozen reference policy.
        reward_values, cost_values: (B, T), the critics at collection.
        rewards, costs: (B, T), as the environment paid them.
        named_costs: from name to (B, T), where the environment has several costs; `costs` is their sum.
        groups: (B,) int64; the episodes of one group began in the same state.
        final_reward_values, final_cost_values: (B,), V of the state after the last step where a limit from outside
            cut the episode (`truncated`); 0 where the MDP ended it.
        infos: the environment's info at the end of each episode.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    reward_values: Tensor
    cost_values: Tensor
    rewards: Tensor
    costs: Tensor
    named_costs: Mapping[str, Tensor]
    groups: Tensor
    final_reward_values: Tensor
    final_cost_values: Tensor
    infos: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> "Rollout":
        """The episodes of an int64 index of shape (b,)."""
        picked: dict[str, Any] = {"infos": [self.infos[i] for i in index.tolist()]}
        for several in ("observations", "named_costs"):
            picked[several] = {name: x[index] for name, x in getattr(self, several).items()}
        for field in fields(self):
            if field.name not in picked:
                picked[field.name] = getattr(self, field.name)[index]
        return Rollout(**picked)

    @property
    def episode_rewards(self) -> Tensor:
        """(B,): each episode's sum of rewards."""
        return episode_sums(self.rewards, self.mask)

    @property
    def episode_costs(self) -> Tensor:
        """(B,): each episode's sum of costs."""
        return episode_sums(self.costs, self.mask)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: steps in each episode."""
        return self.mask.sum(1)

    @staticmethod
    def concatenate(parts: Sequence["Rollout"]) -> "Rollout":
        """One rollout of all parts' episodes; the parts share T, and their groups stay apart."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {"infos": [info for part in parts for info in part.infos]}
        for several in ("observations", "named_costs"):
            names = getattr(parts[0], several)
            joined[several] = {name: torch.cat([getattr(part, several)[name] for part in parts]) for name in names}
        firsts = itertools.accumulate((int(part.groups.max()) + 1 for part in parts[:-1]), initial=0)
        joined["groups"] = torch.cat([part.groups + first for part, first in zip(parts, firsts, strict=True)])
        for field in fields(Rollout):
            if field.name not in joined:
                joined[field.name] = torch.cat([getattr(part, field.name) for part in parts])
        return Rollout(**joined)


@dataclass(frozen=True)
class Demonstrations:
    """N supervised episodes in the shapes of a `Rollout`, for the PTX term.

    Attributes:
        observations: named tensors with leading dimension N.
        actions: (N, T) int64 or (N, T, A) float.
        mask: (N, T) bool.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> "Demonstrations":
        """The episodes of an int64 index of shape (b,)."""
        observations = {name: x[index] for name, x in self.observations.items()}
        return Demonstrations(observations, self.actions[index], self.mask[index])


def episode_sums(x: Tensor, mask: Tensor) -> Tensor:
    """(B,): for each episode the sum of `x` (B, T) over its steps, whatever stands outside the mask."""
    return x.masked_fill(~mask, 0.0).sum(1)


def group_numbers(episodes: int, group_size: int) -> Tensor:
    """(episodes,) int64, 0 for the first `group_size` episodes, 1 for the next, and so on.

    Raises:
        ConfigError: the groups do not fill the episodes.
    """
    if episodes % group_size:
        raise ConfigError(f"group_size = {group_size} does not divide the {episodes} episodes that are played at once")
    return torch.arange(episodes) // group_size


def own_cost_limit(env: Any) -> float | None:
    """A vector environment's own `cost_limit`, or else that of its first sub-environment or of a wrapper of it."""
    limit = getattr(env.unwrapped, "cost_limit", None)
    if limit is None and hasattr(env.unwrapped, "envs"):
        first = env.unwrapped.envs[0]
        limit = first.get_wrapper_attr("cost_limit") if first.has_wrapper_attr("cost_limit") else None
    return None if limit is None else float(limit)


class Policy(Protocol):
    """An agent with two critics. Implementations are `torch.nn.Module`s; the algorithms use nothing beyond this."""

    def rollout(
        self, env: gym.vector.VectorEnv, seed: int, group_size: int = 1, share: tuple[int, int] = (0, 1)
    ) -> Rollout:
        """Plays `env.num_envs` whole episodes, one in each sub-environment; every draw follows from `seed`.

        Sub-environments are reset alike in groups of `group_size` neighbours, which divides their number. A `share` of
        (i, n) plays the i-th of n equal parts of what n times as many sub-environments would play.
        """
        ...

    def evaluate(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Evaluation:
        """Log-probs, entropy and values of given actions, with gradients; arguments as in `Rollout`."""
        ...

    def distributions(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """(N, D), with gradients: the parameters of the action distribution at each of the N steps inside the mask,
        episode after episode."""
        ...

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """(N,): KL(p‖q) in nats, step by step, of distributions as `distributions` gives them."""
        ...

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Trainable parameters, disjoint, under "actor", "reward_critic" and "cost_critic"; critics that are heads have
        the heads alone there, as the trunk is the actor's."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """All tensors that cannot be made again from the starting model, so that a resumed run is the same run."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """The inverse of `state_dict`."""
        ...

    def save(self, directory: Path) -> None:
        """Writes the policy alone, in its own public format (a language model: Hugging Face's)."""
        ...
