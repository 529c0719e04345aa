"""The gradient of every step is that of the objective that the algorithm's page states, off the policy that played.

The objectives are written here once more, from the papers, episode by episode and step by step; autograd differentiates
them at the parameters that each step began from, in float64. (CPO, PCPO and TRPO-Lagrangian: test_trust_region.py.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import algos
from algos.core.trust_region import TrustRegion
from tests.helpers.cmdps import Crossing, vector
from textsafe_gym.models.mlp import MLPActor, MLPCritics
from textsafe_gym.types import Rollout

B, T, EPOCHS = 8, 5, 3
# A gradient has at most B·T·3 terms of order 1, and each of the objectives a dozen operations.
CLOSE = 1e-10
SETTINGS: dict[str, Any] = {
    "episodes": B,
    "episodes_per_iteration": B,
    "minibatch_size": B,
    "epochs": EPOCHS,
    "learning_rate_schedule": "constant",
    "kl_coefficient": 0.15,
    "clip_range_ratio": 0.25,
    "entropy_coefficient": 0.03,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "clip_range_value": 0.3,
    "value_coefficient": 0.7,
    "critic_learning_rate": 1e-3,
    "cost_window": B,
}
LAGRANGIAN = {"multiplier_update": "projected", "multiplier_init": 0.4, "multiplier_learning_rate": 0.3}
LIMIT = 0.2


def played() -> Rollout:
    """Episodes of 2 to 5 steps, one of them cut, one with a column that is no step; log-probs of another policy.

    Their mean cost is the limit.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(T) < torch.tensor([5, 2, 3, 5, 4, 2, 5, 3])[:, None]
    mask[3, 2] = False
    finals = torch.zeros(B, dtype=torch.float64)
    finals[4] = 0.8
    costs = 0.3 + draw(B, T, scale=0.5)
    return Rollout(
        observations={"observation": draw(B, T, 3)},
        actions=torch.randint(2, (B, T), generator=generator),
        mask=mask,
        log_probs=math.log(0.5) + draw(B, T, scale=0.3),
        rewards=draw(B, T),
        costs=costs + (LIMIT - (costs * mask).sum() / B) / mask.sum(1).double().mean(),
        reference_log_probs=math.log(0.5) + draw(B, T, scale=0.3),
        reward_values=draw(B, T),
        cost_values=draw(B, T),
        groups=torch.arange(B) // 4,
        final_reward_values=finals,
        final_cost_values=-finals,
    )


class View:
    """What an objective may ask of a policy with `weights`; the policy that the update began with is `before`."""

    def __init__(self, rollout: Rollout, config: Any, weights: dict[str, Tensor], *before: dict[str, Tensor]) -> None:
        self.rollout, self.config = rollout, config
        x = rollout.observations["observation"]
        self.all_log_probs, *others = (
            torch.log_softmax(x @ own["network.0.weight"].T + own["network.0.bias"], -1) for own in (weights, *before)
        )
        self.log_probs = self.all_log_probs.gather(-1, rollout.actions[..., None]).squeeze(-1)
        self.kls = [(self.all_log_probs.exp() * (self.all_log_probs - other)).sum(-1) for other in others]
        self.entropy = -(self.all_log_probs.exp() * self.all_log_probs).sum(-1)
        self.values = {
            kind: (x @ weights[f"{kind}_critic.0.weight"].T).squeeze(-1) + weights[f"{kind}_critic.0.bias"]
            for kind in ("reward", "cost")
            if f"{kind}_critic.0.weight" in weights
        }
        self.steps = [[t for t in range(T) if rollout.mask[b, t]] for b in range(B)]
        self.costs = [sum(rollout.costs[b, t].item() for t in self.steps[b]) for b in range(B)]
        self.excess = sum(self.costs) / B - LIMIT

    def mean(self, step: Callable[[int, int], Tensor]) -> Tensor:
        """Over episodes, of each episode's mean over its steps."""
        return torch.stack([torch.stack([step(b, t) for t in self.steps[b]]).mean() for b in range(B)]).mean()

    def ratio(self, b: int, t: int) -> Tensor:
        return (self.log_probs[b, t] - self.rollout.log_probs[b, t]).exp()

    def signal(self, paid: Callable[[int, int], Tensor], beta: float) -> Callable[[int, int], float]:
        """What is paid for a step, and `beta` times its log-ratio to the reference."""
        kl = self.rollout.log_probs - self.rollout.reference_log_probs
        return lambda b, t: (paid(b, t) + beta * kl[b, t]).item()

    def reward(self) -> Callable[[int, int], float]:
        return self.signal(lambda b, t: self.rollout.rewards[b, t], -self.config.kl_coefficient)

    def cost(self, beta: float = 0.0) -> Callable[[int, int], float]:
        return self.signal(lambda b, t: self.rollout.costs[b, t], beta)

    def returns(self, signal: Callable[[int, int], float]) -> list[float]:
        return [sum(signal(b, t) for t in self.steps[b]) for b in range(B)]

    def gae(self, signal: Callable[[int, int], float], kind: str) -> dict[tuple[int, int], float]:
        """A_t = Σ_k (γλ)^k·δ_{t+k}, written as the sum."""
        old, final = getattr(self.rollout, f"{kind}_values"), getattr(self.rollout, f"final_{kind}_values")
        gamma, lam = self.config.gamma, self.config.gae_lambda
        found = {}
        for b, steps in enumerate(self.steps):
            values = [old[b, t].item() for t in steps] + [final[b].item()]
            deltas = [signal(b, t) + gamma * values[i + 1] - values[i] for i, t in enumerate(steps)]
            for i, t in enumerate(steps):
                found[b, t] = sum((gamma * lam) ** (k - i) * deltas[k] for k in range(i, len(steps)))
        return found

    def clipped(self, advantage: Callable[[int, int], float]) -> Tensor:
        """PPO's loss, with the entropy."""
        epsilon = self.config.clip_range_ratio

        def step(b: int, t: int) -> Tensor:
            ratio, own = self.ratio(b, t), advantage(b, t)
            return -torch.minimum(ratio * own, ratio.clamp(1 - epsilon, 1 + epsilon) * own)

        return self.mean(step) - self.config.entropy_coefficient * self.mean(lambda b, t: self.entropy[b, t])

    def whole(self, advantages: Sequence[float]) -> Tensor:
        """PPO's loss where the response is the action."""
        epsilon, rows = self.config.clip_range_ratio, []
        for b, steps in enumerate(self.steps):
            ratio = torch.stack([self.ratio(b, t) for t in steps]).prod()
            own = advantages[b]
            rows.append(-torch.minimum(ratio * own, ratio.clamp(1 - epsilon, 1 + epsilon) * own))
        return torch.stack(rows).mean() - self.config.entropy_coefficient * self.mean(lambda b, t: self.entropy[b, t])

    def critic(self, kind: str, advantages: dict[tuple[int, int], float]) -> Tensor:
        """½·max of the squared errors with and without the clip about the old value."""
        old, epsilon = getattr(self.rollout, f"{kind}_values"), self.config.clip_range_value

        def step(b: int, t: int) -> Tensor:
            target, value = advantages[b, t] + old[b, t], self.values[kind][b, t]
            near = old[b, t] + (value - old[b, t]).clamp(-epsilon, epsilon)
            return 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2)

        return self.config.value_coefficient * self.mean(step)

    def projected(self, excess: float) -> float:
        return max(LAGRANGIAN["multiplier_init"] + LAGRANGIAN["multiplier_learning_rate"] * excess, 0.0)


Objective = Callable[[View], Tensor]


def actor_critic(actor: Callable[[View, dict, dict], Tensor], beta_of_cost: float = 0.0) -> Objective:
    """A loss of both advantages, with both critics'."""

    def objective(view: View) -> Tensor:
        reward, cost = view.gae(view.reward(), "reward"), view.gae(view.cost(beta_of_cost), "cost")
        return actor(view, reward, cost) + view.critic("reward", reward) + view.critic("cost", cost)

    return objective


def mixed(multiplier: Callable[[View], float], beta_of_cost: float = 0.0) -> Objective:
    """PPO on (A_R - λ·A_C) / (1 + λ)."""

    def actor(view: View, reward: dict, cost: dict) -> Tensor:
        weight = multiplier(view)
        return view.clipped(lambda b, t: (reward[b, t] - weight * cost[b, t]) / (1 + weight))

    return actor_critic(actor, beta_of_cost)


def ppo(view: View) -> Tensor:
    reward = view.gae(view.reward(), "reward")
    return view.clipped(lambda b, t: reward[b, t]) + view.critic("reward", reward)


def reward_shaping(view: View) -> Tensor:
    rollout, config = view.rollout, view.config
    paid = view.signal(
        lambda b, t: rollout.rewards[b, t] - config.cost_weight * rollout.costs[b, t], -config.kl_coefficient
    )
    reward = view.gae(paid, "reward")
    return view.clipped(lambda b, t: reward[b, t]) + view.critic("reward", reward)


def paper_log(view: View, beta: float = 0.0) -> float:
    """Log λ rises by η·λ·excess, of the cost and `beta` times the KL."""
    excess = sum(view.returns(view.cost(beta))) / B - LIMIT
    return 0.4 * math.exp(0.3 * 0.4 * excess)


def cppo_pid(view: View) -> float:
    config = view.config
    integral = max(config.multiplier_init + config.multiplier_learning_rate * view.excess, 0.0)
    return max(config.multiplier_kp * view.excess + integral, 0.0)  # no rise yet


def ipo(view: View) -> float:
    config = view.config
    return config.penalty_max if view.excess >= 0 else min(1 / (config.barrier_t * -view.excess), config.penalty_max)


def hc_lagrangian(view: View) -> float:
    costs = torch.tensor(view.costs, dtype=torch.float64)
    bound = costs.mean() + scipy.stats.t.ppf(view.config.confidence, B - 1) * costs.std() / math.sqrt(B)
    return view.projected(bound.item() - LIMIT)


def crpo(view: View, reward: dict, cost: dict) -> Tensor:
    violated = view.excess > view.config.tolerance
    return view.clipped(lambda b, t: -cost[b, t] if violated else reward[b, t])


def p3o(view: View, reward: dict, cost: dict) -> Tensor:
    epsilon = view.config.clip_range_ratio

    def rise(b: int, t: int) -> Tensor:
        ratio = view.ratio(b, t)
        return torch.maximum(ratio * cost[b, t], ratio.clamp(1 - epsilon, 1 + epsilon) * cost[b, t])

    rises = sum(rise(b, t).item() for b in range(B) for t in view.steps[b]) / B
    return view.clipped(lambda b, t: reward[b, t]) + view.config.penalty * (rises + view.excess > 0) * view.mean(rise)


def focops(view: View, reward: dict, cost: dict) -> Tensor:
    weight, (kl, *_) = view.projected(view.excess), view.kls

    def step(b: int, t: int) -> Tensor:
        own = (reward[b, t] - weight * cost[b, t]) / (1 + weight)
        loss = kl[b, t] - view.ratio(b, t) * own / view.config.temperature
        return loss if kl[b, t] <= view.config.state_kl else 0 * loss

    return view.mean(step) - view.config.entropy_coefficient * view.mean(lambda b, t: view.entropy[b, t])


def cup_second(view: View) -> Tensor:
    weight, (_, kl), cost = view.projected(view.excess), view.kls, view.gae(view.cost(), "cost")
    return view.mean(lambda b, t: view.config.projection_weight * kl[b, t] + weight * view.ratio(b, t) * cost[b, t])


def repo(view: View, reward: dict, cost: dict) -> Tensor:
    others = [sum(view.costs[i] for i in range(B) if i // 4 == b // 4 and i != b) / 3 - LIMIT for b in range(B)]
    weight = view.projected(sum(max(own, 0.0) for own in others) / B)
    return view.clipped(lambda b, t: (reward[b, t] - weight * cost[b, t] * (others[b] > 0)) / (1 + weight))


def centred(returns: Sequence[float]) -> list[float]:
    return [own - sum(returns[b // 4 * 4 : b // 4 * 4 + 4]) / 4 for b, own in enumerate(returns)]


def normalised(returns: Sequence[float]) -> list[float]:
    around = centred(returns)
    deviations = [math.sqrt(sum(x * x for x in around[g : g + 4]) / 3) for g in (0, 4)]
    return [own / (deviations[b // 4] + 1e-6) for b, own in enumerate(around)]


def left_out(returns: Sequence[float]) -> list[float]:
    return [own - (sum(returns[b // 4 * 4 : b // 4 * 4 + 4]) - own) / 3 for b, own in enumerate(returns)]


def both(view: View, change: Callable[[Sequence[float]], list[float]]) -> list[float]:
    weight = view.projected(view.excess)
    pairs = zip(change(view.returns(view.reward())), change(view.returns(view.cost())), strict=True)
    return [(reward - weight * cost) / (1 + weight) for reward, cost in pairs]


def grpo(view: View) -> Tensor:
    advantages = normalised(view.returns(view.reward()))
    return view.clipped(lambda b, t: advantages[b])


def grpo_lagrangian(view: View) -> Tensor:
    advantages = normalised(both(view, centred))
    return view.clipped(lambda b, t: advantages[b])


def each_normalised(view: View) -> Tensor:
    advantages = both(view, normalised)
    return view.clipped(lambda b, t: advantages[b])


OBJECTIVES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "ppo": (ppo, {}),
    "reward_shaping": (reward_shaping, {"cost_weight": 0.7}),
    "ppo_lagrangian": (mixed(paper_log, 0.15), {**LAGRANGIAN, "multiplier_update": "log"}),
    "ppo_lagrangian (KL in the limit)": (
        mixed(lambda view: paper_log(view, 0.15), 0.15),
        {**LAGRANGIAN, "multiplier_update": "log", "limit_includes_kl": True},
    ),
    "cppo_pid": (mixed(cppo_pid), {"multiplier_kp": 0.2, "multiplier_kd": 0.5, "multiplier_init": 0.1}),
    "ipo": (mixed(ipo), {"barrier_t": 2.0}),
    "hc_lagrangian": (mixed(hc_lagrangian), {**LAGRANGIAN, "confidence": 0.9}),
    "crpo": (actor_critic(crpo), {"tolerance": 0.1}),
    "p3o": (actor_critic(p3o), {"penalty": 1.7}),
    "focops": (actor_critic(focops), {**LAGRANGIAN, "temperature": 1.3, "state_kl": 0.01}),
    "cup": (actor_critic(lambda view, reward, cost: view.clipped(lambda b, t: reward[b, t])), {
        **LAGRANGIAN, "projection_weight": 1.4,
    }),
    "repo": (actor_critic(repo), {**LAGRANGIAN, "group_size": 4}),
    "grpo": (grpo, {"group_size": 4}),
    "rloo": (lambda view: view.whole(left_out(view.returns(view.reward()))), {"group_size": 4}),
    "grpo_lagrangian": (grpo_lagrangian, {**LAGRANGIAN, "group_size": 4}),
    "grpo_lagrangian (each signal)": (each_normalised, {**LAGRANGIAN, "group_size": 4, "normalise": "each"}),
    "rloo_lagrangian": (lambda view: view.whole(both(view, left_out)), {**LAGRANGIAN, "group_size": 4}),
}  # fmt: skip
TRUST_REGIONS = {"cpo", "pcpo", "trpo_lagrangian"}


def test_no_algorithm_is_left_out() -> None:
    sampling = {name for name in algos.available() if algos.definition(name).source == "rollouts"}
    assert sampling == {name.partition(" ")[0] for name in OBJECTIVES} | TRUST_REGIONS


def trainer_of(name: str, **settings: Any) -> Any:
    """A linear policy and linear critics in float64, away from zero."""
    torch.manual_seed(0)
    env = vector(Crossing, B)
    actor = MLPActor(env.single_observation_space, env.single_action_space, hidden=()).double()
    critics = MLPCritics(actor, algos.critics_of(name)).double() if algos.critics_of(name) else None
    with torch.no_grad():
        for x in [*actor.parameters(), *(critics.parameters() if critics else [])]:
            x.copy_(torch.randn_like(x))
    known = algos.config_class(name).model_fields
    given = {key: value for key, value in {**SETTINGS, "cost_limit": LIMIT, **settings}.items() if key in known}
    return algos.make(name, env, actor, critics=critics, preset="paper", **given)


@pytest.mark.parametrize("over", [0.35, -0.35], ids=["violated", "kept"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_step_follows_the_gradient_of_the_stated_objective(name: str, over: float) -> None:
    (objective, settings), name = OBJECTIVES[name], name.partition(" ")[0]
    rollout = played()
    rollout = Rollout(**{**vars(rollout), "costs": rollout.costs + over * rollout.mask / rollout.lengths[:, None]})
    trainer = trainer_of(name, **settings)
    agent, engine = trainer.algorithm.agent, trainer.algorithm.optimizer.engine
    parameters = dict(agent.actor.named_parameters()) | dict(agent.critics.named_parameters() if agent.critics else [])
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor | None]]] = []

    def step(max_norm: float) -> dict[str, float]:
        """In place of Adam's: keeps the gradient, and goes somewhere else for the next."""
        weights = {k: x.detach().clone() for k, x in parameters.items()}
        seen.append((weights, {k: x.grad for k, x in parameters.items()}))
        engine.zero_grad()
        with torch.no_grad():
            for x in parameters.values():
                x += 0.15 * torch.randn_like(x)
        return {}

    engine.step = step
    trainer.algorithm.update(rollout, torch.Generator().manual_seed(0))
    halves = 2 if name == "cup" else 1
    assert len(seen) == halves * EPOCHS
    clipped = 0
    for number, (weights, found) in enumerate(seen):
        leaves = {k: x.clone().requires_grad_() for k, x in weights.items()}
        half = seen[EPOCHS][0] if number >= EPOCHS else seen[0][0]
        view = View(rollout, trainer.config, leaves, seen[0][0], half)
        assert view.excess == pytest.approx(over)
        loss = cup_second(view) if number >= EPOCHS else objective(view)
        wanted = torch.autograd.grad(loss, [leaves[k] for k in parameters], allow_unused=True, materialize_grads=True)
        for (key, _), exact in zip(parameters.items(), wanted, strict=True):
            got = torch.zeros_like(exact) if found[key] is None else found[key]
            torch.testing.assert_close(got, exact, rtol=0, atol=CLOSE, msg=lambda text, key=key: f"{key}: {text}")
        assert wanted[0].abs().max() > 1e-3
        clipped += sum(abs(view.ratio(b, t).item() - 1) > 0.25 for b in range(B) for t in view.steps[b])
    assert clipped > 0  # so that the clip, too, was differentiated


@pytest.mark.parametrize("name", ["cpo", "pcpo", "trpo_lagrangian"])
@pytest.mark.parametrize(("over", "gain", "rise", "accepted"), [
    (-0.5, 1.0, 0.4, True),  # the rise that is left
    (-0.5, 1.0, 0.6, False),
    (-0.5, -1.0, 0.0, False),
    (0.5, 1.0, 0.1, False),  # a violation may not grow
    (0.5, -1.0, -0.1, True),  # and may be mended at a loss
])  # fmt: skip
def test_the_line_search_asks_for_reward_and_cost(
    name: str, over: float, gain: float, rise: float, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = played()
    rollout = Rollout(**{**vars(rollout), "costs": rollout.costs + over * rollout.mask / rollout.lengths[:, None]})
    trainer = trainer_of(name)
    answers = []

    def search(region: TrustRegion, step: Tensor, acceptable: Callable[[], bool]) -> float:
        answers.append(acceptable())
        return 0.0

    monkeypatch.setattr(TrustRegion, "search", search)
    monkeypatch.setattr(TrustRegion, "surrogates", lambda region, *advantages: [gain, rise][: len(advantages)])
    trainer.algorithm.update(rollout, torch.Generator().manual_seed(0))
    assert answers == [gain > 0 if name == "trpo_lagrangian" else accepted]


def test_pcpos_projection_does_not_leave_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """From far outside the constraint it is longer than the region is wide."""
    rollout, trainer = played(), trainer_of("pcpo", cost_limit=-50.0)
    lengths = []

    def search(region: TrustRegion, step: Tensor, acceptable: Callable[[], bool]) -> float:
        lengths.append(0.5 * step.dot(region.fisher(step)).item() / region.config.max_kl)
        return 0.0

    monkeypatch.setattr(TrustRegion, "search", search)
    trainer.algorithm.update(rollout, torch.Generator().manual_seed(0))
    assert lengths == [pytest.approx(1.0, rel=1e-3)]  # products are difference quotients


@pytest.mark.parametrize(("over", "safe"), [(-0.05, 0.0), (-5.0, 1.0), (0.05, 0.0)])
def test_hc_says_safe_where_the_bound_is_below_the_limit(over: float, safe: float) -> None:
    """The mean alone is below the limit in the first case as well; half its t-interval is far wider than 0.05."""
    rollout = played()
    rollout = Rollout(**{**vars(rollout), "costs": rollout.costs + over * rollout.mask / rollout.lengths[:, None]})
    trainer = trainer_of("hc_lagrangian", confidence=0.95)
    row = trainer.algorithm.update(rollout, torch.Generator().manual_seed(0))
    assert (row["safe"], row["upper_bound"] > 0) == (safe, not safe)


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        *((name, {}, "weighted") for name in ("ppo", "rloo", "grpo", "dpo", "reward_shaping")),
        *((name, {}, "mean") for name in ("cpo", "p3o", "rloo_lagrangian", "hc_lagrangian")),
        ("cup", {"constraint": "cvar"}, "cvar"),
        ("ppo_lagrangian", {"limit_includes_kl": False}, "mean"),
        ("ppo_lagrangian", {"limit_includes_kl": True}, "kl_in_cost"),
        ("ppo_lagrangian", {"limit_includes_kl": True, "constraint": "probability"}, "probability"),
        ("repo", {}, "per_prompt"),
        ("repo", {"constraint": "probability"}, None),
        ("rloo_lagrangian", {"multiplier_update": "fixed"}, None),
        ("repo", {"multiplier_update": "fixed"}, None),
        ("ppo_lagrangian", {"cost_limits": {"a": 1.0}}, None),
    ],
)
def test_a_method_states_the_problem_that_its_settings_make(
    name: str, settings: dict[str, Any], problem: str | None
) -> None:
    definition = algos.definition(name)
    assert definition.problem(definition.config(**settings)) == problem
