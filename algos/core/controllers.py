"""Rules for λ beyond gradient ascent: Adam's, and the controllers of control theory."""

import math

from algos.core.constraints import Rule, bounded
from algos.core.settings import MultiplierConfig


class Adam(Rule):
    """Ascent on λ by Adam with its usual β, projected to λ >= 0 (as OmniSafe does by default)."""

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, 0.0, 0.0, 0.0]  # λ, first and second moment, steps

    def update(self, excess: float) -> float:
        """Moves λ by a bias-corrected Adam step on the excess and returns it; see `Rule.update`."""
        value, first, second, steps = self.state
        steps += 1
        first, second = 0.9 * first + 0.1 * excess, 0.999 * second + 0.001 * excess * excess
        scaled = first / (1 - 0.9**steps) / (math.sqrt(second / (1 - 0.999**steps)) + 1e-8)
        moved = max(value + self.config.multiplier_learning_rate * scaled, 0.0)
        self.state = [bounded(moved, excess, self.config.multiplier_max), first, second, steps]
        return self.value


class PID(Rule):
    """λ = (K_P·e + I + K_D·(J - J_previous)⁺)⁺ with I ← (I + K_I·e)⁺ and e = J - limit.

    Source: Stooke, Achiam & Abbeel, arXiv 2007.03964, algorithm 2. I is kept at or below the largest λ as well.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, config.multiplier_init, math.nan]  # λ, I, the excess before

    def update(self, excess: float) -> float:
        """Sums the excess into I and returns the new λ; the first call has no rise. See `Rule.update`."""
        config = self.config
        _, integral, before = self.state
        moved = max(integral + config.multiplier_learning_rate * excess, 0.0)
        integral = bounded(moved, excess, config.multiplier_max)
        rise = 0.0 if math.isnan(before) else max(excess - before, 0.0)
        value = max(config.multiplier_kp * excess + integral + config.multiplier_kd * rise, 0.0)
        self.state = [bounded(value, excess, config.multiplier_max), integral, excess]
        return self.value


class NuPI(Rule):
    """λ ← (λ + K_I·e + K_P·(ξ - ξ_previous))⁺ with ξ ← ν·ξ + (1 - ν)·e, whose first value is e itself.

    Source: Sohrabi et al., arXiv 2406.04558, algorithm 1.
    """

    def __init__(self, config: MultiplierConfig) -> None:
        self.config = config
        self.state = [config.multiplier_init, math.nan]  # λ, ξ

    def update(self, excess: float) -> float:
        """Smooths the excess into ξ and returns the new λ; the first call has no change. See `Rule.update`."""
        config = self.config
        value, before = self.state
        smooth = excess if math.isnan(before) else config.multiplier_nu * before + (1 - config.multiplier_nu) * excess
        change = 0.0 if math.isnan(before) else smooth - before
        moved = max(value + config.multiplier_learning_rate * excess + config.multiplier_kp * change, 0.0)
        self.state = [bounded(moved, excess, config.multiplier_max), smooth]
        return self.value
