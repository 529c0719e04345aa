"""What constraints measure, and how multipliers follow them."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import algos
from algos.core.constraints import Constraints, Rule, weighted_cost
from algos.core.settings import RULES, ConstraintConfig, MultiplierConfig
from algos.hc_lagrangian import upper_bound
from tests.helpers.cmdps import Crossing
from tests.helpers.rounding import FLOAT64, rounding
from textsafe_gym.cli.values import algorithm_choices
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.types import Rollout

NAN = float("nan")


def controller(rule: str, initial: float, rate: float, maximum: float | None = None, **gains: float) -> Any:
    return RULES[rule](
        MultiplierConfig.model_validate(
            {
                "multiplier_update": rule,
                "multiplier_init": initial,
                "multiplier_learning_rate": rate,
                "multiplier_max": maximum,
                **{f"multiplier_{name}": gain for name, gain in gains.items()},
            }
        )
    )


@pytest.mark.parametrize("maximum", [None, 2.0])
def test_log_multiplier_in_closed_form(maximum: float | None) -> None:
    multiplier, expected = controller("log", 0.5, 0.3, maximum), 0.5
    for excess in (1.0, 2.0, -4.0, 0.0, 3.0, 3.0):
        expected = min(expected * math.exp(0.3 * expected * excess), maximum or math.inf)
        assert multiplier.update(excess) == pytest.approx(expected, rel=FLOAT64)


def test_projected_multiplier_starts_at_reaches_and_leaves_zero() -> None:
    multiplier = controller("projected", 0.0, 0.5, 1.0)
    assert [multiplier.update(excess) for excess in (-1.0, 1.0, -4.0, -4.0, 0.5, 9.0)] == [0, 0.5, 0, 0, 0.25, 1.0]


def test_adam_is_torchs() -> None:
    value = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    torchs = torch.optim.Adam([value], lr=0.05, maximize=True)
    ours = controller("adam", 1.0, 0.05)
    for excess in (0.3, -0.2, 1.5, 0.0, 0.7):
        value.grad = torch.tensor([excess], dtype=torch.float64)
        torchs.step()
        assert ours.update(excess) == pytest.approx(value.item(), abs=FLOAT64)


def test_pid_by_hand() -> None:
    pid = controller("pid", 0.5, 0.1, None, kp=2.0, kd=3.0)
    # I: 0.5 + 0.1, then 0.6 + 0.3, then 0.9 - 0.4; the derivative counts rises alone.
    found = [pid.update(excess) for excess in (1.0, 3.0, -4.0)]
    assert found == pytest.approx([2.0 + 0.6, 6.0 + 0.9 + 3.0 * 2.0, 0.0])
    assert pid.update(0.0) == pytest.approx(0.5 + 3.0 * 4.0)


def test_pids_integral_does_not_wind_up_below_zero() -> None:
    pid = controller("pid", 0.5, 0.1, None, kp=0.0)
    assert [pid.update(excess) for excess in (-100.0, 2.0)] == [0.0, pytest.approx(0.2)]


def test_nu_pi_by_hand() -> None:
    pi = controller("nu_pi", 1.0, 0.1, None, kp=2.0, nu=0.5)
    # ξ: 1, then 0.5 + 0.5·3 = 2, then 1 - 0.5 = 0.5
    assert pi.update(1.0) == pytest.approx(1.1)
    assert pi.update(3.0) == pytest.approx(1.1 + 0.3 + 2.0 * 1.0)
    assert pi.update(-1.0) == pytest.approx(3.4 - 0.1 - 2.0 * 1.5)


def test_fixed_stays() -> None:
    fixed = controller("fixed", 0.7, 0.5)
    assert [fixed.update(excess) for excess in (1.0, -5.0)] == [0.7, 0.7]


def test_a_rule_from_outside_is_a_setting_like_any_other() -> None:
    class Steps(Rule):
        def update(self, excess: float) -> float:
            self.state = [self.value + 1]
            return self.value

    config = {"multiplier_update": "steps", "episodes": 16, "episodes_per_iteration": 8, "minibatch_size": 8}
    env = gym.vector.SyncVectorEnv([Crossing] * 8)
    with pytest.raises(ConfigError, match=r"multiplier_update = 'steps': input should be 'log', .* or 'fixed'$"):
        algos.make("ppo_lagrangian", env, **config)
    RULES.register("steps", Steps, "λ grows by 1")
    try:
        rows = algos.make("ppo_lagrangian", env, **config).learn()
        assert [row["multiplier"] for row in rows] == [2.0, 3.0]
        assert "steps" in algorithm_choices("ppo_lagrangian")["multiplier_update"]
        with pytest.raises(ConfigError, match="'fixed' or 'steps'; did you mean 'steps'"):
            algos.make("ppo_lagrangian", env, **{**config, "multiplier_update": "stepps"})
        with pytest.raises(ConfigError, match="the multiplier rule 'steps' is registered already"):
            RULES.register("steps", Rule)
    finally:
        RULES.remove("steps")


@pytest.mark.parametrize(("rule", "excess"), [("log", 1e6), ("log", NAN), ("projected", math.inf), ("pid", NAN)])
def test_a_diverging_multiplier_is_said_and_not_kept(rule: str, excess: float) -> None:
    multiplier = controller(rule, 1.0, 1.0)
    with pytest.raises(RunError, match="multiplier diverged"):
        multiplier.update(excess)
    assert multiplier.value == 1.0


def test_log_multiplier_survives_underflow() -> None:
    multiplier = controller("log", 1.0, 1.0)
    assert multiplier.update(-1e6) == 0.0
    assert multiplier.update(1.0) == 0.0  # as small as it can be, and no error


def plant(multiplier: Any, steps: int = 400) -> np.ndarray:
    """The cost of a policy that moves a tenth of the way to 1 - λ in each step, against a limit of 0.25: λ* = 0.75."""
    cost, costs = 1.0, []
    for _ in range(steps):
        cost += 0.1 * (1 - multiplier.update(cost - 0.25) - cost)
        costs.append(cost)
    return np.array(costs) - 0.25


@pytest.mark.parametrize(
    ("rule", "initial", "gains"),
    [
        ("log", 0.1, {}),
        ("projected", 0.0, {}),
        ("adam", 0.0, {}),
        ("pid", 0.0, {"kp": 0.6, "kd": 0.6}),
        ("nu_pi", 0.0, {"kp": 0.6, "nu": 0.0}),
        ("fixed", 0.75, {}),
    ],
)
def test_every_controller_brings_the_same_plant_to_its_limit(
    rule: str, initial: float, gains: dict[str, float]
) -> None:
    rate = 0.02 if rule == "adam" else 0.1
    excess = plant(controller(rule, initial, rate, None, **gains))
    overshoot = -excess.min()
    settled = int(np.flatnonzero(np.abs(excess) > 0.02)[-1]) + 1
    violated = float(np.maximum(excess, 0).sum())
    print(f"{rule}: overshoot {overshoot:.3f}, settles in {settled} steps, violation integral {violated:.2f}")
    # In closed form: with λ = 0.75 from the start, the excess 0.75·0.9^t is above 0.02 for 34 steps, and sums to 6.75.
    if rule == "fixed":
        assert (overshoot, settled) == (pytest.approx(0.0, abs=FLOAT64), 34)
        assert violated == pytest.approx(0.75 * 0.9 / 0.1, abs=rounding(terms=400, scale=7.0, dtype=torch.float64))
        return
    assert np.abs(excess[-50:]).max() < 1e-3
    free = plant(controller("projected", 0.0, 0.1))
    if rule in ("pid", "nu_pi"):  # what a proportional term is for
        assert overshoot < 0.5 * -free.min()
        assert settled < 0.7 * (int(np.flatnonzero(np.abs(free) > 0.02)[-1]) + 1)


class Limited(ConstraintConfig):
    cost_limit: float | None = None


def rollout(costs: list[list[float]], lengths: list[int], named: dict[str, list[list[float]]] | None = None) -> Rollout:
    paid = torch.tensor(costs)
    mask = torch.arange(paid.shape[1]) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros_like(paid)
    return Rollout(
        observations={},
        actions=zeros.long(),
        mask=mask,
        log_probs=zeros,
        rewards=zeros,
        costs=paid,
        named_costs={name: torch.tensor(x) for name, x in (named or {}).items()},
    )


FOUR = rollout([[1.0, 2.0], [-1.0, NAN], [0.0, -2.0], [5.0, 5.0]], [2, 1, 2, 2])  # episode costs 3, -1, -2, 10


def test_the_mean_over_the_window() -> None:
    constraints = Constraints(ConstraintConfig(cost_window=4), 1.0, "x")
    measured = constraints.measure(rollout([[4.0, 4.0]] * 3, [2] * 3))
    assert measured.excess == {"": pytest.approx(7.0)}
    measured = constraints.measure(rollout([[0.0, 1.0], [1.0, 9.0]], [2, 1]))  # 8, 8 stay; 1 and 1 come
    assert measured.excess == {"": pytest.approx((8 + 8 + 1 + 1) / 4 - 1)}
    assert measured.signals.tolist() == [[[0.0, 1.0], [1.0, 9.0]]]


def test_probability_counts_costly_episodes_at_their_last_step() -> None:
    config = type("Own", (ConstraintConfig,), {"__annotations__": {"cost_limit": float}})(
        constraint="probability", cost_limit=0.25
    )
    constraints = Constraints(config, 0.25, "x")
    measured = constraints.measure(FOUR)
    assert measured.excess == {"": pytest.approx(0.5 - 0.25)}
    assert measured.signals.tolist() == [[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]
    harmless = Constraints(config, 0.25, "x").measure(rollout([[1.0, -1.0], [0.0, 0.0]], [2, 2]))
    assert harmless.excess == {"": -0.25}  # a cost of exactly 0 is not a harm


@pytest.mark.parametrize(("level", "worst"), [(0.5, (3 + 10) / 2), (0.75, 10.0), (0.0, 2.5)])
def test_cvar_is_the_mean_of_the_worst(level: float, worst: float) -> None:
    constraints = Constraints(Limited(constraint="cvar", cvar_level=level, cost_limit=1.0), 1.0, "x")
    measured = constraints.measure(FOUR)
    assert measured.excess == {"": pytest.approx(worst - 1.0)}
    assert measured.signals.sum(-1).mean().item() == pytest.approx(worst)  # the signal's mean is what is bounded


def test_named_costs_have_a_limit_and_a_multiplier_each() -> None:
    config = ConstraintConfig(cost_limits={"a": 1.0, "b": -1.0})
    constraints = Constraints(config, None, "x")
    named = {"a": [[1.0, 2.0], [1.0, 0.0]], "b": [[0.0, -4.0], [0.0, 0.0]]}
    measured = constraints.measure(rollout([[1.0, -2.0], [1.0, 0.0]], [2, 2], named))
    assert measured.excess == {"a": pytest.approx(1.0), "b": pytest.approx(-1.0)}
    assert measured.metrics["cost_violation"] == pytest.approx(1.0)
    costs, total = weighted_cost(measured.signals, torch.tensor([3.0, 1.0]))
    assert total == 4.0
    assert costs[0].tolist() == pytest.approx([0.75 * 1.0, 0.75 * 2.0 + 0.25 * -4.0])
    assert weighted_cost(measured.signals, torch.zeros(2))[0][0].tolist() == pytest.approx(
        [0.5, -1.0]
    )  # no price: the plain mean


def test_a_named_cost_that_is_absent_is_0_and_said(caplog: pytest.LogCaptureFixture) -> None:
    config = ConstraintConfig(cost_limits={"harm": 1.0, "harn": 1.0})
    constraints = Constraints(config, None, "x")
    assert constraints.measure(FOUR).excess == {"harm": -1.0, "harn": -1.0}
    assert constraints.unseen == {"harm", "harn"}
    assert "had a cost 'harm', which counts as 0 until one has; named costs so far: none" in caplog.text
    late = constraints.measure(rollout([[4.0, 2.0]], [2], {"harm": [[4.0, 2.0]]}))
    assert late.excess == {"harm": pytest.approx(6 / 5 - 1), "harn": -1.0}
    again = Constraints(config, None, "x")
    again.load_state_dict(constraints.state_dict())
    assert constraints.unseen == again.unseen == {"harn"}
    caplog.clear()
    Constraints(config, None, "x").measure(rollout([[1.0, 2.0]], [2], {"harm": [[1.0, 2.0]]}))
    typo = [record.getMessage() for record in caplog.records if "'harn'" in record.getMessage()]
    assert len(typo) == 1
    assert typo[0].endswith("named costs so far: harm; did you mean 'harm'?")


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a cost limit"):
        Constraints(ConstraintConfig(), None, "x")
    for other in ("probability", "cvar"):  # the environment's limit is on the mean
        message = (
            f"constraint = '{other}' needs a cost_limit of its own, the largest allowed {other}; the environment's"
        )
        with pytest.raises(ConfigError, match=message):
            Constraints(Limited(constraint=other), 0.5, "x")
        assert Constraints(Limited(constraint=other, cost_limit=0.25), 0.25, "x").limits == {"": 0.25}
    with pytest.raises(ConfigError, match="keeps one constraint"):
        Constraints(ConstraintConfig(cost_limits={"a": 1.0, "b": 1.0}), None, "x", several=False)
    with pytest.raises(ConfigError, match="is empty"):
        Constraints(ConstraintConfig(cost_limits={}), 1.0, "x")
    with pytest.raises(ConfigError, match="not a probability"):
        Constraints(ConstraintConfig(constraint="probability", cost_limits={"a": 1.5}), None, "x")


def test_the_window_is_kept_in_the_state() -> None:
    whole, loaded = (Constraints(ConstraintConfig(cost_window=6), 1.0, "x") for _ in range(2))
    whole.measure(FOUR)
    loaded.load_state_dict(whole.state_dict())
    after = [own.measure(rollout([[7.0, 0.0]], [2])) for own in (whole, loaded)]
    assert after[0].excess == after[1].excess == {"": pytest.approx((3 - 1 - 2 + 10 + 7) / 5 - 1)}


def test_the_violation_is_never_negative() -> None:
    constraints = Constraints(ConstraintConfig(), 1.0, "x")
    assert constraints.violation({"cost": 1.5, "reward": 9.0}) == {"cost_violation": 0.5}
    assert constraints.violation({"cost": 0.25}) == {"cost_violation": 0.0}
    assert constraints.violation({"reward": 9.0}) == {}
    assert Constraints(None, None, "x").violation({"cost": 1.5}) == {}


def test_a_limit_can_be_changed_and_is_kept_in_the_state() -> None:
    constraints = Constraints(ConstraintConfig(cost_limits={"a": 1.0, "b": -1.0}), None, "x")
    constraints.set_limit(-2.0, "b")
    again = Constraints(ConstraintConfig(cost_limits={"a": 1.0, "b": -1.0}), None, "x")
    again.load_state_dict(constraints.state_dict())
    assert again.limits == {"a": 1.0, "b": -2.0}
    again.set_limit(5.0, "a")
    assert constraints.limits["a"] == 1.0
    with pytest.raises(ConfigError, match="no limit on a cost ''; limits: 'a', 'b'"):
        constraints.set_limit(0.0)


def test_the_upper_bound_of_a_mean_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])  # mean 3, variance 14/3; the t quantile of 3 degrees at 0.95 is 2.353363
    assert upper_bound(values, 0.95) == pytest.approx(3 + 2.353363 * math.sqrt(14 / 3 / 4), abs=6e-7)  # of six decimals
    assert upper_bound(values, 0.5) == pytest.approx(3.0)
    assert upper_bound(values[:1], 0.95) == math.inf


def test_the_upper_bounds_of_shares_by_hand() -> None:
    """None of n: 1 - m to the n is 1 - confidence, for single shares and for rows of them."""
    none = 1 - 0.05 ** (1 / 128)  # 0.0231
    assert upper_bound(np.zeros(128), 0.95, shares=True) == pytest.approx(none)
    assert upper_bound(np.zeros((128, 4)), 0.95, shares=True) == pytest.approx(none)
    assert upper_bound(np.ones(8), 0.95, shares=True) == upper_bound(np.ones((4, 2)), 0.95, shares=True) == 1.0
    # One of two: the m with 1 - m² = 0.95, and the m with 2·kl(½, m) = log 20, which is 4·m·(1 - m) = 1/20.
    one = np.array([0.0, 1.0])
    assert upper_bound(one, 0.95, shares=True) == pytest.approx(math.sqrt(0.95))
    assert upper_bound(one[:, None], 0.95, shares=True) == pytest.approx((1 + math.sqrt(0.95)) / 2)


@pytest.mark.parametrize("share", [0.005, 0.05, 0.5])
@pytest.mark.parametrize("size", [1, 8])
def test_the_upper_bound_of_a_share_covers(share: float, size: int) -> None:
    """4,000 samples of 128 responses; those of a group are harmful with a probability of the group's own.

    A bound at 0.95 that held in 0.94 of them only would be seen: that is 2.9 standard errors of 4,000 draws.
    """
    rng = np.random.default_rng(0)
    # Beta with the mean `share`, and half of what variance there can be between groups.
    own = rng.beta(share, 1 - share, (4000, 128 // size, 1)) if size > 1 else np.full((4000, 128, 1), share)
    harmful = (rng.random((4000, 128 // size, size)) < own).astype(float)
    bounds = [upper_bound(sample[:, 0] if size == 1 else sample, 0.95, shares=True) for sample in harmful]
    assert np.mean(np.array(bounds) >= share) >= 0.94


def test_the_upper_bound_of_a_mean_takes_groups_as_one() -> None:
    """Eight answers to a prompt that cost the same are one cost: as sixteen single ones, not as 128."""
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(2000, 16, 1)) + np.zeros(8)
    bounds = np.array([upper_bound(sample, 0.95) for sample in costs])
    apart = np.array([upper_bound(sample.reshape(-1), 0.95) for sample in costs])
    assert np.mean(bounds >= 0) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))
    assert np.mean(apart >= 0) < 0.8


@pytest.mark.parametrize(("settings", "match"), [
    ({"constraint": "cvar", "cost_limit": 0.0}, "no confidence bound"),
    ({"group_size": 4, "cost_window": 4}, "two groups"),
])  # fmt: skip
def test_hc_refuses_what_has_no_bound(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        algos.make("hc_lagrangian", "SafeRLHF-Exact-v0", episodes_per_iteration=16, **settings)


@pytest.mark.parametrize(("level", "low"), [(0.9, 0.01), (0.99, 0.05)])
def test_a_cvar_of_few_episodes_is_low(level: float, low: float) -> None:
    """By what the page on the constraint has, on normal costs, whose CVaR is density(quantile) / (1 - level)."""
    from scipy.stats import norm

    constraints = Constraints(Limited(constraint="cvar", cvar_level=level, cost_limit=0.0), 0.0, "x")
    rng = np.random.default_rng(0)
    samples = (rollout(rng.normal(size=(128, 1)).tolist(), [1] * 128) for _ in range(1500))
    found = [constraints.measure(sample).values[""].mean() for sample in samples]
    assert np.mean(found) / (norm.pdf(norm.ppf(level)) / (1 - level)) - 1 == pytest.approx(-low, abs=0.01)
