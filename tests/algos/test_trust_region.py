"""Trust-region steps against brute force: the Fisher matrix, the quadratic program, the line search."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import algos
from algos.core.settings import TrustRegionConfig
from algos.core.trust_region import TrustRegion, conjugate_gradient
from algos.cpo import cpo_step
from algos.pcpo import pcpo_step
from tests.helpers.cmdps import Crossing, Tracking, vector
from textsafe_gym.errors import RunError
from textsafe_gym.models.mlp import MLPActor
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Rollout

CONFIG = TrustRegionConfig(damping=0.0, fisher_episodes=1000)


def region(env: Any, config: TrustRegionConfig = CONFIG, episodes: int = 24) -> TrustRegion:
    """Around an MLP of at most 50 parameters in double precision, off its start so that no gradient is 0."""
    envs = vector(env, episodes)
    torch.manual_seed(0)
    policy = MLPActor(envs.single_observation_space, envs.single_action_space, hidden=(5,))
    with torch.no_grad():
        for parameter in policy.trained_parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    rollout = collect(policy, envs, 0)
    policy.double()
    rollout = replace(rollout, observations={name: x.double() for name, x in rollout.observations.items()})
    if rollout.actions.is_floating_point():
        rollout = replace(rollout, actions=rollout.actions.double())
    new = policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    rollout = replace(rollout, log_probs=new.log_probs.detach())
    found = TrustRegion(policy, rollout, config, torch.Generator().manual_seed(0), 5)
    assert len(found.start) <= 50
    return found


def difference(around: TrustRegion) -> float:
    """The length of the step of its Fisher-vector products, a ten-thousandth of the parameters'."""
    return 1e-4 * max(1.0, float(around.start.norm()))


def advantages(rollout: Rollout, seed: int) -> Tensor:
    noise = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * rollout.mask


def exact_fisher(around: TrustRegion) -> Tensor:
    """The Hessian of the mean KL by automatic differentiation, (P, P)."""
    policy, rollout = around.actor, around.rollout
    order = {id(parameter): name for name, parameter in policy.named_parameters()}  # type: ignore[attr-defined]
    names = [order[id(parameter)] for parameter in around.parameters]
    old = torch.cat(around.old)

    def divergence(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))

        class View(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.policy = policy

            def forward(self) -> Tensor:
                return self.policy.distributions(rollout.observations, rollout.actions, rollout.mask)

        view = View()
        new = torch.func.functional_call(view, {f"policy.{name}": x for name, x in given.items()}, ())
        return policy.divergence(old, new).mean()

    blocks = torch.autograd.functional.hessian(divergence, tuple(p.detach() for p in around.parameters))
    return torch.cat([torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for p, row in
                      zip(around.parameters, blocks, strict=True)])  # fmt: skip


@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_fisher_products_are_the_hessian_of_the_kl(env: Any) -> None:
    around = region(env)
    fisher = exact_fisher(around)
    step = difference(around)
    for seed in range(5):
        v = torch.randn(len(fisher), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact, there, back = fisher @ v, around.fisher(v), around.fisher(-v)
        # A difference quotient: its error is not rounding, but the next term of the series, half the step times the
        # third derivative, here up to 1.6 times the second; without that term, which is the same to both sides, the one
        # after it, of the order of the step's square.
        assert (there - exact).norm() < 2 * step * exact.norm()
        assert ((there - back) / 2 - exact).norm() < 2 * step**2 * exact.norm()
    # Damping is added; and the policy stands where it stood, to the last bit.
    config = CONFIG.model_copy(update={"damping": 0.7})
    damped = TrustRegion(around.actor, around.rollout, config, torch.Generator(), 5)
    torch.testing.assert_close(damped.fisher(v), around.fisher(v) + 0.7 * v)
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in around.parameters]), around.start)


@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_the_surrogates_gradient_is_its_slope(env: Any) -> None:
    around = region(env)
    weights = advantages(around.rollout, 1)
    gradient = around.gradients(weights)[0]
    for seed in range(3):
        v = torch.randn(len(gradient), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        around.move(1e-5 * v)
        forward = around.surrogates(weights)[0]
        around.move(-1e-5 * v)
        slope = (forward - around.surrogates(weights)[0]) / 2e-5
        around.move(None)
        # The third derivative adds the square of the step's length, some 7e-5, and rounding eps / 2e-5 = 1e-11.
        assert slope == pytest.approx(
            gradient.dot(v).item(), abs=float((1e-5 * v).norm()) ** 2 * float(gradient.norm())
        )
    assert around.surrogates(weights)[0] == 0.0


def test_conjugate_gradients_solve() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 30))
    spd = torch.as_tensor(matrix @ matrix.T + np.eye(30))
    b = torch.as_tensor(rng.normal(size=30))
    # No eigenvalue is below 1, so that the error is no longer than the residual, and that is what stops the solver.
    error = conjugate_gradient(lambda v: spd @ v, b, 60, tolerance=1e-10) - torch.linalg.solve(spd, b)
    assert error.norm() <= 1e-10 * b.norm()
    assert (conjugate_gradient(lambda v: spd @ v, torch.zeros(30, dtype=torch.float64), 10) == 0).all()


def test_conjugate_gradients_stop_where_the_residual_is_small_enough() -> None:
    """Each of the two steps that two eigenvalues take leaves a residual of the third, far below the tolerance."""
    matrix, products = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)), []

    def product(v: torch.Tensor) -> torch.Tensor:
        products.append(v)
        return matrix @ v

    b = torch.tensor([1.0, 1.0, 1e-7], dtype=torch.float64)
    error = matrix.inverse() @ b - conjugate_gradient(product, b, 60)
    assert error.norm() <= 1e-6 * b.norm()  # as the residual that it stops at by default: the least eigenvalue is 1
    assert len(products) == 2
    conjugate_gradient(product, b, 60, tolerance=1e-9)
    assert len(products) == 2 + 3


# Sequential quadratic programming stops where the value changed by less than this, and the constraints are violated by
# less; by ten times that where its search direction no longer descends.
FTOL = 1e-9


def brute_force(fisher: Any, g: Any, b: Any, c: float, delta: float, case: str) -> tuple[float, Any]:
    """The quadratic program by sequential quadratic programming: its value and its step.

    It is solved for y, where the step is `to` @ y, the trust region |y| <= 1, and g and b have length 1, so that what
    FTOL means does not depend on their sizes.
    """
    to = math.sqrt(2 * delta) * np.linalg.inv(np.linalg.cholesky(fisher)).T
    aim = to.T @ (b if case == "recovery" else -g)
    size, reach = np.linalg.norm(aim), np.linalg.norm(to.T @ b)
    aim, slope, over = aim / size, to.T @ b / reach, c / reach
    inside = {"type": "ineq", "fun": lambda y: (1 - y @ y) / 2, "jac": lambda y: -y}
    keeps = {"type": "ineq", "fun": lambda y: -over - slope @ y, "jac": lambda y: -slope}
    found = scipy.optimize.minimize(
        lambda y: aim @ y,
        0 * slope if case == "recovery" else -max(over, 0) * slope,
        jac=lambda y: aim,
        constraints=[inside] if case == "recovery" else [inside, keeps],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": FTOL},
    )
    assert found.success, found.message
    return float(size * found.fun), to @ found.x


def accuracy(q: float, s: float, delta: float, alpha: float, beta: float, case: str) -> tuple[float, float]:
    """How far `brute_force` may be from the optimum: in its value, as a share of what the best step of all gains, and
    in its step, as a share of the trust region's radius.

    The value by what it changed last, and by each constraint's violation times its multiplier. The Lagrangian's second
    derivative is the trust region's multiplier, so that it rises by half of that times the squared distance; it is off
    by as much as the value, and by the violations once more.

    Args:
        q, s: as for `cpo_step`.
        delta: half the squared radius.
        alpha, beta: of the optimum, whose multipliers are 1 / alpha and beta / alpha in the problem's own units.
        case: as from `cpo_step`.
    """
    bounds = case in ("free", "recovery")
    region = 1.0 if bounds else math.sqrt(2 * delta / q) / alpha
    limit = 0.0 if bounds else math.sqrt(s / q) * beta / alpha
    return 10 * FTOL * (1 + region + limit), math.sqrt(20 * FTOL * (1 + 2 * region + 2 * limit) / region)


@pytest.mark.parametrize("case", ["free", "feasible", "infeasible", "recovery"])
def test_cpos_step_solves_its_quadratic_program(case: str) -> None:
    rng = np.random.default_rng(3)
    seen = 0
    while seen < 25:
        size = int(rng.integers(2, 50))
        matrix = rng.normal(size=(size, size))
        fisher = matrix @ matrix.T + 0.1 * np.eye(size)
        g, b = rng.normal(size=(2, size)) * 10 ** rng.uniform(-1, 1, size=(2, 1))
        if rng.random() < 0.3:
            b = rng.choice([-1, 1]) * g + 0.1 * b  # reward and cost along one line, in conflict or not
        delta = 10 ** rng.uniform(-3, -1)
        x, p = np.linalg.solve(fisher, g), np.linalg.solve(fisher, b)
        reach = math.sqrt(2 * delta * (b @ p))  # how far one step can move the cost
        c = float(rng.normal() * rng.choice([0.3, 2]) * reach) if rng.random() < 0.9 else 0.0
        found, alpha, beta = cpo_step(g @ x, g @ p, b @ p, c, delta)
        if found != case:
            continue
        seen += 1
        assert found == ("recovery" if c >= reach else "free" if c < -reach else "infeasible" if c >= 0 else "feasible")
        step = alpha * x - beta * p
        value, best = brute_force(fisher, g, b, c, delta, case)
        of_value, of_step = accuracy(g @ x, b @ p, delta, alpha, beta, case)
        gain = reach if case == "recovery" else math.sqrt(2 * delta * (g @ x))
        assert (b @ step if case == "recovery" else -g @ step) == pytest.approx(value, abs=of_value * gain)
        assert (step - best) @ fisher @ (step - best) <= of_step**2 * 2 * delta
        assert 0.5 * step @ fisher @ step <= delta * (1 + 1e-9)
        if case != "recovery":
            assert c + b @ step <= 1e-9 * reach


@pytest.mark.parametrize("env", [Tracking, Crossing])
@pytest.mark.parametrize("excess", [-0.3, -0.02, 0.02])
def test_the_whole_step_of_a_policy_solves_the_quadratic_program(env: Any, excess: float) -> None:
    config = CONFIG.model_copy(update={"damping": 0.05, "conjugate_gradient_steps": 100})
    around = region(env, config)
    reward, cost = advantages(around.rollout, 1), advantages(around.rollout, 2)
    g, b = around.gradients(reward, cost)
    x, p = around.solve(g), around.solve(b)
    case, alpha, beta = cpo_step(g.dot(x).item(), g.dot(p).item(), b.dot(p).item(), excess, config.max_kl)
    fisher = exact_fisher(around) + 0.05 * torch.eye(len(g), dtype=torch.float64)
    value, best = brute_force(fisher.numpy(), g.numpy(), b.numpy(), excess, config.max_kl, case)
    step = alpha * x - beta * p
    # Products are off by up to 2 * `difference` of themselves, and so is what the solver takes for g and b. x and p
    # miss by F⁻¹ times that, and g @ x and g @ p, as g = F @ x, by x times it; twice, since alpha and beta follow.
    missed = [(fisher @ x - g).norm(), (fisher @ p - b).norm()]
    assert missed[0] < 2 * difference(around) * g.norm()
    assert missed[1] < 2 * difference(around) * b.norm()
    off = 2 * float(alpha * missed[0] + beta * missed[1])
    assert case != "recovery"
    assert -g.dot(step).item() == pytest.approx(value, abs=float(x.norm()) * off)
    assert np.linalg.norm(step.numpy() - best) < float(torch.linalg.matrix_norm(fisher.inverse(), 2)) * off


def test_a_cost_without_slope() -> None:
    assert cpo_step(4.0, 0.0, 0.0, -1.0, 0.5) == ("free", 0.5, 0.0)  # √(2δ/q)
    assert cpo_step(4.0, 0.0, 0.0, 1.0, 0.5) == ("recovery", 0.0, 0.0)  # nothing lowers the cost, and none is risked
    assert pcpo_step(4.0, 0.0, 0.0, 1.0, 0.5) == (0.5, 0.0)


def test_a_reward_without_slope() -> None:
    """The shortest step that mends the violation, -c / s along the cost; none where the limit is kept."""
    assert cpo_step(0.0, 0.0, 4.0, 1.0, 0.5) == ("infeasible", 0.0, pytest.approx(0.25))
    assert cpo_step(0.0, 0.0, 4.0, -1.0, 0.5)[1:] == (0.0, 0.0)


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(8, 8))
    return matrix @ matrix.T + 0.1 * np.eye(8), rng.normal(size=8), rng.normal(size=8)


@pytest.mark.parametrize("step", [cpo_step, pcpo_step])
@pytest.mark.parametrize("share", [-1.5, -0.3, 0.0, 0.3, 1.5])
def test_the_units_of_reward_and_cost_change_nothing(step: Any, share: float) -> None:
    fisher, g, b = problem()
    x, p = np.linalg.solve(fisher, g), np.linalg.solve(fisher, b)
    c = share * math.sqrt(2 * 0.01 * (b @ p))
    *case, alpha, beta = step(g @ x, g @ p, b @ p, c, 0.01)
    for of_reward, of_cost in ((1e-5, 1.0), (1.0, 1e-5), (1e7, 1e-7)):
        *other, along_reward, along_cost = step(
            of_reward**2 * (g @ x), of_reward * of_cost * (g @ p), of_cost**2 * (b @ p), of_cost * c, 0.01
        )
        assert other == case
        assert (of_reward * along_reward, of_cost * along_cost) == pytest.approx((alpha, beta), rel=1e-12)


@pytest.mark.parametrize("share", [-0.9, -0.3, 0.0, 0.3, 0.9])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-6, 1e-3, 0.1])
def test_reward_and_cost_along_one_line(share: float, sign: int, apart: float) -> None:
    """In float32, as training computes: inside the region, within the limit, and all that can be gained but rounding.

    An orthogonal part that is dropped is worth a thousandth of the radius; the gradients are off by 1e-7 of theirs.
    """
    fisher, g, away = problem(1)
    b = sign * g + apart * away
    wide = [np.float32(np.linalg.solve(fisher, v)).astype(float) for v in (g, b)]
    x, p = wide
    g, b = np.float32(g).astype(float), np.float32(b).astype(float)
    reach = math.sqrt(2 * 0.01 * (b @ p))
    case, alpha, beta = cpo_step(g @ x, g @ p, b @ p, share * reach, 0.01)
    step = alpha * x - beta * p
    assert case == ("feasible" if share < 0 else "infeasible")
    assert 0.5 * step @ fisher @ step <= 0.01 * 1.01
    assert share * reach + b @ step <= 2e-3 * reach
    value, _ = brute_force(fisher, g, b, share * reach, 0.01, case)
    assert g @ step >= -value - 2e-3 * math.sqrt(2 * 0.01 * (g @ x))


@pytest.mark.parametrize("q", [-1e-3, math.nan, math.inf])
def test_a_fisher_matrix_that_is_not_positive_is_refused(q: float) -> None:
    with pytest.raises(RunError, match=r"not positive definite along the gradient of the reward.*raise damping"):
        cpo_step(q, 0.1, 0.5, -0.01, 0.01)
    with pytest.raises(RunError, match="gradient of the cost"):
        pcpo_step(0.5, 0.1, q, -0.01, 0.01)


def test_conjugate_gradients_stop_at_a_direction_without_curvature() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    found = conjugate_gradient(lambda v: matrix @ v, torch.tensor([2.0, 1.0], dtype=torch.float64), 10)
    # The first direction is (2, 1), of length² 5 and curvature 3; along the second, (8, 20) / 9, it falls.
    assert found.tolist() == pytest.approx([10 / 3, 5 / 3])
    assert conjugate_gradient(lambda v: -v, torch.ones(2), 10).tolist() == [0.0, 0.0]


def test_pcpos_step_is_the_projection() -> None:
    rng = np.random.default_rng(1)
    moved = 0
    for _ in range(30):
        matrix = rng.normal(size=(8, 8))
        fisher = matrix @ matrix.T + 0.1 * np.eye(8)
        g, b = rng.normal(size=(2, 8))
        x, p = np.linalg.solve(fisher, g), np.linalg.solve(fisher, b)
        c, delta = float(rng.normal()), 0.05
        forward, back = pcpo_step(g @ x, g @ p, b @ p, c, delta)
        free = math.sqrt(2 * delta / (g @ x)) * x
        # argmin ½(s - free)ᵀF(s - free) subject to c + bᵀs <= 0, with s = free + `to` @ y and b of length 1
        to = np.linalg.inv(np.linalg.cholesky(fisher)).T
        reach = np.linalg.norm(to.T @ b)
        slope, over = to.T @ b / reach, (c + b @ free) / reach
        found = scipy.optimize.minimize(
            lambda y: 0.5 * y @ y,
            np.zeros(8),
            jac=lambda y: y,
            constraints=[{"type": "ineq", "fun": lambda y, o=over, b=slope: -o - b @ y, "jac": lambda y, b=slope: -b}],
            method="SLSQP",
            options={"ftol": FTOL},
        )
        # As in `accuracy`: half the squared distance has the second derivative 1, and its multiplier is `over`.
        away = forward * x - back * p - free - to @ found.x
        assert away @ fisher @ away <= 20 * FTOL * (1 + 2 * max(over, 0))
        moved += back > 0
    assert 5 < moved < 25


@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_the_line_search_keeps_the_kl_and_gives_up_where_nothing_is_acceptable(env: Any) -> None:
    config = CONFIG.model_copy(update={"damping": 0.01})
    around = region(env, config)
    weights = advantages(around.rollout, 2)
    g = around.gradients(weights)[0]
    x = around.solve(g)
    step = math.sqrt(2 * config.max_kl / g.dot(x).item()) * x
    fraction = around.search(10 * step, lambda: around.surrogates(weights)[0] > 0)
    assert 0 < fraction < 0.2
    assert 0.3 * config.max_kl < around.divergence() <= config.max_kl
    assert around.surrogates(weights)[0] > 0
    around.move(None)
    assert around.search(step, lambda: False) == 0.0
    assert around.divergence() == 0.0


CONSTRAINED: dict[str, Any] = {
    "preset": "paper",
    "episodes": 64 * 30,
    "episodes_per_iteration": 64,
    "critic_learning_rate": 1e-2,
    "kl_coefficient": 0.0,
}


@pytest.mark.parametrize("name", ["cpo", "pcpo"])
def test_recovery_lowers_the_cost_from_an_infeasible_start(name: str) -> None:
    first, last = [], []
    for seed in range(3):
        # No policy can keep this limit: costs are >= 0.
        trainer = algos.make(name, vector(Crossing, 64), cost_limit=-5.0, seed=seed, **CONSTRAINED)
        rows = trainer.learn(64 * 12)
        assert {row.get("recovering", 1.0) for row in rows} == {1.0}  # which CPO alone reports
        first += [row["cost"] for row in rows[:2]]
        last += [row["cost"] for row in rows[-2:]]
    assert np.mean(first) > 1.0
    assert np.mean(last) < 0.75 * np.mean(first)


@pytest.mark.parametrize("name", ["cpo", "pcpo", "trpo_lagrangian"])
@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_every_accepted_step_is_in_the_region_and_critics_do_not_move_the_actor(name: str, env: Any) -> None:
    trainer = algos.make(name, vector(env, 64), **CONSTRAINED)
    policy, optimizer = trainer.actor, trainer.algorithm.optimizer
    groups = trainer.algorithm.agent.parameter_groups()
    moved = []
    for _ in range(4):
        other = trainer.source.play(7)
        with torch.no_grad():
            before = policy.distributions(other.observations, other.actions, other.mask)
        row = trainer.learn(trainer.episodes + 64)[-1]
        assert 0 < row["step_kl"] <= 0.01
        assert row["step_fraction"] > 0
        # Measured anew, on other episodes and after the critics have learned: the step was small there as well.
        with torch.no_grad():
            after = policy.distributions(other.observations, other.actions, other.mask)
        moved.append(policy.divergence(before, after).mean().item())
        actor = [parameter.clone() for parameter in groups["actor"]]
        critics = [parameter.clone() for parameter in groups["cost_critic"]]
        optimizer.train(
            other,
            lambda new, *_: (new.cost_values.sum() + new.log_probs.sum(), {}),
            torch.Generator(),
            only=("reward_critic", "cost_critic"),
        )
        pairs = zip(actor, groups["actor"], strict=True)
        assert all(torch.equal(was, now) for was, now in pairs)
        pairs = zip(critics, groups["cost_critic"], strict=True)
        assert not all(torch.equal(was, now) for was, now in pairs)
    assert max(moved) < 0.02
