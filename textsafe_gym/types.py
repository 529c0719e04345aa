"""What passes between rooms: agents, what they make of given actions, rollouts, texts in an actor's form."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.protocols import Actor, Critics, Info, Reference, State


@dataclass(frozen=True)
class Evaluation:
    """An actor's view of given actions; everything has shape (B, T), dtype float, and means nothing outside the mask.

    Attributes:
        log_probs: log π(a_t|s_t) under the distribution that the actor samples from (temperature included).
        entropy: of that distribution, in nats.
        reward_values, cost_values: V_R(s_t) and V_C(s_t); None where there is no such critic.
    """

    log_probs: Tensor
    entropy: Tensor
    reward_values: Tensor | None = None
    cost_values: Tensor | None = None


@dataclass(frozen=True)
class Agent:
    """The roles that an algorithm trains and measures with.

    Attributes:
        actor: the policy being trained.
        critics: those that the algorithm uses; None for a method without.
        reference: the actor that training started from, frozen.
    """

    actor: Actor
    critics: Critics | None
    reference: Reference

    def evaluate(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Evaluation:
        """`Actor.evaluate` with this agent's critics."""
        return self.actor.evaluate(observations, actions, mask, self.critics)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters, disjoint: "actor" and, where there are such critics, "reward_critic", "cost_critic"."""
        return {
            "actor": self.actor.trained_parameters(),
            **({} if self.critics is None else self.critics.parameter_groups()),
        }

    def state_dict(self) -> State:
        """All tensors that a resumed run needs, under "actor.", "critics." and "reference."."""
        return {f"{role}.{name}": x for role, part in self._roles().items() for name, x in part.state_dict().items()}

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`.

        Raises:
            ModelError: the tensors are not this agent's.
        """
        odd = sorted(state.keys() ^ self.state_dict().keys())
        if odd:
            raise ModelError(f"the saved state is not of this policy: {len(odd)} names differ, first '{odd[0]}'")
        try:
            for role, part in self._roles().items():
                part.load_state_dict(
                    {name.removeprefix(f"{role}."): state[name] for name in state if name.startswith(f"{role}.")}
                )
        except RuntimeError as error:
            raise ModelError(f"the saved state is not of this policy: {' '.join(str(error).split())[:200]}") from error

    def _roles(self) -> State:
        roles = {"actor": self.actor, "critics": self.critics, "reference": self.reference}
        return {name: part for name, part in roles.items() if part is not None}


@dataclass(frozen=True)
class Rollout:
    """B whole episodes in rows of T columns; column t of row b is a step of the actor where `mask[b, t]`.

    The mask may have gaps: columns that the actor did not say, such as another speaker's turn or a tool's result. What
    a state is, only the actor knows: `observations` is opaque to the algorithms, which index it by episode.

    Attributes:
        observations: named tensors (B, W, ...) whose last T columns are the rows' own (a language model: input_ids and
            attention_mask of the whole sequence; an MLP: one observation a column).
        actions: (B, T) int64, or (B, T, A) float.
        mask: (B, T) bool, with at least one step in every row.
        log_probs: (B, T), of the actions under the distribution that they were sampled from.
        rewards, costs: (B, T), what the environment paid for each step; they may be paid at any of them.
        reference_log_probs: (B, T), as `log_probs` under the frozen reference; None where there is none.
        reward_values, cost_values: (B, T), the critics at collection; None where there is no such critic.
        named_costs: from name to (B, T), where the environment has several costs; `costs` is their sum.
        groups: (B,) int64; the episodes of one group began in the same state. By default each is a group of its own.
        final_reward_values, final_cost_values: (B,), V of the state after the last step where a limit from outside
            cut the episode (`truncated`), 0 where the MDP ended it; None stands for zeros.
        infos: the environment's info at the end of each episode; by default empty.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    log_probs: Tensor
    rewards: Tensor
    costs: Tensor
    reference_log_probs: Tensor | None = None
    reward_values: Tensor | None = None
    cost_values: Tensor | None = None
    named_costs: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Tensor = None  # type: ignore[assignment]
    final_reward_values: Tensor | None = None
    final_cost_values: Tensor | None = None
    infos: Sequence[Info] = ()

    def __post_init__(self) -> None:
        if self.groups is None:
            object.__setattr__(self, "groups", torch.arange(len(self), device=self.mask.device))
        if not self.infos:
            object.__setattr__(self, "infos", [{} for _ in range(len(self))])

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, index: Tensor) -> "Rollout":
        """The episodes of an int64 index of shape (b,)."""
        return self._each(lambda x: x[index], [self.infos[i] for i in index.tolist()])

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """What an actor evaluates: observations, actions, mask."""
        return self.observations, self.actions, self.mask

    @property
    def episode_rewards(self) -> Tensor:
        """(B,): each episode's sum of rewards."""
        return episode_sums(self.rewards, self.mask)

    @property
    def episode_costs(self) -> Tensor:
        """(B,): each episode's sum of costs."""
        return episode_sums(self.costs, self.mask)

    @property
    def log_ratios(self) -> Tensor:
        """(B, T): log π_old(a_t|s_t) - log π_ref(a_t|s_t), the k1 estimate of each step's KL to the reference.

        Raises:
            ConfigError: there is no reference.
        """
        if self.reference_log_probs is None:
            raise ConfigError("the rollout has no reference_log_probs; collect it with a reference")
        return self.log_probs - self.reference_log_probs

    @property
    def episode_kl(self) -> Tensor:
        """(B,): each episode's sum of `log_ratios`, in nats."""
        return episode_sums(self.log_ratios, self.mask)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: steps in each episode."""
        return self.mask.sum(1)

    @property
    def last_step(self) -> Tensor:
        """(B,) int64: the column of each episode's last step."""
        return self.mask.shape[1] - 1 - self.mask.flip(1).int().argmax(1)

    def padded(self, columns: int) -> "Rollout":
        """The same episodes in wider rows: every tensor that has columns is padded on its right with zeros."""
        wider = columns - self.mask.shape[1]
        if not wider:
            return self

        def pad(x: Tensor) -> Tensor:
            return x if x.ndim < 2 else torch.cat([x, x.new_zeros(x.shape[0], wider, *x.shape[2:])], dim=1)

        return self._each(pad, self.infos)

    @staticmethod
    def concatenate(parts: Sequence["Rollout"]) -> "Rollout":
        """One rollout of all parts' episodes, padded to the widest; their groups stay apart."""
        if len(parts) == 1:
            return parts[0]
        widest = max(part.mask.shape[1] for part in parts)
        parts = [part.padded(widest) for part in parts]
        joined: dict[str, Any] = {"infos": [info for part in parts for info in part.infos]}
        joined["observations"] = {
            name: torch.cat([part.observations[name] for part in parts]) for name in parts[0].observations
        }
        # A cost that a part does not name was not incurred in it.
        named = dict.fromkeys(name for part in parts for name in part.named_costs)
        joined["named_costs"] = {
            name: torch.cat([part.named_costs.get(name, torch.zeros_like(part.costs)) for part in parts])
            for name in named
        }
        firsts = itertools.accumulate((int(part.groups.max()) + 1 for part in parts[:-1]), initial=0)
        joined["groups"] = torch.cat([part.groups + first for part, first in zip(parts, firsts, strict=True)])
        for name in vars(parts[0]).keys() - joined.keys():
            found = [vars(part)[name] for part in parts]
            if name.startswith("final_") and any(x is not None for x in found):
                zeros = [part.rewards.new_zeros(len(part)) for part in parts]  # what None stands for
                found = [none if x is None else x for x, none in zip(found, zeros, strict=True)]
            joined[name] = None if found[0] is None else torch.cat(found)
        return Rollout(**joined)

    def _each(self, change: Callable[[Tensor], Tensor], infos: Sequence[Info]) -> "Rollout":
        """`change` of every tensor."""
        changed: dict[str, Any] = {
            "infos": infos,
            "observations": {name: change(x) for name, x in self.observations.items()},
            "named_costs": {name: change(x) for name, x in self.named_costs.items()},
        }
        changed |= {name: None if x is None else change(x) for name, x in vars(self).items() if name not in changed}
        return Rollout(**changed)


@dataclass(frozen=True)
class EncodedTexts:
    """N given responses in the shapes of a `Rollout`; see `TextActor.encode`.

    Attributes:
        observations: named tensors with leading dimension N.
        actions: (N, T) int64.
        mask: (N, T) bool.
        cut: (N,) bool, where prompt or response was longer than its budget.
    """

    observations: Mapping[str, Tensor]
    actions: Tensor
    mask: Tensor
    cut: Tensor

    @property
    def inputs(self) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
        """What an actor evaluates: observations, actions, mask."""
        return self.observations, self.actions, self.mask


def episode_sums(x: Tensor, mask: Tensor) -> Tensor:
    """(B,): for each episode the sum of `x` (B, T) over its steps, whatever stands outside the mask."""
    return x.masked_fill(~mask.to(x.device), 0.0).sum(1)  # data given beforehand lies on the CPU


def group_numbers(episodes: int, group_size: int) -> Tensor:
    """(episodes,) int64, 0 for the first `group_size` episodes, 1 for the next, and so on.

    Raises:
        ConfigError: the groups do not fill the episodes.
    """
    if episodes % group_size:
        raise ConfigError(f"group_size = {group_size} does not divide the {episodes} episodes that are played at once")
    return torch.arange(episodes) // group_size
