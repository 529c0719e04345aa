"""A multilayer perceptron as a policy for observations that are vectors or make one, with two critics."""

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models.cards import write_card
from textsafe_gym.models.files import find_file, new_directory, one_line
from textsafe_gym.models.infos import InfoReader, autoreset_mode, of_six_values
from textsafe_gym.types import Evaluation, Rollout, group_numbers

CONFIG, WEIGHTS = "mlp_policy.json", "mlp_policy.safetensors"


class MLPPolicy(nn.Module):
    """Implements `textsafe_gym.types.Policy` with an actor and two critics, each a network of its own.

    Discrete actions are categorical; Box actions a diagonal Gaussian with a log-std that no state changes. A Box
    action is clipped to its bounds on the way to the environment only, so log-probs are those of the Gaussian.

    Args:
        observation_space: of one sub-environment; a Box, or what `gymnasium.spaces.flatten_space` makes one of.
        action_space: of one sub-environment; a Discrete or a one-dimensional Box.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: another kind of space.
    """

    reference_log_std: Tensor

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        observation_space = as_box(observation_space)
        if isinstance(action_space, gym.spaces.Discrete):
            outputs = int(action_space.n)
        elif isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
            outputs = action_space.shape[0]
        else:
            raise ConfigError(
                f"an MLP acts in Discrete or one-dimensional Box spaces, not {action_space}; "
                "wrap the environment with gymnasium.wrappers.TransformAction"
            )
        self.observation_space = observation_space
        self.action_space = action_space
        self.hidden = tuple(hidden)
        inputs = int(np.prod(observation_space.shape))
        self.actor = _network(inputs, self.hidden, outputs, last_scale=0.01)
        if isinstance(action_space, gym.spaces.Box):
            self.log_std = nn.Parameter(torch.zeros(outputs))
        self.reward_critic = _network(inputs, self.hidden, 1, last_scale=0.0)
        self.cost_critic = _network(inputs, self.hidden, 1, last_scale=0.0)
        # Part of the module's state, unlike a language model's: a random start can be had from nowhere else.
        self.reference = copy.deepcopy(self.actor).requires_grad_(False)
        self.register_buffer("reference_log_std", self._spread().detach().clone())

    def rollout(
        self, env: gym.vector.VectorEnv, seed: int, group_size: int = 1, share: tuple[int, int] = (0, 1)
    ) -> Rollout:
        """Plays one whole episode in each sub-environment, under any autoreset mode; see `Policy.rollout`.

        Raises:
            ConfigError: the environment's info lacks a cost, its spaces are not the policy's, or a share is asked for.
            ModelError: an observation or the policy's output is not finite.
        """
        if share[1] > 1:
            raise ConfigError("an MLP policy is too small to be trained in several processes; start one")
        space = env.single_observation_space
        if (as_box(space), env.single_action_space) != (self.observation_space, self.action_space):
            raise ConfigError(
                f"the policy was made for {self.observation_space} and {self.action_space}, the environment has "
                f"{space} and {env.single_action_space}"
            )
        groups = group_numbers(env.num_envs, group_size)
        seeds = np.random.SeedSequence([seed, 0]).generate_state(env.num_envs)[groups.numpy()].tolist()
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
        mode = autoreset_mode(env)
        read = InfoReader(env)
        try:
            observation, _ = env.reset(seed=seeds)
        except gym.error.Error as error:  # some vector environments of Gymnasium's own take one seed alone
            raise ConfigError(
                f"{read.name} takes no list of seeds: {one_line(error)}; make it with vectorization_mode='sync'"
            ) from None
        current = vectors(env, observation)
        running = np.ones(env.num_envs, bool)
        final = np.zeros((env.num_envs, *self.observation_space.shape), np.float32)
        truncated = np.zeros(env.num_envs, bool)
        infos: list[dict[str, Any]] = [{} for _ in running]
        steps: dict[str, list[Any]] = {name: [] for name in ("observation", "action", "mask", "reward", "cost")}
        named: list[list[dict[str, float]]] = []
        while running.any():
            before = current
            action = self._sample(self._tensor(before), generator)
            try:
                observation, reward, terminations, truncations, info = env.step(self._to_env(action))
            except (gym.error.Error, ValueError) as error:
                if not of_six_values(error):
                    raise
                raise ConfigError(
                    f"{read.name}: step returns more than five values; if the cost is among them, adapt the "
                    "environment with textsafe_gym.adapters.safety_gymnasium.from_safety_gymnasium"
                ) from None
            current = vectors(env, observation)
            over = terminations | truncations
            costs, parts = np.zeros(env.num_envs), [dict[str, float]() for _ in running]
            for i in np.flatnonzero(running).tolist():
                # SAME_STEP hands the last observation and info of an ended episode over apart from the new one's.
                moved = mode == AutoresetMode.SAME_STEP and over[i]
                own = read(info["final_info"] if moved else info, i)
                costs[i], parts[i] = own["cost"], own.get("costs", {})
                if over[i]:
                    infos[i] = own
                    final[i] = flat_vector(space, info["final_obs"][i]) if moved else current[i]
                    truncated[i] = truncations[i] and not terminations[i]
            for name, value in zip(steps, (before, action, running.copy(), reward, costs), strict=True):
                steps[name].append(value)
            named.append(parts)
            running &= ~over
            if mode == AutoresetMode.DISABLED and over.any() and running.any():
                # Ended sub-environments may not be stepped, so they play on unrecorded.
                current = vectors(env, env.reset(options={"reset_mask": over})[0])
        observations = {"observation": self._tensor(np.stack(steps["observation"], 1))}
        actions, mask = torch.stack(steps["action"], 1), torch.as_tensor(np.stack(steps["mask"], 1))
        with torch.no_grad():
            now = self.evaluate(observations, actions, mask)
            initial = self._distribution(observations["observation"], self.reference, self.reference_log_std)
            bootstrap = torch.as_tensor(truncated)
            ends = [critic(self._tensor(final)).squeeze(-1) * bootstrap for critic in self._critics()]
        rewards, costs_paid = (torch.as_tensor(np.stack(steps[name], 1)).float() * mask for name in ("reward", "cost"))
        names = sorted({name for parts in named for part in parts for name in part})
        return Rollout(
            observations=observations,
            actions=actions,
            mask=mask,
            log_probs=now.log_probs,
            reference_log_probs=initial.log_prob(actions) * mask,
            reward_values=now.reward_values,
            cost_values=now.cost_values,
            rewards=rewards,
            costs=costs_paid,
            named_costs={
                name: torch.tensor([[part.get(name, 0.0) for part in parts] for parts in named]).T.float()
                for name in names
            },
            groups=groups,
            final_reward_values=ends[0],
            final_cost_values=ends[1],
            infos=infos,
        )

    def evaluate(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Evaluation:
        """Log-probs, entropy and values; see `Policy.evaluate`. `observations["observation"]` is (B, T, D)."""
        x = observations["observation"]
        distribution = self._distribution(x, self.actor, self._spread())
        log_probs = distribution.log_prob(actions)
        if not bool(torch.isfinite(log_probs[mask]).all()):
            raise ModelError("the policy's log-probabilities are not finite; it has diverged: lower the learning rate")
        values = (critic(x).squeeze(-1) * mask for critic in self._critics())
        return Evaluation(log_probs * mask, distribution.entropy() * mask, *values)

    def distributions(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """See `Policy.distributions`: logits (N, n), or means and log-stds (N, 2·A)."""
        out = self.actor(observations["observation"][mask])
        if isinstance(self.action_space, gym.spaces.Discrete):
            return out
        return torch.cat([out, self._spread().expand_as(out)], -1)

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """See `Policy.divergence`."""
        return kl_divergence(self._from_parameters(p), self._from_parameters(q))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `Policy.parameter_groups`."""
        actor = [*self.actor.parameters(), *([self.log_std] if hasattr(self, "log_std") else [])]
        critics = {"reward_critic": self.reward_critic, "cost_critic": self.cost_critic}
        return {"actor": actor, **{name: list(critic.parameters()) for name, critic in critics.items()}}

    def save(self, directory: str | Path) -> None:
        """Writes the networks as safetensors and the spaces as JSON, whole or not at all."""
        config = {
            "observation_space": _describe(self.observation_space),
            "action_space": _describe(self.action_space),
            "hidden": list(self.hidden),
        }
        with new_directory(directory) as scratch:
            (scratch / CONFIG).write_text(json.dumps(config, indent=2))
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, scratch / WEIGHTS)
            write_card(scratch, "mlp")

    def load_weights(self, source: str | Path) -> None:
        """Takes over all tensors that another policy of this shape saved, those of its reference and critics as well.

        Raises:
            ModelError: they are missing or damaged, or of another shape.
        """
        weights = find_file(source, WEIGHTS)
        if weights is None:
            raise ModelError(f"cannot load an MLP policy from '{source}': there is no {WEIGHTS}")
        try:
            self.load_state_dict(load_file(weights))
        except Exception as error:  # safetensors and torch raise unrelated types
            raise ModelError(f"cannot load an MLP policy from '{source}': {one_line(error)}") from error

    @classmethod
    def load(cls, source: str | Path) -> "MLPPolicy":
        """The inverse of `save`, from the folder or the hub; what was saved becomes the reference.

        Raises:
            ModelError: a file is missing or corrupt.
        """
        described = find_file(source, CONFIG)
        if described is None:
            raise ModelError(f"cannot load an MLP policy from '{source}': there is no {CONFIG}")
        try:
            config = json.loads(described.read_text())
            policy = cls(_space(config["observation_space"]), _space(config["action_space"]), config["hidden"])
        except Exception as error:
            # JSON and the spaces raise unrelated types; to a user all mean that this is no saved policy.
            raise ModelError(f"cannot load an MLP policy from '{source}': {one_line(error)}") from error
        policy.load_weights(source)
        policy.reference.load_state_dict(policy.actor.state_dict())
        policy.reference_log_std.copy_(policy._spread().detach())
        return policy

    def _critics(self) -> tuple[nn.Module, nn.Module]:
        return self.reward_critic, self.cost_critic

    def _spread(self) -> Tensor:
        return self.log_std if hasattr(self, "log_std") else torch.zeros(0)

    def _distribution(self, x: Tensor, actor: nn.Module, log_std: Tensor) -> Any:
        out = actor(x)
        if isinstance(self.action_space, gym.spaces.Discrete):
            return self._from_parameters(out)
        return self._from_parameters(torch.cat([out, log_std.expand_as(out)], -1))

    def _from_parameters(self, parameters: Tensor) -> Any:
        if isinstance(self.action_space, gym.spaces.Discrete):
            return Categorical(logits=parameters, validate_args=False)
        mean, log_std = parameters.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    @torch.no_grad()
    def _sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        out = self.actor(x)
        if not bool(torch.isfinite(out).all()):
            if not bool(torch.isfinite(x).all()):
                raise ModelError("the environment's observations are not finite, so that the policy cannot act on them")
            raise ModelError("the policy's outputs are not finite; it has diverged: lower the learning rate")
        if isinstance(self.action_space, gym.spaces.Discrete):
            return torch.multinomial(torch.softmax(out, -1), 1, generator=generator).squeeze(-1)
        return out + self._spread().exp() * torch.randn(out.shape, generator=generator)

    def _to_env(self, action: Tensor) -> np.ndarray:
        if isinstance(self.action_space, gym.spaces.Discrete):
            return action.numpy() + self.action_space.start
        assert isinstance(self.action_space, gym.spaces.Box)
        bounded = np.clip(action.numpy(), self.action_space.low, self.action_space.high)
        return bounded.astype(self.action_space.dtype)

    def _tensor(self, observations: np.ndarray) -> Tensor:
        """Flattens each observation; the leading dimensions stay."""
        lead = observations.shape[: observations.ndim - len(self.observation_space.shape)]
        return torch.as_tensor(observations, dtype=torch.float32).reshape(*lead, -1)


def as_box(space: gym.Space[Any]) -> gym.spaces.Box:
    """The space itself, or the one that its observations have when flattened.

    Raises:
        ConfigError: they have no fixed length.
    """
    if isinstance(space, gym.spaces.Box):
        return space
    flat = gym.spaces.flatten_space(space) if space.is_np_flattenable else None
    if not isinstance(flat, gym.spaces.Box):
        raise ConfigError(
            f"an MLP reads observations that make a vector of fixed length, not {type(space).__name__}; "
            "wrap the environment with gymnasium.wrappers.TransformObservation"
        )
    return flat


def vectors(env: gym.vector.VectorEnv, observations: Any) -> np.ndarray:
    """A vector environment's observations, (n, *shape) float32, flattened where they are no Box."""
    if isinstance(env.single_observation_space, gym.spaces.Box):
        return np.array(observations, np.float32)
    rows = gym.vector.utils.iterate(env.observation_space, observations)
    return np.stack([flat_vector(env.single_observation_space, row) for row in rows]).astype(np.float32)


def flat_vector(space: gym.Space[Any], observation: Any) -> Any:
    """One observation, flattened if it is no Box."""
    return observation if isinstance(space, gym.spaces.Box) else gym.spaces.flatten(space, observation)


def _network(inputs: int, hidden: Sequence[int], outputs: int, last_scale: float) -> nn.Sequential:
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for i, (narrow, wide) in enumerate(pairwise(widths)):
        layer = nn.Linear(narrow, wide)
        last = i == len(widths) - 2
        nn.init.orthogonal_(layer.weight, last_scale if last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def _describe(space: gym.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, gym.spaces.Box)
    return {"kind": "Box", "low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def _space(described: Mapping[str, Any]) -> gym.Space[Any]:
    if described["kind"] == "Discrete":
        return gym.spaces.Discrete(described["n"], start=described["start"])
    low, high = (np.array(described[bound], described["dtype"]) for bound in ("low", "high"))
    return gym.spaces.Box(low, high, dtype=described["dtype"])
