"""The Lagrange multiplier λ of a constraint E[cost] <= limit, driven by gradient ascent on the dual."""

import math

from textsafe_gym.errors import RunError


class Multiplier:
    """λ >= 0 under one of two update rules.

    * "log", the Safe RLHF paper's: log λ ← log λ + η·λ·(J_C - limit), a gradient step on log λ. It can neither start
      at nor reach 0, and it grows without bound in finite time where the cost stays above the limit.
    * "projected": λ ← max(λ + η·(J_C - limit), 0), the textbook's projected dual ascent, which can do both.

    Both clamp λ to `maximum`, where there is one.

    Args:
        initial: λ before the first update, > 0 under "log".
        learning_rate: η.
        maximum: the largest λ, or None.
        rule: "log" or "projected".
    """

    def __init__(self, initial: float, learning_rate: float, maximum: float | None, rule: str) -> None:
        self.learning_rate = learning_rate
        self.maximum = maximum
        self.rule = rule
        # Under "log" the state is log λ: λ may underflow to 0 there without the loss of its logarithm.
        self.state = math.log(initial) if rule == "log" else initial

    @property
    def value(self) -> float:
        """λ."""
        return math.exp(self.state) if self.rule == "log" else self.state

    def update(self, excess: float) -> float:
        """One step.

        Args:
            excess: J_C - limit, positive where the constraint is violated.

        Returns:
            The new λ.

        Raises:
            RunError: λ is no longer finite.
        """
        if self.rule == "log":
            state = self.state + self.learning_rate * self.value * excess
            ceiling = math.inf if self.maximum is None else math.log(self.maximum)
            largest = 700.0  # exp(709.8) is the largest double
        else:
            state = max(self.state + self.learning_rate * excess, 0.0)
            ceiling = math.inf if self.maximum is None else self.maximum
            largest = 1e300
        state = min(state, ceiling)
        if not state <= largest:  # catches NaN too
            raise RunError(
                f"the multiplier diverged (excess cost {excess:g}); set multiplier_max or a lower learning rate of it"
            )
        self.state = state
        return self.value
