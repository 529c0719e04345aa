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
    for seed in range(5):
        v = torch.randn(len(fisher), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # A difference quotient over 1e-4 of the parameters' length: not rounding, but the next term of the series.
        torch.testing.assert_close(around.fisher(v), fisher @ v, rtol=0, atol=2e-3 * float((fisher @ v).norm()))
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
        # The step is 7e-5 long: the third derivative adds its square, 5e-9, and rounding eps / 2e-5 = 1e-11.
        assert slope == pytest.approx(gradient.dot(v).item(), rel=1e-5)
    assert around.surrogates(weights)[0] == 0.0


def test_conjugate_gradients_solve() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 30))
    spd = torch.as_tensor(matrix @ matrix.T + np.eye(30))
    b = torch.as_tensor(rng.normal(size=30))
    torch.testing.assert_close(conjugate_gradient(lambda v: spd @ v, b, 60), torch.linalg.solve(spd, b))
    assert (conjugate_gradient(lambda v: spd @ v, torch.zeros(30, dtype=torch.float64), 10) == 0).all()


def test_conjugate_gradients_stop_where_the_residual_is_small_enough() -> None:
    """Each of the two steps that two eigenvalues take leaves a residual of the third, far below the tolerance."""
    matrix, products = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)), []

    def product(v: torch.Tensor) -> torch.Tensor:
        products.append(v)
        return matrix @ v

    b = torch.tensor([1.0, 1.0, 1e-7], dtype=torch.float64)
    torch.testing.assert_close(
        conjugate_gradient(product, b, 60)[:2], torch.tensor([1.0, 0.25]).double(), rtol=1e-5, atol=0
    )
    assert len(products) == 2
    conjugate_gradient(product, b, 60, tolerance=1e-9)
    assert len(products) == 2 + 3


def brute_force(fisher: Any, g: Any, b: Any, c: float, delta: float, case: str) -> tuple[float, Any]:
    """The quadratic program by sequential quadratic programming: its value and its step."""
    inside = {"type": "ineq", "fun": lambda x: delta - 0.5 * x @ fisher @ x, "jac": lambda x: -fisher @ x}
    keeps = {"type": "ineq", "fun": lambda x: -c - b @ x, "jac": lambda x: -b}
    options: Any = {"maxiter": 1000, "ftol": 1e-15}
    p = np.linalg.solve(fisher, b)
    if case == "recovery":
        found = scipy.optimize.minimize(
            lambda x: b @ x, 0 * b, jac=lambda x: b, constraints=[inside], method="SLSQP", options=options
        )
    else:
        start = -p / (b @ p) * max(c, 0)
        found = scipy.optimize.minimize(
            lambda x: -g @ x, start, jac=lambda x: -g, constraints=[inside, keeps], method="SLSQP", options=options
        )
    return float(found.fun), found.x


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
        assert (b @ step if case == "recovery" else -g @ step) == pytest.approx(value, rel=1e-4)
        np.testing.assert_allclose(step, best, atol=2e-2 * np.abs(best).max())
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
    fisher = (exact_fisher(around) + 0.05 * torch.eye(len(g), dtype=torch.float64)).numpy()
    value, best = brute_force(fisher, g.numpy(), b.numpy(), excess, config.max_kl, case)
    step = (alpha * x - beta * p).numpy()
    assert (b.numpy() @ step if case == "recovery" else -g.numpy() @ step) == pytest.approx(value, rel=1e-2)
    assert np.linalg.norm(step - best) < 0.05 * np.linalg.norm(best)


def test_a_constraint_without_slope_is_no_constraint() -> None:
    assert cpo_step(4.0, 0.0, 0.0, -1.0, 0.5) == ("free", 0.5, 0.0)  # √(2δ/q)


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
        # argmin ½(s - free)ᵀF(s - free) subject to c + bᵀs <= 0
        found = scipy.optimize.minimize(
            lambda s, f=fisher, o=free: 0.5 * (s - o) @ f @ (s - o),
            free,
            constraints=[{"type": "ineq", "fun": lambda s, b=b, c=c: -c - b @ s}],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(forward * x - back * p, found.x, atol=1e-4)
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
        assert {row.get("recovering", 1.0) for row in rows} == {1.0}  # which CPO alone tells
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
