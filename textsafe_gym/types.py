"""What passes between rooms: a policy's interface and the rollouts that it makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import torch
from torch import Tensor


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
    final_reward_values: Tensor
    final_cost_values: Tensor
    infos: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> "Rollout":
        """The episodes of an int64 index of shape (b,)."""
        picked: dict[str, Any] = {"infos": [self.infos[i] for i in index.tolist()]}
        picked["observations"] = {name: x[index] for name, x in self.observations.items()}
        for field in fields(self):
            if field.name not in picked:
                picked[field.name] = getattr(self, field.name)[index]
        return Rollout(**picked)

    @property
    def episode_rewards(self) -> Tensor:
        """(B,): each episode's sum of rewards."""
        return (self.rewards * self.mask).sum(1)

    @property
    def episode_costs(self) -> Tensor:
        """(B,): each episode's sum of costs."""
        return (self.costs * self.mask).sum(1)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: steps in each episode."""
        return self.mask.sum(1)

    @staticmethod
    def concatenate(parts: Sequence["Rollout"]) -> "Rollout":
        """One rollout of all parts' episodes; the parts share T."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {"infos": [info for part in parts for info in part.infos]}
        joined["observations"] = {
            name: torch.cat([part.observations[name] for part in parts]) for name in parts[0].observations
        }
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


class Policy(Protocol):
    """An agent with two critics. Implementations are `torch.nn.Module`s; the algorithms use nothing beyond this."""

    def rollout(self, env: gym.vector.VectorEnv, seed: int) -> Rollout:
        """Plays `env.num_envs` whole episodes, one in each sub-environment; every draw follows from `seed`."""
        ...

    def evaluate(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Evaluation:
        """Log-probs, entropy and values of given actions, with gradients; arguments as in `Rollout`."""
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
