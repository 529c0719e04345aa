"""What a cost constraint bounds, whether it is kept, and the multipliers λ that follow its excess."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algos.core.settings import RULES, ConstraintConfig, MultiplierConfig
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.limits import violation
from textsafe_gym.protocols import State
from textsafe_gym.registry import did_you_mean
from textsafe_gym.types import Rollout, episode_sums


@dataclass(frozen=True)
class Measured:
    """What K constraints found in a rollout and in the window that it joined.

    Attributes:
        signals: (K, B, T), each constraint's value, spread over the steps so that its sum over an episode is the
            value. A "mean" is paid where the cost is, the others at the last step.
        values: by name, (window,) float64, each episode's value.
        excess: by name, by how much the window's mean value is above the limit; negative where the limit is kept.
        metrics: what the windows measure, and whether the first iteration lay below every limit.
    """

    signals: Tensor
    values: dict[str, np.ndarray]
    excess: dict[str, float]
    metrics: dict[str, float]


class Constraints:
    """The bounded quantities and their limits; an algorithm without a constraint has an empty one.

    With C an episode's cost, each is the mean over episodes of a value: C itself ("mean"); 1[C > 0] ("probability");
    η + (C - η)⁺ / (1 - level) with η the window's quantile ("cvar": Rockafellar & Uryasev 2000, whose minimum over η
    that quantile attains; as it is of the same episodes, the mean comes out a little low).

    Args:
        config: kind, limits, window; None: nothing is bounded.
        cost_limit: the environment's or the user's, where the config has no limits by name; what is not bounded is
            still judged by it.
        algorithm: for messages.
        several: whether the algorithm can keep more than one constraint.

    Attributes:
        limits: by name of the cost, "" for the sum of all.
        cost_limit: the limit on the mean of all costs, bounded or not; None where something else is bounded.
        unseen: the named costs with a limit that no episode has had so far; they count as 0.

    Raises:
        ConfigError: there is no limit, a limit that no policy can meet, or more limits than the algorithm can keep.
    """

    def __init__(
        self, config: ConstraintConfig | None, cost_limit: float | None, algorithm: str, several: bool = True
    ) -> None:
        self.algorithm, self.cost_limit = algorithm, cost_limit
        self.limits: dict[str, float] = {}
        self.unseen: set[str] = set()
        self.windows: dict[str, deque[float]] = {}
        self.started = self.slack = False
        if config is None:
            return
        self.config = config
        if config.cost_limits is not None:
            if not config.cost_limits:
                raise ConfigError("cost_limits is empty; name a cost and its limit, or set cost_limit")
            if len(config.cost_limits) > 1 and not several:
                raise ConfigError(
                    f"{algorithm} keeps one constraint; cost_limits names {len(config.cost_limits)}: take a Lagrangian "
                    "method, or set cost_limit on the sum of all costs"
                )
            self.limits = dict(config.cost_limits)
        elif cost_limit is None:
            raise ConfigError(f"{algorithm} needs a cost limit and the environment has none; set cost_limit")
        else:
            self.limits = {"": cost_limit}
        if config.constraint != "mean" and "" in self.limits and config.cost_limit is None:
            raise ConfigError(
                f"constraint = '{config.constraint}' needs a cost_limit of its own, the largest allowed "
                f"{config.constraint}; the environment's limit {cost_limit:g} is one on the mean cost"
            )
        for name, limit in self.limits.items():
            self.set_limit(limit, name)
        self.windows = {name: deque[float](maxlen=config.cost_window) for name in self.limits}
        self.unseen = self.limits.keys() - {""}

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit of the cost `name`, or the one limit where they have no names.

        Raises:
            ConfigError: there is no limit of that name, or the new one is not finite or, of a probability, not one.
        """
        if not self.limits:
            raise ConfigError(f"{self.algorithm} keeps no cost limit; take an algorithm with a constraint")
        if name not in self.limits:
            known = ", ".join(f"'{own}'" for own in self.limits if own) or "the one of all costs, without a name"
            raise ConfigError(f"there is no limit on a cost '{name}'; limits: {known}")
        if not isinstance(limit, int | float) or not math.isfinite(limit):
            raise ConfigError(f"cost_limit = {limit!r}: expected a finite number")
        if self.config.constraint == "probability" and not 0 <= limit <= 1:
            raise ConfigError(f"constraint = 'probability': cost_limit = {limit:g} is not a probability")
        self.limits[name] = float(limit)
        self.cost_limit = self.limits[""] if self.config.constraint == "mean" and "" in self.limits else None

    def measure(self, rollout: Rollout, extra: Tensor | None = None) -> Measured:
        """Takes in the episodes and holds the window to the limits.

        Args:
            rollout: whole episodes of the present policy.
            extra: (B, T) added to every cost before it is judged, such as a KL penalty; none: nothing.
        """
        self.unseen -= rollout.named_costs.keys()
        steps = []
        for name, window in self.windows.items():
            costs = rollout.named_costs.get(name, torch.zeros_like(rollout.costs)) if name else rollout.costs
            steps.append(costs if extra is None else costs + extra)
            window.extend(episode_sums(steps[-1], rollout.mask).tolist())
        values = {name: self._values(name, np.array(window)) for name, window in self.windows.items()}
        excess = {name: float(own.mean()) - self.limits[name] for name, own in values.items()}
        if not self.started:
            self._begin(excess, list(rollout.named_costs))
        return Measured(self._signals(rollout, steps), values, excess, self._metrics(excess))

    def violation(self, measured: Mapping[str, float]) -> dict[str, float]:
        """`cost_violation`, by how much the mean cost is above its limit; empty without such a limit or a cost.

        Args:
            measured: a batch's metrics; of preferences they have no `cost`.
        """
        if self.cost_limit is None or "cost" not in measured:
            return {}
        return {"cost_violation": violation(measured["cost"] - self.cost_limit)}

    def state_dict(self) -> State:
        """For a checkpoint, as JSON values: each window's costs, limits, and whether slack was reported."""
        windows = {f"costs.{name}": list(window) for name, window in self.windows.items()}
        own = {"limits": self.limits, "cost_limit": self.cost_limit, "started": self.started, "slack": self.slack}
        return {**windows, **own, "unseen": sorted(self.unseen)}

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`."""
        for name, window in self.windows.items():
            window.clear()
            window.extend(state[f"costs.{name}"])
        self.limits, self.cost_limit = dict(state["limits"]), state["cost_limit"]
        self.started, self.slack, self.unseen = state["started"], state["slack"], set(state["unseen"])

    def _signals(self, rollout: Rollout, steps: list[Tensor]) -> Tensor:
        if self.config.constraint == "mean":
            return torch.stack(steps)
        last = torch.arange(rollout.mask.shape[1], device=rollout.mask.device) == rollout.last_step[:, None]
        values = []
        for name, own in zip(self.windows, steps, strict=True):
            episode = episode_sums(own, rollout.mask).double().cpu().numpy()
            values.append(torch.as_tensor(self._values(name, episode), dtype=own.dtype, device=own.device))
        return torch.stack([value[:, None] * last for value in values])

    def _values(self, name: str, costs: np.ndarray) -> np.ndarray:
        if self.config.constraint == "mean":
            return costs
        if self.config.constraint == "probability":
            return (costs > 0).astype(float)
        level = self.config.cvar_level
        threshold = np.quantile(np.array(self.windows[name]), level, method="inverted_cdf")
        return threshold + np.maximum(costs - threshold, 0) / (1 - level)

    def _metrics(self, excess: Mapping[str, float]) -> dict[str, float]:
        measured = {f"window_cost{_suffix(name)}": self.limits[name] + over for name, over in excess.items()}
        if self.cost_limit is None:  # else `violation` has it, of the rollout's own mean
            measured["cost_violation"] = violation(*excess.values())
        return {**measured, "limit_slack": float(self.slack)}

    def _begin(self, excess: Mapping[str, float], known: list[str]) -> None:
        self.started = True
        for name in sorted(self.unseen):
            logging.getLogger("algos").warning(
                f"cost_limits: no episode of the first iteration had a cost '{name}', which counts as 0 until one "
                f"has; named costs so far: {', '.join(known) or 'none'}; {did_you_mean(name, known)}".rstrip("; ")
            )
        seen = [name for name in excess if name not in self.unseen]
        self.slack = bool(seen) and all(over < 0 for over in excess.values())
        if self.slack:
            logging.getLogger("algos").warning(
                "the cost limit %g is slack: the policy starts at %.3g, and training may raise the cost up to the "
                "limit; set a lower limit to prevent that",
                self.limits[seen[0]],
                self.limits[seen[0]] + excess[seen[0]],
            )


class Rule:
    """One λ >= 0, and how it follows the excess J - limit, which is positive where the constraint is violated.

    Attributes:
        state: the numbers that a checkpoint keeps; λ is the first of them.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init]

    @property
    def value(self) -> float:
        """The present multiplier λ, in units of reward per unit of cost."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """One step; here: λ stays as it is.

        Args:
            excess: J - limit, in units of the cost.

        Returns:
            The new λ.

        Raises:
            RunError: the new λ would not be finite; the old one stays.
        """
        return self.value


class Log(Rule):
    """The Safe RLHF paper's: log λ ← log λ + η·λ·(J - limit), a gradient step on log λ.

    It can neither start at nor reach 0, and grows without bound in finite time where the cost stays above the limit.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        # log λ, since λ may underflow to 0 without the loss of its logarithm.
        self.state = [math.log(config.multiplier_init)]

    @property
    def value(self) -> float:
        """The present multiplier λ; the state holds its logarithm."""
        return math.exp(self.state[0])

    def update(self, excess: float) -> float:
        """Moves log λ by η·λ·excess and returns λ; see `Rule.update`."""
        moved = self.state[0] + self.config.multiplier_learning_rate * self.value * excess
        most = self.config.multiplier_max
        self.state = [bounded(moved, excess, None if most is None else math.log(most), 700.0)]  # e^709.8 is the end
        return self.value


class Projected(Rule):
    """The textbook's projected dual ascent: λ ← (λ + η·(J - limit))⁺."""

    def update(self, excess: float) -> float:
        """Moves λ by η·excess, not below 0, and returns it; see `Rule.update`."""
        moved = max(self.state[0] + self.config.multiplier_learning_rate * excess, 0.0)
        self.state = [bounded(moved, excess, self.config.multiplier_max)]
        return self.value


class Multipliers:
    """One λ for each constraint.

    Args:
        config: the rule and its rates, the same for all.
        constraints: gives the names.
    """

    def __init__(self, config: MultiplierConfig, constraints: Constraints) -> None:
        self.rules = {name: RULES[config.multiplier_update](config) for name in constraints.limits}

    def update(self, excess: Mapping[str, float]) -> Tensor:
        """Moves each λ by its own excess; returns them all, (K,) float64.

        Raises:
            RunError: one is no longer finite.
        """
        return torch.tensor([rule.update(excess[name]) for name, rule in self.rules.items()], dtype=torch.float64)

    @property
    def metrics(self) -> dict[str, float]:
        """`multiplier`, the sum of all, and where they have names each one."""
        values = {name: rule.value for name, rule in self.rules.items()}
        named = {f"multiplier{_suffix(name)}": value for name, value in values.items() if name}
        return {"multiplier": math.fsum(values.values()), **named}

    def state_dict(self) -> State:
        """JSON values; a number that is not there yet is None."""
        return {name: [None if math.isnan(x) else x for x in rule.state] for name, rule in self.rules.items()}

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`."""
        for name, rule in self.rules.items():
            rule.state = [math.nan if x is None else x for x in state[name]]


def weighted_cost(signals: Tensor, multipliers: Tensor) -> tuple[Tensor, float]:
    """All constraints as one: Σ λ_k·C_k = λ·C with λ = Σ λ_k and C the mean of the C_k, weighted by λ_k.

    Args:
        signals: (K, B, T), as `Constraints.measure` gives them.
        multipliers: (K,), at least 0.

    Returns:
        C (B, T), whose scale does not grow with the multipliers, so that a critic can learn it; and λ.
    """
    total = float(multipliers.sum())
    weights = multipliers / total if total > 0 else torch.full_like(multipliers, 1 / len(multipliers))
    return torch.einsum("k,kbt->bt", weights.to(signals), signals), total


def bounded(value: float, excess: float, most: float | None, largest: float = 1e300) -> float:
    """`value`, at most `most`.

    Raises:
        RunError: it is above `largest`, or NaN.
    """
    value = value if most is None else min(value, most)
    if not value <= largest:  # catches NaN too
        raise RunError(
            f"the multiplier diverged (excess cost {excess:g}); set multiplier_max or a lower learning rate of it"
        )
    return value


def _suffix(name: str) -> str:
    return f"_{name}" if name else ""
