"""OmniSafe's on-policy algorithms on our environments; importing this makes them known to `omnisafe`.

    from textsafe_gym.adapters import omnisafe

    agent = omnisafe.Agent("PPOLag", "SafeRLHF-v0", custom_cfgs={"cost_limit": -1.0, ...})
    agent.learn()
    agent.agent.policy.save("runs/mine")

OmniSafe (0.5) knows Box actions, networks on vectors and steps of a fixed number. What differs here: the actor is the
environment's own policy (for text a language model with a categorical distribution over tokens), the critics are its
critics, an action is a token's number, and `cost_limit` is one setting whatever the algorithm calls it.
"""

import copy
import io
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence, register_kl
from torch.nn.attention import SDPBackend, sdpa_kernel

from textsafe_gym.adapters.omnisafe_files import BUDGETS, INSTALL, NORMALIZERS
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.errors import ConfigError
from textsafe_gym.models import make_policy
from textsafe_gym.models.mlp import as_box, flat_vector, vectors
from textsafe_gym.types import Policy, Rollout, own_cost_limit


def _stub() -> None:
    """Puts a module in the place of safety_gymnasium, which OmniSafe imports and whose pins cannot be met."""

    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("safety_gymnasium is not installed, so its environments cannot be made")

    module = ModuleType("safety_gymnasium")
    module.make = module.register = absent  # type: ignore[attr-defined]
    module.vector = SimpleNamespace(make=absent)  # type: ignore[attr-defined]
    sys.modules["safety_gymnasium"] = module


try:
    import safety_gymnasium  # noqa: F401
except Exception:  # whatever old simulators raise on a new system
    _stub()
try:
    from omnisafe import Agent
    from omnisafe.adapter import online_adapter
    from omnisafe.adapter.online_adapter import OnlineAdapter
    from omnisafe.algorithms import algo_wrapper, registry
    from omnisafe.algorithms.on_policy.base.natural_pg import NaturalPG
    from omnisafe.algorithms.on_policy.base.policy_gradient import PolicyGradient
    from omnisafe.envs.core import CMDP, env_register
    from omnisafe.utils.config import Config, check_all_configs, get_default_kwargs_yaml
except ImportError as error:
    raise ConfigError(f"OmniSafe cannot be imported ({error}); {INSTALL}") from None

__all__ = ["CMDP", "Agent", "GymnasiumCMDP", "Updater", "env_register", "register"]

# Pay comes at the end of a response and observations are token ids: nothing to discount or to normalise.
_PLAIN = dict.fromkeys(NORMALIZERS, False)
_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)


def register(env_id: str) -> None:
    """Makes another Gymnasium environment with `info["cost"]` known to OmniSafe under its own id."""
    if env_id not in GymnasiumCMDP._support_envs:
        GymnasiumCMDP._support_envs.append(env_id)


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


class TokenRows:
    """Text observations as rows of numbers: token ids, then the attention mask, (n, 2·W) float32."""

    def __init__(self, task: Any) -> None:
        self.prompt, self.width = task.max_prompt_length, task.max_prompt_length + task.max_response_length
        self.columns = 2 * self.width

    def flat(self, observation: Mapping[str, Any]) -> Tensor:
        """Rows of a vector environment's observation."""
        parts = [np.asarray(observation[name], dtype=np.float32) for name in ("input_ids", "attention_mask")]
        return torch.as_tensor(np.concatenate(parts, axis=-1))

    def one(self, observation: Mapping[str, Any]) -> Tensor:
        """The row (2·W,) of one observation."""
        return self.flat(observation)

    def of(self, rollout: Rollout) -> Tensor:
        """(N, 2·W) what stood before each step of a rollout, episode after episode."""
        episode, step = rollout.mask.nonzero(as_tuple=True)
        ids, attention = (rollout.observations[name][episode] for name in ("input_ids", "attention_mask"))
        seen = torch.arange(self.width, device=ids.device) < self.prompt + step[:, None]
        return torch.cat([ids * seen, attention * seen], 1).float()

    def episodes(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Sequences that contain the rows: one that begins like another is read as a part of it.

        Returns:
            Observations, actions (without meaning) and a mask as `Policy.evaluate` takes them, and the index (N,) of
            each row among the true entries of the mask.
        """
        table = rows.detach().cpu().numpy().astype(np.int64)
        ids, attention = table[:, : self.width], table[:, self.width : self.columns]
        # Padding below every token: in sorted order a row stands directly before those that continue it.
        known, which = np.unique(np.where(attention > 0, ids, -1), axis=0, return_inverse=True)
        same = known[:-1] == known[1:]
        same[:, self.prompt :] |= known[:-1, self.prompt :] < 0
        last = np.flatnonzero(np.append(~same.all(1), True))
        sequence = np.searchsorted(last, which.reshape(-1))
        step = attention[:, self.prompt :].sum(1)
        mask = np.zeros((len(last), self.width - self.prompt), dtype=bool)
        mask[sequence, step] = True
        number = np.cumsum(mask).reshape(mask.shape) - 1
        whole = torch.as_tensor(known[last])
        observations = {"input_ids": whole.clamp_min(0), "attention_mask": (whole >= 0).long()}
        shape = torch.as_tensor(mask)
        return observations, torch.zeros(shape.shape, dtype=torch.long), shape, torch.as_tensor(number[sequence, step])


class BoxRows:
    """Observations that are vectors or make one as rows, (n, D) float32; each row is an episode of one step."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        self.env = env
        self.columns = int(np.prod(as_box(env.single_observation_space).shape))
        self.action_shape = env.single_action_space.shape or ()

    def flat(self, observation: Any) -> Tensor:
        """Rows of a vector environment's observation."""
        return torch.as_tensor(vectors(self.env, observation)).reshape(self.env.num_envs, -1)

    def one(self, observation: Any) -> Tensor:
        """The row (D,) of one observation."""
        flat = flat_vector(self.env.single_observation_space, observation)
        return torch.as_tensor(np.asarray(flat, dtype=np.float32)).reshape(-1)

    def of(self, rollout: Rollout) -> Tensor:
        """(N, D) what stood before each step of a rollout, episode after episode."""
        return rollout.observations["observation"][rollout.mask]

    def episodes(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """See `TokenRows.episodes`."""
        n = len(rows)
        dtype = torch.float32 if self.action_shape else torch.long
        actions = torch.zeros((n, 1, *self.action_shape), dtype=dtype)
        observations = {"observation": rows[:, None, : self.columns]}
        return observations, actions, torch.ones((n, 1), dtype=torch.bool), torch.arange(n)


class PolicyActor(nn.Module):
    """A policy's actor in the form of OmniSafe's; what the environment's observation lacks of a row is not read.

    Saute and Simmer add a column with the budget that is left. A response's cost falls due with its last token, so that
    until then the column is constant, and a language model loses nothing by not reading it.
    """

    def __init__(self, policy: Policy, rows: Any, discrete: bool, twice: bool) -> None:
        super().__init__()
        self.own = nn.ParameterList(policy.parameter_groups()["actor"])
        # A Fisher-vector product differentiates twice, which only the plain attention can.
        self.kernels = [SDPBackend.MATH] if twice else list(_KERNELS)
        self._policy, self._rows, self.discrete = (policy,), rows, discrete  # in a tuple: its parameters are `own`
        self._current: Any = None

    def forward(self, obs: Tensor) -> Any:
        """The distribution of the action for each row of `obs`, (N, D) or (D,)."""
        observations, actions, mask, order = self._rows.episodes(obs.reshape(-1, obs.shape[-1]))
        with sdpa_kernel(self.kernels):
            parameters = self._policy[0].distributions(observations, actions, mask)
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

    def __init__(self, policy: Policy, rows: Any, kind: str) -> None:
        super().__init__()
        self.own = nn.ParameterList(policy.parameter_groups()[f"{kind}_critic"])
        self._policy, self._rows, self._kind = (policy,), rows, f"{kind}_values"

    def forward(self, obs: Tensor) -> list[Tensor]:
        """One tensor of values, (N,) or ()."""
        observations, actions, mask, order = self._rows.episodes(obs.reshape(-1, obs.shape[-1]))
        found = self._policy[0].evaluate(observations, actions, mask)
        values = getattr(found, self._kind)
        values = values[mask.to(values.device)][order.to(values.device)]
        return [values.to(obs.device).reshape(obs.shape[:-1])]


class PolicyActorCritic(nn.Module):
    """Stands where OmniSafe has its `ConstraintActorCritic`, with the same optimisers and schedule."""

    def __init__(self, env: "GymnasiumCMDP", model_cfgs: Any, epochs: int, twice: bool) -> None:
        super().__init__()
        policy, rows = env.policy, env.rows
        self.actor = PolicyActor(policy, rows, env.discrete, twice)
        self.reward_critic = PolicyCritic(policy, rows, "reward")
        self.cost_critic = PolicyCritic(policy, rows, "cost")
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


_given: ContextVar[tuple[gym.vector.VectorEnv, Policy] | None] = ContextVar("given", default=None)


class GymnasiumCMDP(CMDP):
    """A Gymnasium environment with `info["cost"]` as OmniSafe's vectorised CMDP, with six-tuple steps of tensors.

    Observations are rows of numbers (see `TokenRows` and `BoxRows`). A Discrete action is a Box of one number, the
    action's, between -1 and 1 by name only: so OmniSafe's rescaling changes nothing.

    Args:
        env_id: a Gymnasium id.
        num_envs: how many at once.
        device: of the tensors.
        policy: options of `textsafe_gym.models.make_policy`.
        **kwargs: of the environment.

    Raises:
        TextsafeError: an argument is wrong.
    """

    need_auto_reset_wrapper = False
    need_time_limit_wrapper = False
    _support_envs = list(ENVIRONMENTS)  # noqa: RUF012 (OmniSafe's own form)

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        policy: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._num_envs, self._device = num_envs, torch.device(device)
        self._seed: int | None = None
        self._metadata: dict[str, Any] = {}
        given = _given.get()
        self._own = given is None
        if given is None:
            env = _vectorised(env_id, num_envs, kwargs)
            given = env, make_policy(env, **dict(policy or {}))
        self.env, self.policy = given
        action = self.env.single_action_space
        self.discrete = isinstance(action, gym.spaces.Discrete)
        text = hasattr(self.env.unwrapped, "tokenizer")
        self.rows: Any = TokenRows(self.env.unwrapped) if text else BoxRows(self.env)
        self._observation_space = gym.spaces.Box(-np.inf, np.inf, (self.rows.columns,), np.float32)
        self._action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32) if self.discrete else action

    @property
    def cost_limit(self) -> float | None:
        """The environment's own limit on the mean episode cost."""
        return own_cost_limit(self.env)

    @property
    def longest(self) -> int:
        """Steps of the longest episode, where it is known, else 1000."""
        spec = self.env.spec.max_episode_steps if self.env.spec else None
        return int(getattr(self.env.unwrapped, "max_response_length", None) or spec or 1000)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Starts an episode in each sub-environment."""
        seed, self._seed = self._seed if seed is None else seed, None
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._rows(observation), {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Observation, reward, cost, terminated, truncated, info; an episode that is over begins anew at once."""
        chosen = action.detach().cpu().numpy().reshape(self._num_envs, -1)
        space: Any = self.env.single_action_space
        if self.discrete:
            moves = chosen[:, 0].astype(np.int64) + int(space.start)
        else:
            moves = np.clip(chosen, space.low, space.high).astype(space.dtype)
        observation, reward, over, cut, found = self.env.step(moves)
        cost = np.array(found["cost"] if "cost" in found else np.zeros(self._num_envs), dtype=np.float32)
        info: dict[str, Any] = {}
        done = np.asarray(over) | np.asarray(cut)
        if done.any():
            last = found["final_info"]
            cost = np.where(done, np.asarray(last["cost"], np.float32), cost)
            ends = torch.zeros(self._num_envs, self.rows.columns, device=self._device)
            for i in np.flatnonzero(done).tolist():
                ends[i] = self.rows.one(found["final_obs"][i])
            info = {"final_observation": ends, "_final_observation": torch.as_tensor(done, device=self._device)}
            info = {name: self._alone(x) for name, x in info.items()}
        numbers = (torch.as_tensor(np.asarray(x, np.float32), device=self._device) for x in (reward, cost))
        flags = (torch.as_tensor(np.asarray(x, bool), device=self._device) for x in (over, cut))
        return self._rows(observation), *map(self._alone, (*numbers, *flags)), info  # type: ignore[return-value]

    def set_seed(self, seed: int) -> None:
        """Seeds the next reset."""
        self._seed = seed

    def render(self) -> Any:
        """As the environment does."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment, unless it was given."""
        if self._own:
            self.env.close()

    def _rows(self, observation: Any) -> Tensor:
        return self._alone(self.rows.flat(observation).to(self._device))

    def _alone(self, x: Tensor) -> Tensor:
        """OmniSafe gives a single environment's tensors their leading dimension itself."""
        return x[0] if self._num_envs == 1 else x


def _vectorised(env_id: str, num_envs: int, kwargs: Mapping[str, Any]) -> gym.vector.VectorEnv:
    mode: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    try:
        if env_id in ENVIRONMENTS:
            return gym.make_vec(env_id, num_envs=num_envs, **mode, **kwargs)
        return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=mode, **kwargs)
    except gym.error.Error as error:
        raise ConfigError(f"env {env_id}: {' '.join(str(error).split())}") from None


def _ours(env: Any) -> GymnasiumCMDP | None:
    """The environment below OmniSafe's wrappers, if it is one of ours."""
    while not isinstance(env, GymnasiumCMDP) and hasattr(env, "_env"):
        env = env._env
    return env if isinstance(env, GymnasiumCMDP) else None


def _wrap() -> None:
    """Wraps four of OmniSafe's functions; for environments that are not ours nothing changes."""
    read, open_env, make_model = (
        algo_wrapper.get_default_kwargs_yaml,
        OnlineAdapter.__init__,
        PolicyGradient._init_model,
    )
    make_env = online_adapter.make
    opening: list[GymnasiumCMDP] = []

    def made(env_id: str, **kwargs: Any) -> Any:
        # OmniSafe makes a second environment to evaluate in, which on-policy algorithms never step: the first one by
        # another name, so that no model is loaded twice.
        if opening:
            second = copy.copy(opening[0])
            second._num_envs = 1
            return second
        env = make_env(env_id, **kwargs)
        if isinstance(env, GymnasiumCMDP):
            opening.append(env)
        return env

    def with_cost_limit(algo: str, env_id: str, algo_type: str) -> Any:
        found = read(algo, env_id, algo_type)
        if algo_type == "on-policy" and env_id in GymnasiumCMDP._support_envs:
            found.recurisve_update({"cost_limit": None, "algo_cfgs": dict(_PLAIN)})
            found.setdefault("env_cfgs", Config())
        return found

    def opened(self: Any, env_id: str, num_envs: int, seed: int, cfgs: Any) -> None:
        opening.clear()
        open_env(self, env_id, num_envs, seed, cfgs)
        opening.clear()
        env = _ours(self._env)
        if env is not None:
            _place_limit(cfgs, env)

    def modelled(self: Any) -> None:
        env = _ours(self._env)
        if env is None:
            make_model(self)
            return
        if self._cfgs.model_cfgs.exploration_noise_anneal and env.discrete:
            raise ConfigError("exploration_noise_anneal is for Gaussian actors; tokens have no such noise")
        self.policy = env.policy
        epochs, twice = self._cfgs.train_cfgs.epochs, isinstance(self, NaturalPG)
        self._actor_critic = PolicyActorCritic(env, self._cfgs.model_cfgs, epochs, twice)

    algo_wrapper.get_default_kwargs_yaml = with_cost_limit
    online_adapter.make = made
    OnlineAdapter.__init__, PolicyGradient._init_model = opened, modelled
    env_register(GymnasiumCMDP)


def _place_limit(cfgs: Any, env: GymnasiumCMDP) -> None:
    """Puts the one limit wherever the algorithm looks for it, unless the user has set it there by that name.

    Raises:
        ConfigError: there is none, or one that the algorithm cannot work with.
    """
    limit = cfgs.get("cost_limit")
    limit = env.cost_limit if limit is None else float(limit)
    by_hand = cfgs.get("exp_increment_cfgs", {})
    for section in ("lagrange_cfgs", "algo_cfgs"):
        for key in ("cost_limit", *BUDGETS):
            if key not in cfgs.get(section, {}) or key in (by_hand.get(section) or {}):
                continue
            if limit is None:
                raise ConfigError(f"{cfgs.algo} needs a cost_limit, and the environment has none; set cost_limit")
            if key in BUDGETS and limit <= 0:
                raise ConfigError(
                    f"{cfgs.algo} spends the cost limit as a budget, so that it must be above 0, not {limit:g}"
                )
            cfgs[section][key] = limit
    if "max_ep_len" in cfgs.algo_cfgs and "max_ep_len" not in (by_hand.get("algo_cfgs") or {}):
        cfgs.algo_cfgs.max_ep_len = env.longest


_wrap()


class Record:
    """A rollout that OmniSafe walks through step by step: both the environment's answers and the actor's.

    Args:
        rows: of the environment.
        rollout: whole episodes.
        rewards, costs: (B, T), what is to be learned from.
    """

    def __init__(self, rows: Any, rollout: Rollout, rewards: Tensor, costs: Tensor) -> None:
        mask = rollout.mask
        self.obs = rows.of(rollout).cpu()
        actions = rollout.actions[mask].float()
        self.actions = (actions if actions.ndim > 1 else actions[:, None]).cpu()
        names = ("reward_values", "cost_values", "log_probs")
        self.values_r, self.values_c, self.log_probs = (getattr(rollout, name)[mask].cpu() for name in names)
        self.rewards, self.costs = rewards[mask].cpu(), costs[mask].cpu()
        ends = rollout.lengths.cumsum(0).cpu() - 1
        self.last = torch.zeros(len(self.obs), dtype=torch.bool)
        self.last[ends] = True
        # V after the last step, where a limit from outside cut the episode; 0 where the MDP ended it.
        finals = rollout.final_reward_values.cpu(), rollout.final_cost_values.cpu()
        self.finals = {int(end): (r, c) for end, r, c in zip(ends, *finals, strict=True) if r != 0 or c != 0}
        self.at = 0

    def __len__(self) -> int:
        return len(self.obs)

    def step(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The actor's side; `obs` is the record's own."""
        if obs.ndim == 1:  # one observation instead of a row for each environment: an episode that was cut short
            value_r, value_c = self.finals[self.at - 1]
            return self.actions[0], value_r, value_c, self.log_probs[0]
        now = slice(self.at, self.at + 1)
        return self.actions[now], self.values_r[now], self.values_c[now], self.log_probs[now]


class _Replayed(GymnasiumCMDP):
    """The environment's side of a `Record`."""

    _support_envs = ["textsafe-replay"]  # noqa: RUF012 (OmniSafe's own form)
    record: Record

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        return self.record.obs[self.record.at % len(self.record)], {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        record, now = self.record, self.record.at
        record.at += 1
        cut = torch.tensor(now in record.finals)
        following = record.obs[record.at % len(record)]
        info = {"final_observation": following}
        return following, record.rewards[now], record.costs[now], record.last[now] & ~cut, cut, info


env_register(_Replayed)


class Updater:
    """One of OmniSafe's algorithms that learns from rollouts made elsewhere.

    Args:
        name: of one of OmniSafe's on-policy algorithms.
        settings: by section, over the defaults that OmniSafe's YAML files have.
        env, policy: what the rollouts are made with.
        cost_limit: for the algorithms that have one.
        seed: of OmniSafe's own draws.
        episodes: in each rollout; OmniSafe's window of costs spans them.
        updates: planned; the learning rate falls over them.
        log_dir: where OmniSafe writes its files.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        env: gym.vector.VectorEnv,
        policy: Policy,
        *,
        cost_limit: float | None,
        seed: int,
        episodes: int,
        updates: int,
        log_dir: str,
    ) -> None:
        with redirect_stdout(io.StringIO()):
            cfgs = get_default_kwargs_yaml(name, "", "on-policy")
        cfgs.recurisve_update(dict(settings))
        cfgs.recurisve_update(
            {
                "algo": name,
                "env_id": _Replayed._support_envs[0],
                "exp_name": name,
                "seed": seed,
                "cost_limit": cost_limit,
                "train_cfgs": {"vector_env_nums": 1, "parallel": 1, "epochs": updates, "device": "cpu"},
                "algo_cfgs": {**_PLAIN, "steps_per_epoch": 1},
                "model_cfgs": {"exploration_noise_anneal": False},
                "logger_cfgs": {"use_wandb": False, "use_tensorboard": False, "log_dir": log_dir},
            }
        )
        token = _given.set((env, policy))
        try:
            with _undisturbed(), redirect_stdout(io.StringIO()):
                check_all_configs(cfgs, "on-policy")
                self.algorithm: Any = registry.get(name)(env_id=cfgs.env_id, cfgs=cfgs)
        except AssertionError as error:
            raise ConfigError(f"omnisafe:{name}: {error}") from None
        finally:
            _given.reset(token)
        self.env = _ours(self.algorithm._env._env)
        logger = self.algorithm._logger
        for key in ("EpRet", "EpCost", "EpLen"):
            logger._data[f"Metrics/{key}"] = type(logger._data[f"Metrics/{key}"])(maxlen=episodes)

    def update(self, rollout: Rollout, rewards: Tensor, costs: Tensor, seed: int) -> dict[str, float]:
        """One update; returns what OmniSafe logged of it, under its own names.

        Args:
            rollout: whole episodes.
            rewards: (B, T), what is to be learned from.
            costs: (B, T), likewise.
            seed: of OmniSafe's draws.
        """
        algorithm, env = self.algorithm, self.env
        assert isinstance(env, _Replayed)
        env.record = record = Record(env.rows, rollout, rewards, costs)
        with _undisturbed(), redirect_stdout(io.StringIO()):
            torch.manual_seed(seed)
            algorithm._steps_per_epoch = len(record)
            PolicyGradient._init(algorithm)  # a buffer of this size
            algorithm._env.rollout(len(record), agent=record, buffer=algorithm._buf, logger=algorithm._logger)
            algorithm._update()
        if hasattr(algorithm._actor_critic, "actor_scheduler"):
            algorithm._actor_critic.actor_scheduler.step()
        logged = {key: list(values) for key, values in algorithm._logger._data.items() if len(values)}
        for key in logged:
            if not key.startswith("Metrics/Ep"):
                algorithm._logger._data[key] = []
        return {key: float(np.mean(values)) for key, values in logged.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on beside the policy: tensors and JSON values."""
        return _state(self._remembering())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        _restore(self._remembering(), state)

    def _remembering(self) -> dict[str, Any]:
        algorithm = self.algorithm
        windows = {key: x for key, x in algorithm._logger._data.items() if key.startswith("Metrics/Ep")}
        found = {"algorithm": algorithm, "env": algorithm._env, "models": algorithm._actor_critic, "windows": windows}
        for name, owner in (("_lagrange", algorithm), ("_controller", algorithm._env)):
            if hasattr(owner, name):
                found[name.strip("_")] = getattr(owner, name)
        return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps what OmniSafe sets for the whole process to itself: torch's draws, determinism and cuDNN."""
    strict, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled
    benchmark = torch.backends.cudnn.benchmark
    numbers = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark = cudnn, benchmark
            np.random.set_state(numbers)


_FLEETING = {"_fvp_obs"}  # made anew by each update


def _state(holders: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, tensors, queues, optimisers and schedules that objects hold, under "HOLDER.NAME"."""
    state: dict[str, Any] = {}
    for holder, name, value in _held(holders):
        key = f"{holder}.{name}"
        if isinstance(value, torch.optim.Optimizer):
            for number, entry in value.state_dict()["state"].items():
                state |= {f"{key}.{number}.{part}": x for part, x in entry.items()}
            state[f"{key}.lr"] = [group["lr"] for group in value.param_groups]
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            state[key] = [value.last_epoch, value._step_count, value._last_lr]
        elif isinstance(value, deque):
            parts = list(value)
            state[key] = torch.stack(parts) if parts and isinstance(parts[0], Tensor) else parts
        else:
            state[key] = value.detach() if isinstance(value, Tensor) else value
    return state


def _restore(holders: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    for holder, name, value in _held(holders):
        key = f"{holder}.{name}"
        if isinstance(value, torch.optim.Optimizer):
            entries: dict[int, dict[str, Tensor]] = {}
            for path, x in state.items():
                if path.startswith(f"{key}.") and path != f"{key}.lr":
                    number, part = path.removeprefix(f"{key}.").split(".")
                    entries.setdefault(int(number), {})[part] = x
            value.load_state_dict({"state": entries, "param_groups": value.state_dict()["param_groups"]})
            for group, rate in zip(value.param_groups, state[f"{key}.lr"], strict=True):
                group["lr"] = rate
        elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            value.last_epoch, value._step_count, value._last_lr = state[key]
        elif isinstance(value, deque):
            value.clear()
            value.extend(state[key])
        elif isinstance(value, nn.Parameter):
            value.data.copy_(state[key])
        else:
            setattr(holders[holder], name, state[key])


def _held(holders: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    kinds = (bool, int, float, Tensor, deque, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    for holder, thing in holders.items():
        values = thing if isinstance(thing, dict) else vars(thing)
        for name, value in list(values.items()):
            if isinstance(value, kinds) and name not in _FLEETING:
                yield holder, name, value
