"""An agent's actor and critics in the form that OmniSafe's algorithms train."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence, register_kl
from torch.nn.attention import SDPBackend, sdpa_kernel

from textsafe_gym.adapters.omnisafe.library import Config
from textsafe_gym.adapters.omnisafe.rows import Rows
from textsafe_gym.types import Agent

if TYPE_CHECKING:
    from textsafe_gym.adapters.omnisafe.env import GymnasiumCMDP

_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)


class Tokens(Categorical):
    """Categorical over V tokens for N states, batch shape (N, 1), so that a sum over an action's parts is right.

    FOCOPS and CUP store `mean` and `stddev` of a distribution and make a Normal of them: here the log-probabilities
    and 1, of which `kl_divergence` makes a distribution over tokens again.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits.unsqueeze(-2), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(N, 1, V) log-probabilities."""
        return self.logits

    @property
    def stddev(self) -> Tensor:
        """(N, 1, V) ones."""
        return torch.ones_like(self.logits)


@register_kl(Tokens, Normal)
def _kl_to_stored(p: Tokens, q: Normal) -> Tensor:
    return kl_divergence(p, Tokens(q.loc.squeeze(-2)))


class PolicyActor(nn.Module):
    """A policy's actor in the form of OmniSafe's; what the environment's observation lacks of a row is not read.

    Saute and Simmer add a column with the budget that is left. A response's cost falls due with its last token, so that
    until then the column is constant, and a language model loses nothing by not reading it.
    """

    def __init__(self, agent: Agent, rows: Rows, discrete: bool, twice: bool) -> None:
        super().__init__()
        self.own = nn.ParameterList(agent.actor.trained_parameters())
        # A Fisher-vector product differentiates twice, which only the plain attention can.
        self.kernels = [SDPBackend.MATH] if twice else list(_KERNELS)
        self._agent, self._rows, self.discrete = agent, rows, discrete
        self._current: Tokens | Normal

    def forward(self, obs: Tensor) -> Tokens | Normal:
        """The distribution of the action for each row of `obs`, (N, D) or (D,)."""
        observations, actions, mask, order = self._rows.episodes(obs.reshape(-1, obs.shape[-1]))
        with sdpa_kernel(self.kernels):
            parameters = self._agent.actor.distributions(observations, actions, mask)
        parameters = parameters[order.to(parameters.device)].to(obs.device).reshape(*obs.shape[:-1], -1)
        if self.discrete:
            self._current = Tokens(parameters)
        else:
            mean, log_std = parameters.chunk(2, -1)
            self._current = Normal(mean, log_std.exp())
        return self._current

    def predict(self, obs: Tensor, deterministic: bool = False) -> Tensor:
        """Actions for rows: (..., 1) numbers of tokens, or (..., A)."""
        current = self(obs)
        if not self.discrete:
            return current.mean if deterministic else current.sample()
        return (current.logits.argmax(-1) if deterministic else current.sample()).float()

    def log_prob(self, act: Tensor) -> Tensor:
        """(N,) of actions under the distribution made last."""
        return self._current.log_prob(act.long() if self.discrete else act).sum(-1)

    @property
    def std(self) -> float:
        """Mean standard deviation, for OmniSafe's log; tokens have none."""
        return float("nan") if self.discrete else self._current.stddev.mean().item()


class PolicyCritic(nn.Module):
    """One of a policy's critics in the form of OmniSafe's.

    A critic that is a head learns on the state that the trunk happens to have: OmniSafe steps each critic with an
    optimiser of its own, and the trunk is the actor's.
    """

    def __init__(self, agent: Agent, rows: Rows, kind: str) -> None:
        super().__init__()
        groups = agent.parameter_groups()
        self.own = nn.ParameterList(groups.pop(f"{kind}_critic"))
        self._others = tuple(x for group in groups.values() for x in group)
        self._agent, self._rows, self._kind = agent, rows, f"{kind}_values"

    def forward(self, obs: Tensor) -> list[Tensor]:
        """One tensor of values, (N,) or ()."""
        observations, actions, mask, order = self._rows.episodes(obs.reshape(-1, obs.shape[-1]))
        for other in self._others:  # no gradient reaches what OmniSafe does not step with this critic
            other.requires_grad_(False)
        try:
            found = self._agent.evaluate(observations, actions, mask)
        finally:
            for other in self._others:
                other.requires_grad_(True)
        values = vars(found)[self._kind]
        values = values[mask.to(values.device)][order.to(values.device)]
        return [values.to(obs.device).reshape(obs.shape[:-1])]


class PolicyActorCritic(nn.Module):
    """Stands where OmniSafe has its `ConstraintActorCritic`, with the same optimisers and schedule."""

    def __init__(self, env: "GymnasiumCMDP", model_cfgs: Config, epochs: int, twice: bool) -> None:
        super().__init__()
        agent, rows = env.agent, env.rows
        self.actor = PolicyActor(agent, rows, env.discrete, twice)
        self.reward_critic = PolicyCritic(agent, rows, "reward")
        self.cost_critic = PolicyCritic(agent, rows, "cost")
        if model_cfgs.actor.lr is not None:
            self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=model_cfgs.actor.lr)
            decays = bool(model_cfgs.linear_lr_decay)
            scheduler = torch.optim.lr_scheduler.LinearLR
            self.actor_scheduler = scheduler(self.actor_optimizer, 1.0, 0.0 if decays else 1.0, max(epochs, 1))
        self.reward_critic_optimizer = torch.optim.Adam(self.reward_critic.parameters(), lr=model_cfgs.critic.lr)
        self.cost_critic_optimizer = torch.optim.Adam(self.cost_critic.parameters(), lr=model_cfgs.critic.lr)

    @torch.no_grad()
    def step(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, both values and log-probs for rows of observations."""
        action = self.actor.predict(obs, deterministic)
        log_prob = self.actor.log_prob(action)
        return action, self.reward_critic(obs)[0], self.cost_critic(obs)[0], log_prob
