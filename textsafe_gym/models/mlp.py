"""Multilayer perceptrons as actor, critics and reference, for observations that are vectors or make one."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.files import Row, read_json, write_json
from textsafe_gym.models.cards import write_card
from textsafe_gym.models.files import find_file, new_directory, one_line
from textsafe_gym.protocols import State
from textsafe_gym.types import Evaluation

CONFIG, WEIGHTS = "mlp_policy.json", "mlp_policy.safetensors"


class MLPActor(nn.Module):
    """Implements `textsafe_gym.protocols.Actor` with a network of its own.

    Discrete actions are categorical; Box actions a diagonal Gaussian with a log-std that no state changes. A Box
    action is clipped to its bounds on the way to the environment only, so log-probs are those of the Gaussian.

    Args:
        observation_space: of one sub-environment; a Box, or what `gymnasium.spaces.flatten_space` makes one of.
        action_space: of one sub-environment; a Discrete or a one-dimensional Box.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: another kind of space.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, hidden: Sequence[int] = (64, 64)) -> None:
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
        self.inputs = int(np.prod(observation_space.shape))
        self.network = _network(self.inputs, self.hidden, outputs, last_scale=0.01)
        if isinstance(action_space, gym.spaces.Box):
            self.log_std = nn.Parameter(torch.zeros(outputs))

    def evaluate(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        mask: Tensor,
        critics: "MLPCritics | None" = None,
    ) -> Evaluation:
        """Log-probs, entropy and values; see `Actor.evaluate`. `observations["observation"]` is (B, T, D)."""
        x = observations["observation"]
        distribution = self._of_parameters(self._outputs(x))
        log_probs = distribution.log_prob(actions)
        if not bool(torch.isfinite(log_probs[mask]).all()):
            raise ModelError("the policy's log-probabilities are not finite; it has diverged: lower the learning rate")
        values = {} if critics is None else {f"{kind}_values": v * mask for kind, v in critics.values(x).items()}
        return Evaluation(log_probs * mask, distribution.entropy() * mask, **values)

    def distributions(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """See `Actor.distributions`: logits (N, n), or means and log-stds (N, 2·A)."""
        return self._outputs(observations["observation"][mask])

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p‖q) of categorical or Gaussian distributions; see `Actor.divergence`."""
        return kl_divergence(self._of_parameters(p), self._of_parameters(q))

    def reference(self) -> "MLPReference":
        """A frozen copy of the present weights; see `Actor.reference`."""
        return MLPReference(self)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The network's, and log σ of a Gaussian; see `Actor.trained_parameters`."""
        return [*self.network.parameters(), *([self.log_std] if self.is_gaussian else [])]

    @property
    def is_gaussian(self) -> bool:
        """Whether actions are those of a Box."""
        return isinstance(self.action_space, gym.spaces.Box)

    def player(self, env: gym.vector.VectorEnv, seed: int) -> "MLPPlayer":
        """See `Actor.player`.

        Raises:
            ConfigError: the environment's spaces are not the actor's.
        """
        return MLPPlayer(self, env, seed)

    def save(self, directory: str | Path) -> None:
        """Writes the networks as safetensors and the spaces as JSON, whole or not at all."""
        config = {
            "observation_space": _describe(self.observation_space),
            "action_space": _describe(self.action_space),
            "hidden": list(self.hidden),
        }
        with new_directory(directory) as scratch:
            write_json(scratch / CONFIG, config)
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, scratch / WEIGHTS)
            write_card(scratch, "mlp")

    def load_weights(self, source: str | Path) -> None:
        """Takes over the weights that another actor of this shape saved; a reference of this one stays.

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
    def load(cls, source: str | Path) -> "MLPActor":
        """The inverse of `save`, from the folder or the hub.

        Raises:
            ModelError: a file is missing or corrupt.
        """
        described = find_file(source, CONFIG)
        if described is None:
            raise ModelError(f"cannot load an MLP policy from '{source}': there is no {CONFIG}")
        try:
            config = read_json(described)
            actor = cls(_space(config["observation_space"]), _space(config["action_space"]), config["hidden"])
        except Exception as error:
            # JSON and the spaces raise unrelated types; to a user all mean that this is not a saved policy.
            raise ModelError(f"cannot load an MLP policy from '{source}': {one_line(error)}") from error
        actor.load_weights(source)
        return actor

    def _outputs(self, x: Tensor) -> Tensor:
        out = self.network(x)
        return torch.cat([out, self.log_std.expand_as(out)], -1) if self.is_gaussian else out

    def _of_parameters(self, parameters: Tensor) -> Categorical | Independent:
        if not self.is_gaussian:
            return Categorical(logits=parameters, validate_args=False)
        mean, log_std = parameters.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)


class MLPPlayer:
    """Implements `textsafe_gym.protocols.Player`.

    Args:
        actor: acts.
        env: its sub-environments are played in.
        seed: of all draws.

    Raises:
        ConfigError: the environment's spaces are not the actor's.
    """

    def __init__(self, actor: MLPActor, env: gym.vector.VectorEnv, seed: int) -> None:
        space = env.single_observation_space
        if (as_box(space), env.single_action_space) != (actor.observation_space, actor.action_space):
            raise ConfigError(
                f"the policy was made for {actor.observation_space} and {actor.action_space}, the environment has "
                f"{space} and {env.single_action_space}"
            )
        self._actor, self._env = actor, env
        self._generator = torch.Generator().manual_seed(seed)
        self._seen: list[np.ndarray] = []
        self._done: list[Tensor] = []
        self._last = np.zeros((env.num_envs, *actor.observation_space.shape), np.float32)

    @torch.no_grad()
    def act(self, observation: object) -> np.ndarray:
        """See `Player.act`.

        Raises:
            ModelError: an observation or the network's output is not finite.
        """
        actor = self._actor
        seen = vectors(self._env, observation)
        x = self._flat(seen)
        out = actor.network(x)
        if not bool(torch.isfinite(out).all()):
            if not bool(torch.isfinite(x).all()):
                raise ModelError("the environment's observations are not finite, so that the policy cannot act on them")
            raise ModelError("the policy's outputs are not finite; it has diverged: lower the learning rate")
        if actor.is_gaussian:
            action = out + actor.log_std.exp() * torch.randn(out.shape, generator=self._generator)
        else:
            action = torch.multinomial(torch.softmax(out, -1), 1, generator=self._generator).squeeze(-1)
        self._seen.append(seen)
        self._done.append(action)
        space = actor.action_space
        if isinstance(space, gym.spaces.Discrete):
            return action.numpy() + space.start
        assert isinstance(space, gym.spaces.Box)
        return np.clip(action.numpy(), space.low, space.high).astype(space.dtype)

    def end(self, row: int, observation: object) -> None:
        """Keeps the row's last observation, whose value an episode that was cut needs; see `Player.end`."""
        self._last[row] = flat_vector(self._env.single_observation_space, observation)

    def episodes(self) -> tuple[dict[str, Tensor], Tensor]:
        """See `Player.episodes`: "observation" (n, T, D), and actions (n, T) or (n, T, A)."""
        return {"observation": self._flat(np.stack(self._seen, 1))}, torch.stack(self._done, 1)

    @torch.no_grad()
    def final_values(self, critics: "MLPCritics") -> dict[str, Tensor]:
        """The critics' values of each row's last observation; see `Player.final_values`."""
        return critics.values(self._flat(self._last))

    def _flat(self, observations: np.ndarray) -> Tensor:
        """Flattens each observation; the leading dimensions stay."""
        lead = observations.shape[: observations.ndim - len(self._actor.observation_space.shape)]
        return torch.as_tensor(observations, dtype=torch.float32).reshape(*lead, -1)


class MLPCritics(nn.Module):
    """Implements `textsafe_gym.protocols.Critics` with a network a kind, of the actor's widths; values begin at zero.

    Args:
        actor: whose observations they read.
        kinds: "reward", "cost" or both.
    """

    def __init__(self, actor: MLPActor, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        for kind in self.kinds:
            self.add_module(f"{kind}_critic", _network(actor.inputs, actor.hidden, 1, last_scale=0.0))

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """By kind, values (...) of flattened observations (..., D)."""
        return {kind: self.get_submodule(f"{kind}_critic")(x).squeeze(-1) for kind in self.kinds}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All weights of each critic's network; see `Critics.parameter_groups`."""
        return {f"{kind}_critic": list(self.get_submodule(f"{kind}_critic").parameters()) for kind in self.kinds}


class MLPReference:
    """Implements `textsafe_gym.protocols.Reference` by a frozen copy, which a checkpoint keeps: a random start can be
    had from nowhere else."""

    def __init__(self, actor: MLPActor) -> None:
        self._actor = copy.deepcopy(actor).requires_grad_(False)

    @torch.no_grad()
    def log_probs(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """Under the frozen copy; see `Reference.log_probs`."""
        return self._actor.evaluate(observations, actions, mask).log_probs

    def state_dict(self) -> State:
        """The frozen copy's tensors, for a checkpoint."""
        return self._actor.state_dict()

    def load_state_dict(self, state_dict: State) -> None:
        """The inverse of `state_dict`."""
        self._actor.load_state_dict(state_dict)


def as_box(space: gym.Space) -> gym.spaces.Box:
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


def vectors(env: gym.vector.VectorEnv, observations: object) -> np.ndarray:
    """A vector environment's observations, (n, *shape) float32, flattened where they are not a Box."""
    if isinstance(env.single_observation_space, gym.spaces.Box):
        return np.array(observations, np.float32)
    rows = gym.vector.utils.iterate(env.observation_space, observations)
    return np.stack([flat_vector(env.single_observation_space, row) for row in rows]).astype(np.float32)


def flat_vector(space: gym.Space, observation: object) -> np.ndarray:
    """One observation, flattened if it is not a Box."""
    return np.asarray(observation if isinstance(space, gym.spaces.Box) else gym.spaces.flatten(space, observation))


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


def _describe(space: gym.Space) -> dict[str, object]:
    if isinstance(space, gym.spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, gym.spaces.Box)
    return {"kind": "Box", "low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def _space(described: Row) -> gym.Space:
    if described["kind"] == "Discrete":
        return gym.spaces.Discrete(described["n"], start=described["start"])
    low, high = (np.array(described[bound], described["dtype"]) for bound in ("low", "high"))
    return gym.spaces.Box(low, high, dtype=described["dtype"])
