"""The dual side: what a cost constraint bounds, and the multipliers λ that price it."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.registry import Registry
from textsafe_gym.types import Rollout, episode_sums


class ConstraintConfig(BaseModel):
    """What is bounded, beside `cost_limit`."""

    constraint: Literal["mean", "probability", "cvar"] = Field(
        "mean", description="what cost_limit bounds: E[cost], P(cost > 0), or the mean of the worst episodes' costs"
    )
    cvar_level: float = Field(
        0.9, ge=0, lt=1, description="cvar: the worst share 1 - cvar_level of the episodes counts"
    )
    cost_limits: dict[str, float] | None = Field(
        None, description="from the name of a cost to its own limit, instead of cost_limit on their sum"
    )
    cost_window: int = Field(128, gt=0, description="episodes over which the constraint is judged")


class Constraints:
    """The bounded quantities, measured over a window of recent episodes.

    With C an episode's cost, each is the mean over episodes of a value: C itself ("mean"); 1[C > 0] ("probability");
    η + (C - η)⁺ / (1 - level) with η the window's quantile ("cvar": Rockafellar & Uryasev 2000, whose minimum over η
    that quantile attains).

    Args:
        config: kind, limits, window.
        cost_limit: the environment's or the user's, where the config has no limits by name.
        algorithm: for messages.
        several: whether the algorithm can keep more than one constraint.

    Raises:
        ConfigError: there is no limit, a limit that no policy can meet, or more limits than the algorithm can keep.
    """

    def __init__(
        self, config: ConstraintConfig, cost_limit: float | None, algorithm: str, several: bool = True
    ) -> None:
        self.config = config
        if config.cost_limits is not None:
            if not config.cost_limits:
                raise ConfigError("cost_limits is empty; name a cost and its limit, or set cost_limit")
            if len(config.cost_limits) > 1 and not several:
                raise ConfigError(
                    f"{algorithm} keeps one constraint; cost_limits names {len(config.cost_limits)}: take a Lagrangian "
                    "method, or set cost_limit on the sum of all costs"
                )
            self.limits: dict[str, float] = dict(config.cost_limits)
        elif cost_limit is None:
            raise ConfigError(f"{algorithm} needs a cost limit and the environment has none; set cost_limit")
        else:
            self.limits = {"": cost_limit}
        if (
            config.constraint == "probability"
            and config.cost_limits is None
            and getattr(config, "cost_limit", None) is None
        ):
            raise ConfigError(
                "constraint = 'probability' needs a cost_limit of its own, the largest allowed P(cost > 0); the "
                f"environment's limit {cost_limit:g} is one on the mean cost"
            )
        for name, limit in self.limits.items():
            self.set_limit(limit, name)
        self.windows = {name: deque[float](maxlen=config.cost_window) for name in self.limits}
        self.started = self.slack = False

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit of the cost `name`, or the one limit where they have no names.

        Raises:
            ConfigError: there is no limit of that name, or the new one is not finite or, of a probability, not one.
        """
        if name not in self.limits:
            known = ", ".join(f"'{own}'" for own in self.limits if own) or "the one of all costs, without a name"
            raise ConfigError(f"there is no limit on a cost '{name}'; limits: {known}")
        if not math.isfinite(limit):
            raise ConfigError(f"cost_limit = {limit!r}: expected a finite number")
        if self.config.constraint == "probability" and not 0 <= limit <= 1:
            raise ConfigError(f"constraint = 'probability': cost_limit = {limit:g} is no probability")
        self.limits[name] = float(limit)

    def observe(self, rollout: Rollout, extra: Tensor | None = None) -> Tensor:
        """Takes in the episodes.

        Args:
            rollout: whole episodes of the present policy.
            extra: (B, T) added to every cost before it is judged, such as a KL penalty; none: nothing.

        Returns:
            (K, B, T): each constraint's value, spread over the steps so that its sum over an episode is the value. A
            "mean" is paid where the cost is, the others at the last step.

        Raises:
            ConfigError: the environment has no cost of a name that has a limit.
        """
        steps = []
        for name, window in self.windows.items():
            if name and name not in rollout.named_costs:
                known = ", ".join(rollout.named_costs) or "none"
                raise ConfigError(f"cost_limits names '{name}', but the environment's named costs are: {known}")
            costs = rollout.named_costs[name] if name else rollout.costs
            steps.append(costs if extra is None else costs + extra)
            window.extend(episode_sums(steps[-1], rollout.mask).tolist())
        if not self.started:
            self._begin()
        if self.config.constraint == "mean":
            return torch.stack(steps)
        positions = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
        last = positions == rollout.lengths[:, None] - 1
        values = []
        for name, own in zip(self.windows, steps, strict=True):
            episode = episode_sums(own, rollout.mask).double().cpu().numpy()
            values.append(torch.as_tensor(self._values(name, episode), dtype=own.dtype, device=own.device))
        return torch.stack([value[:, None] * last for value in values])

    @property
    def excess(self) -> dict[str, float]:
        """By how much the window's mean value is above each limit; negative where the limit is kept."""
        return {name: float(values.mean()) - self.limits[name] for name, values in self.values.items()}

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Each constraint's values over the window, one an episode."""
        return {name: self._values(name, np.array(window)) for name, window in self.windows.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """What the windows measure, and whether the first iteration lay below every limit."""
        excess = self.excess
        measured = {f"window_cost{_suffix(name)}": self.limits[name] + over for name, over in excess.items()}
        if self.config.constraint != "mean" or any(self.limits):
            # Without it the loop would report by how much the mean of all costs is above the limit.
            measured["cost_violation"] = max(0.0, *excess.values())
        return {**measured, "limit_slack": float(self.slack)}

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        windows = {f"costs.{name}": list(window) for name, window in self.windows.items()}
        return {**windows, "limits": self.limits, "started": self.started, "slack": self.slack}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, window in self.windows.items():
            window.clear()
            window.extend(state[f"costs.{name}"])
        self.limits = dict(state["limits"])
        self.started, self.slack = state["started"], state["slack"]

    def _values(self, name: str, costs: np.ndarray) -> np.ndarray:
        if self.config.constraint == "mean":
            return costs
        if self.config.constraint == "probability":
            return (costs > 0).astype(float)
        level = self.config.cvar_level
        threshold = np.quantile(np.array(self.windows[name]), level, method="inverted_cdf")
        return threshold + np.maximum(costs - threshold, 0) / (1 - level)

    def _begin(self) -> None:
        self.started = True
        excess = self.excess
        self.slack = all(over < 0 for over in excess.values())
        if self.slack:
            name, over = next(iter(excess.items()))
            logging.getLogger("algos").warning(
                "the cost limit %g is slack: the policy starts at %.3g, and training may raise the cost up to the "
                "limit; set a lower limit to prevent that",
                self.limits[name],
                self.limits[name] + over,
            )


class MultiplierConfig(BaseModel):
    """How λ follows the constraint's excess."""

    multiplier_update: Literal["log", "projected", "adam", "pid", "nu_pi", "fixed"] = Field(
        "projected", description="log: Safe RLHF's; projected, adam: gradient ascent, λ may be 0; pid; nu_pi; fixed"
    )
    multiplier_init: float = Field(0.0, ge=0, description="λ before the first update")
    multiplier_learning_rate: float = Field(
        0.1, ge=0, description="step of λ's update; the integral gain of pid, nu_pi"
    )
    multiplier_max: float | None = Field(5.0, gt=0, description="largest λ; none: unbounded")
    multiplier_kp: float = Field(0.1, ge=0, description="proportional gain of pid and nu_pi")
    multiplier_kd: float = Field(0.0, ge=0, description="derivative gain of pid")
    multiplier_nu: float = Field(0.0, gt=-1, lt=1, description="nu_pi: weight of the past in the smoothed excess")

    @model_validator(mode="after")
    def _check_multiplier(self) -> "MultiplierConfig":
        if self.multiplier_update == "log" and self.multiplier_init == 0:
            raise ValueError(
                "multiplier_init = 0 would stay 0 under multiplier_update 'log', which moves log λ; "
                "use a small positive value, or another multiplier_update"
            )
        if self.multiplier_max is not None and self.multiplier_init > self.multiplier_max:
            raise ValueError(f"multiplier_init = {self.multiplier_init} exceeds multiplier_max = {self.multiplier_max}")
        return self


class Controller(Protocol):
    """One λ >= 0, and the rule by which it follows the excess J - limit, positive where the constraint is violated.

    Attributes:
        state: the numbers that a checkpoint keeps.
    """

    state: list[float]

    def __init__(self, config: MultiplierConfig) -> None: ...

    @property
    def value(self) -> float:
        """λ."""
        ...

    def update(self, excess: float) -> float:
        """One step.

        Args:
            excess: J - limit, in units of the cost.

        Returns:
            The new λ.

        Raises:
            RunError: it would not be finite; the old one stays.
        """
        ...


class Log:
    """The Safe RLHF paper's: log λ ← log λ + η·λ·(J - limit), a gradient step on log λ.

    It can neither start at nor reach 0, and grows without bound in finite time where the cost stays above the limit.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        # log λ, since λ may underflow to 0 without the loss of its logarithm.
        self.state = [math.log(config.multiplier_init)]

    @property
    def value(self) -> float:
        """λ."""
        return math.exp(self.state[0])

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        moved = self.state[0] + self.config.multiplier_learning_rate * self.value * excess
        most = self.config.multiplier_max
        moved = _checked(moved, excess, None if most is None else math.log(most), 700.0)  # e^709.8: the largest double
        self.state = [moved]
        return self.value


class Projected:
    """The textbook's projected dual ascent: λ ← (λ + η·(J - limit))⁺."""

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init]

    @property
    def value(self) -> float:
        """λ."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        moved = max(self.state[0] + self.config.multiplier_learning_rate * excess, 0.0)
        self.state = [_checked(moved, excess, self.config.multiplier_max)]
        return self.value


class Adam:
    """Ascent on λ by Adam with its usual β, projected to λ >= 0 (as OmniSafe does by default)."""

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, 0.0, 0.0, 0.0]  # λ, first and second moment, steps

    @property
    def value(self) -> float:
        """λ."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        value, first, second, steps = self.state
        steps += 1
        first, second = 0.9 * first + 0.1 * excess, 0.999 * second + 0.001 * excess * excess
        scaled = first / (1 - 0.9**steps) / (math.sqrt(second / (1 - 0.999**steps)) + 1e-8)
        moved = max(value + self.config.multiplier_learning_rate * scaled, 0.0)
        self.state = [_checked(moved, excess, self.config.multiplier_max), first, second, steps]
        return self.value


class PID:
    """λ = (K_P·e + I + K_D·(J - J_previous)⁺)⁺ with I ← (I + K_I·e)⁺ and e = J - limit.

    Source: Stooke, Achiam & Abbeel, arXiv 2007.03964, algorithm 2. I is kept at or below the largest λ as well.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, config.multiplier_init, math.nan]  # λ, I, the excess before

    @property
    def value(self) -> float:
        """λ."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        config = self.config
        _, integral, before = self.state
        moved = max(integral + config.multiplier_learning_rate * excess, 0.0)
        integral = _checked(moved, excess, config.multiplier_max)
        rise = 0.0 if math.isnan(before) else max(excess - before, 0.0)
        value = max(config.multiplier_kp * excess + integral + config.multiplier_kd * rise, 0.0)
        self.state = [_checked(value, excess, config.multiplier_max), integral, excess]
        return self.value


class NuPI:
    """λ ← (λ + K_I·e + K_P·(ξ - ξ_previous))⁺ with ξ ← ν·ξ + (1 - ν)·e, whose first value is e itself.

    Source: Sohrabi et al., arXiv 2406.04558, algorithm 1.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, math.nan]  # λ, ξ

    @property
    def value(self) -> float:
        """λ."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        config = self.config
        value, before = self.state
        smooth = excess if math.isnan(before) else config.multiplier_nu * before + (1 - config.multiplier_nu) * excess
        change = 0.0 if math.isnan(before) else smooth - before
        moved = max(value + config.multiplier_learning_rate * excess + config.multiplier_kp * change, 0.0)
        self.state = [_checked(moved, excess, config.multiplier_max), smooth]
        return self.value


class Fixed:
    """λ stays as it is."""

    def __init__(self, config: MultiplierConfig) -> None:
        self.state = [config.multiplier_init]

    @property
    def value(self) -> float:
        """λ."""
        return self.state[0]

    def update(self, excess: float) -> float:
        """See `Controller.update`."""
        return self.value


CONTROLLERS: Registry[type[Controller]] = Registry(
    "multiplier rule",
    [
        ("log", Log, "Safe RLHF's: a gradient step on log λ"),
        ("projected", Projected, "gradient ascent on λ, kept at 0 or above"),
        ("adam", Adam, "ascent on λ by Adam"),
        ("pid", PID, "a PID controller on the excess"),
        ("nu_pi", NuPI, "a PI controller on a smoothed excess"),
        ("fixed", Fixed, "λ stays as it is"),
    ],
)


class Multipliers:
    """One λ for each constraint.

    Args:
        config: the rule and its rates, the same for all.
        constraints: gives the names.
    """

    def __init__(self, config: MultiplierConfig, constraints: Constraints) -> None:
        self.controllers = {name: CONTROLLERS[config.multiplier_update](config) for name in constraints.limits}

    def update(self, excess: Mapping[str, float]) -> Tensor:
        """Moves each λ by its own excess; returns them all, (K,) float64.

        Raises:
            RunError: one is no longer finite.
        """
        moved = [controller.update(excess[name]) for name, controller in self.controllers.items()]
        return torch.tensor(moved, dtype=torch.float64)

    @property
    def metrics(self) -> dict[str, float]:
        """`multiplier`, the sum of all, and where they have names each one."""
        values = {name: controller.value for name, controller in self.controllers.items()}
        named = {f"multiplier{_suffix(name)}": value for name, value in values.items() if name}
        return {"multiplier": math.fsum(values.values()), **named}

    def state_dict(self) -> dict[str, Any]:
        """JSON values; a number that is not there yet is None."""
        return {name: [_known(x) for x in controller.state] for name, controller in self.controllers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, controller in self.controllers.items():
            controller.state = [math.nan if x is None else x for x in state[name]]


def price(signals: Tensor, multipliers: Tensor) -> tuple[Tensor, float]:
    """All constraints as one: Σ λ_k·C_k = λ·C with λ = Σ λ_k and C the mean of the C_k, weighted by λ_k.

    Args:
        signals: (K, B, T), as `Constraints.observe` gives them.
        multipliers: (K,), at least 0.

    Returns:
        C (B, T), whose scale does not grow with the multipliers, so that a critic can learn it; and λ.
    """
    total = float(multipliers.sum())
    weights = multipliers / total if total > 0 else torch.full_like(multipliers, 1 / len(multipliers))
    return torch.einsum("k,kbt->bt", weights.to(signals), signals), total


def _checked(value: float, excess: float, most: float | None, largest: float = 1e300) -> float:
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


def _known(x: float) -> float | None:
    return None if math.isnan(x) else x


def _suffix(name: str) -> str:
    return f"_{name}" if name else ""
