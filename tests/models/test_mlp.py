"""MLP rollouts on small CMDPs whose every number is known."""

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.helpers.models_doubles import agent_of, play
from tests.helpers.rounding import MLP, same_tensors
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models import load_policy, make_actor
from textsafe_gym.models.mlp import CONFIG, WEIGHTS, MLPActor
from textsafe_gym.rollouts import collect


class Counter(gym.Env):
    """Observation (episode's start, steps so far); ends after `horizon`, which the seed draws from 2 to 5."""

    def __init__(self, actions: str = "discrete", truncates: bool = False, with_cost: bool = True) -> None:
        self.observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
        box = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
        self.action_space = box if actions == "box" else gym.spaces.Discrete(3, start=5)
        self.truncates, self.with_cost = truncates, with_cost

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.start = float(self.np_random.uniform(-1, 1))
        self.horizon, self.steps = int(self.np_random.integers(2, 6)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        over = self.steps == self.horizon
        info = {"cost": float(np.sum(action)), "steps": self.steps} if self.with_cost else {}
        return self._observation(), 10.0 * self.steps, over and not self.truncates, over and self.truncates, info

    def _observation(self) -> np.ndarray:
        return np.array([self.start, self.steps], np.float32)


def vector(n: int = 6, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **options: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Counter(**options)] * n, autoreset_mode=mode)


def agent_for(env: Any) -> Any:
    torch.manual_seed(0)
    actor = make_actor(env, hidden=(8,))
    assert isinstance(actor, MLPActor)
    return agent_of(actor)


def with_values(agent: Any) -> Any:
    for critic in (agent.critics.reward_critic, agent.critics.cost_critic):
        torch.nn.init.normal_(critic[-1].weight)
    return agent


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_one_whole_episode_a_row(mode: AutoresetMode, actions: str) -> None:
    env = vector(mode=mode, actions=actions)
    agent = with_values(agent_for(env))
    rollout = play(agent, env, seed=1)
    assert len(rollout) == 6
    assert len(set(rollout.lengths.tolist())) > 1
    for row, length in enumerate(rollout.lengths.tolist()):
        assert rollout.mask[row].tolist() == [t < length for t in range(rollout.mask.shape[1])]
        assert 2 <= length <= 5
        observations = rollout.observations["observation"][row, :length]
        assert observations[:, 1].tolist() == list(range(length))
        assert len(set(observations[:, 0].tolist())) == 1
        assert rollout.rewards[row, :length].tolist() == [10.0 * (t + 1) for t in range(length)]
        assert rollout.rewards[row, length:].abs().sum() == 0
        taken = rollout.actions[row, :length]
        paid = taken + 5 if actions == "discrete" else taken.clip(-0.5, 0.5).sum(-1)
        torch.testing.assert_close(rollout.costs[row, :length], paid.float())
        assert rollout.infos[row]["steps"] == length
        assert rollout.infos[row]["cost"] == pytest.approx(float(rollout.costs[row, length - 1]))
    assert rollout.final_reward_values is rollout.final_cost_values is None  # nothing was cut


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_truncation_bootstraps_from_the_true_last_observation(mode: AutoresetMode) -> None:
    env = vector(mode=mode, truncates=True)
    agent = with_values(agent_for(env))
    rollout = play(agent, env, seed=2)
    starts = rollout.observations["observation"][:, 0, 0]
    last = torch.stack([starts, rollout.lengths.float()], 1)
    with torch.no_grad():
        torch.testing.assert_close(
            rollout.final_reward_values, agent.critics.reward_critic(last).squeeze(-1), rtol=MLP, atol=MLP
        )
        torch.testing.assert_close(
            rollout.final_cost_values, agent.critics.cost_critic(last).squeeze(-1), rtol=MLP, atol=MLP
        )
    assert rollout.final_reward_values.abs().min() > 0


def test_a_rollout_follows_from_its_seed_in_every_mode() -> None:
    rollouts = []
    for mode in AutoresetMode:
        env = vector(mode=mode)
        rollouts.append(play(agent_for(env), env, seed=3))
    env = vector()
    other = play(agent_for(env), env, seed=4)
    for rollout in rollouts[1:]:
        assert torch.equal(rollout.lengths, rollouts[0].lengths)
        assert torch.equal(rollout.actions * rollout.mask, rollouts[0].actions * rollouts[0].mask)
    assert not torch.equal(other.observations["observation"][:, 0], rollouts[0].observations["observation"][:, 0])


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_evaluate_gives_the_rollouts_log_probs(actions: str) -> None:
    env = vector(actions=actions)
    agent = agent_for(env)
    rollout = play(agent, env, seed=5)
    part = rollout[torch.tensor([4, 1])]
    again = agent.evaluate(part.observations, part.actions, part.mask)
    torch.testing.assert_close(again.log_probs, part.log_probs, atol=MLP, rtol=0)
    torch.testing.assert_close(rollout.reference_log_probs, rollout.log_probs, atol=MLP, rtol=0)
    assert rollout.reward_values.abs().sum() == 0
    x, a = part.observations["observation"][0, 0], part.actions[0, 0]
    out = agent.actor.network(x)
    if actions == "discrete":
        expected = torch.log_softmax(out, -1)[a]
        entropy = -(torch.softmax(out, -1) * torch.log_softmax(out, -1)).sum()
    else:
        expected = (-0.5 * (a - out) ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        entropy = torch.tensor(2 * 0.5 * np.log(2 * np.pi * np.e))
    torch.testing.assert_close(again.log_probs[0, 0], expected)
    torch.testing.assert_close(again.entropy[0, 0].double(), entropy.double())


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_actions_are_drawn_from_the_distribution_that_evaluate_reads(actions: str) -> None:
    env = vector(actions=actions)
    actor = agent_for(env).actor
    with torch.no_grad():
        actor.network[-1].bias.copy_(torch.tensor([1.0, -0.5, 0.0][: len(actor.network[-1].bias)]))
    if actions == "box":
        torch.nn.init.constant_(actor.log_std, -1.0)
    observation, _ = env.reset(seed=[0] * 6)
    player, count = actor.player(env, seed=1), 6 * 500
    for _ in range(500):
        player.act(observation)
    observations, drawn = player.episodes()
    drawn = drawn.flatten(0, 1)
    with torch.no_grad():
        distribution = actor._of_parameters(actor._outputs(observations["observation"][0, 0]))
    if actions == "discrete":
        p = distribution.probs
        assert (torch.bincount(drawn) / count - p).abs().max() < 5 * (p.max() / count) ** 0.5  # standard deviations
    else:
        standard = (drawn - distribution.base_dist.mean) / math.exp(-1.0)
        assert standard.mean(0).abs().max() < 5 / count**0.5
        assert (standard.std(0) - 1).abs().max() < 5 / (2 * count) ** 0.5


def test_reference_stays_when_the_actor_moves() -> None:
    env = vector(actions="box")
    agent = agent_for(env)
    with torch.no_grad():
        agent.actor.log_std.add_(0.5)
        agent.actor.network[-1].bias.add_(1.0)
    rollout = play(agent, env, seed=6)
    assert (rollout.log_probs - rollout.reference_log_probs).abs().max() > 0.1
    grouped = {id(p) for group in agent.parameter_groups().values() for p in group}
    parts = (agent.actor, agent.critics)
    assert grouped == {id(p) for part in parts for p in part.parameters() if p.requires_grad}
    assert sum(len(group) for group in agent.parameter_groups().values()) == len(grouped)


def test_state_dict_brings_the_reference_back() -> None:
    env = vector()
    agent = agent_for(env)
    torch.manual_seed(9)
    other = agent_of(make_actor(env, hidden=(8,)))
    other.load_state_dict(agent.state_dict())
    ours, theirs = play(agent, env, seed=7), play(other, env, seed=7)
    assert same_tensors(agent.state_dict(), other.state_dict())
    for name in ("actions", "reference_log_probs", "log_probs"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=MLP, rtol=0)


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_save_and_load(actions: str, tmp_path: Any) -> None:
    env = vector(actions=actions)
    agent = agent_for(env)
    agent.actor.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert same_tensors(agent.actor, loaded)
    ours, theirs = collect(loaded, env, seed=8).actions, play(agent, env, seed=8).actions
    torch.testing.assert_close(ours, theirs, atol=0 if actions == "discrete" else MLP, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("damage", ["config", "weights", "missing"])
def test_damaged_folder_is_one_line(damage: str, tmp_path: Any) -> None:
    agent_for(vector()).actor.save(tmp_path / "policy")
    if damage == "config":
        (tmp_path / "policy" / CONFIG).write_text(json.dumps({"hidden": [8]}))
    elif damage == "weights":
        data = (tmp_path / "policy" / WEIGHTS).read_bytes()
        (tmp_path / "policy" / WEIGHTS).write_bytes(data[:-40])
    else:
        (tmp_path / "policy" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="policy") as caught:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(caught.value)


def test_refusals() -> None:
    env = vector()
    agent = agent_for(env)
    with pytest.raises(ConfigError, match="cost"):
        play(agent, vector(with_cost=False), seed=0)
    with pytest.raises(ConfigError, match="made for"):
        play(agent, vector(actions="box"), seed=0)
    with pytest.raises(ConfigError, match=r"fixed length, not Sequence; .*TransformObservation"):
        MLPActor(gym.spaces.Sequence(gym.spaces.Discrete(2)), env.single_action_space)
    with pytest.raises(ConfigError, match=r"not MultiBinary\(3\); .*TransformAction"):
        MLPActor(env.single_observation_space, gym.spaces.MultiBinary(3))
    torch.nn.init.constant_(agent.actor.network[-1].bias, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        play(agent, env, seed=0)


def test_groups_begin_alike_and_go_their_own_ways() -> None:
    env = vector(6)
    agent = agent_for(env)
    rollout = play(agent, env, seed=9, group_size=3)
    starts = rollout.observations["observation"][:, 0, 0]
    assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(starts[:3].tolist())) == len(set(starts[3:].tolist())) == 1
    assert starts[0] != starts[3]
    assert len(set(rollout.actions[:, 0].tolist())) > 2
    with pytest.raises(ConfigError, match="group_size = 4 does not divide the 6 episodes"):
        play(agent, env, seed=9, group_size=4)


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_distributions_give_the_log_probs_and_the_divergence(actions: str) -> None:
    env = vector(actions=actions)
    agent = agent_for(env)
    torch.nn.init.normal_(agent.actor.network[-1].weight)
    rollout = play(agent, env, seed=10)
    given = agent.actor.distributions(rollout.observations, rollout.actions, rollout.mask)
    taken = rollout.actions[rollout.mask]
    if actions == "discrete":
        log_probs = torch.log_softmax(given, -1).gather(1, taken[:, None]).squeeze(1)
        other = given + torch.randn_like(given)
        expected = (given.softmax(-1) * (given.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
    else:
        mean, log_std = given.chunk(2, -1)
        log_probs = (-0.5 * ((taken - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        other = given + 0.3
        ratio = (log_std - (log_std + 0.3)).exp()
        expected = (0.3 + (ratio**2 + (0.3 / (log_std + 0.3).exp()) ** 2 - 1) / 2).sum(-1)
    torch.testing.assert_close(log_probs, rollout.log_probs[rollout.mask], atol=MLP, rtol=0)
    torch.testing.assert_close(agent.actor.divergence(given, other), expected, atol=MLP, rtol=0)


def test_named_costs_are_recorded_step_by_step() -> None:
    class Named(Counter):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, {**info, "costs": {"a": info["cost"] - 1.0, "b": 1.0}}

    env = SyncVectorEnv([Named] * 4)
    rollout = play(agent_for(env), env, seed=11)
    assert rollout.named_costs.keys() == {"a", "b"}
    both = sum(x.masked_fill(~rollout.mask, 0.0) for x in rollout.named_costs.values())
    torch.testing.assert_close(both, rollout.costs)
    assert rollout.named_costs["b"][rollout.mask].tolist() == [1.0] * int(rollout.mask.sum())
