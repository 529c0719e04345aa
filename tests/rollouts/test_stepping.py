"""A language model in wrapped, foreign and time-limited text environments, which are played token by token."""

import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import algos
import textsafe_gym  # noqa: F401 (registers the environment)
from tests.helpers.models_doubles import agent_of, make_classifier, make_lm, make_tokenizer, play
from tests.helpers.rounding import TINY
from textsafe_gym import rollouts
from textsafe_gym.envs.vector import SafeRLHFVectorEnv
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models import acting
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.rollouts import stepping
from textsafe_gym.types import Rollout

WORDS = [f"w{i}" for i in range(1, 11)]  # few, so that the end of sequence comes soon
OPTIONS: dict[str, Any] = {
    "prompts": ["w1 w2", "w3 w4 w5 w6", "w7", "w8 w9 w10"],
    "tokenizer": make_tokenizer(words=WORDS),
    "reward_model": lambda prompts, responses: [float(len(text.split())) for text in responses],
    "cost_model": {
        "a": lambda prompts, responses: [float(text.count("w2")) for text in responses],
        "b": lambda prompts, responses: [0.5] * len(responses),
    },
    "max_prompt_length": 6,
    "max_response_length": 9,
}
MODES = list(AutoresetMode)


class Unchanged(gym.vector.VectorWrapper):
    """Changes nothing, but might."""

    def step(self, actions: Any) -> Any:
        return self.env.step(actions)


class Doubled(gym.vector.VectorWrapper):
    def step(self, actions: Any) -> Any:
        observation, rewards, *rest = self.env.step(actions)
        return observation, 2 * rewards, *rest


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is said of tokens that are stepped, as in a fresh process."""
    rollouts._say_that_tokens_are_stepped.cache_clear()
    stepping._say_that_none_was_scored.cache_clear()
    with caplog.at_level(logging.WARNING, logger=rollouts.__name__):
        yield caplog
    rollouts._say_that_tokens_are_stepped.cache_clear()


def make_agent(critics: str = "heads") -> Any:
    """With values that differ from state to state."""
    sources = {}
    if critics == "separate":
        sources = {
            f"{kind}_critic": ScoreModel(make_classifier(seed=seed), OPTIONS["tokenizer"], kind)
            for seed, kind in enumerate(("reward", "cost"))
        }
    agent: Any = agent_of(CausalLMActor(make_lm(), OPTIONS["tokenizer"], temperature=2.5), critics=critics, **sources)
    torch.manual_seed(1)
    for kind in agent.critics.kinds if critics == "heads" else ():
        torch.nn.init.normal_(agent.critics.network(kind)[-1].weight)
    with torch.no_grad():  # so that there is a KL
        agent.actor.model.get_output_embeddings().weight.mul_(1.3)
    return agent


def own(num_envs: int = 7, **more: Any) -> Any:
    return gym.make_vec("SafeRLHF-v0", num_envs=num_envs, **OPTIONS | more)


def copies(num_envs: int = 7, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **more: Any) -> Any:
    """Gymnasium's own vector form of the single environment."""
    single = [lambda: gym.make("SafeRLHF-v0", **OPTIONS | more)] * num_envs
    return gym.vector.SyncVectorEnv(single, autoreset_mode=mode)


def say(monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor) -> None:
    """Makes `acting` say (B, T) tokens instead of drawing them, as likely as the model holds them."""
    columns = iter(tokens.T)

    def forced(logits: torch.Tensor, chance: torch.Tensor, temperature: float) -> Any:
        said = next(columns)
        return said, torch.log_softmax(logits.float() / temperature, -1).gather(1, said[:, None]).squeeze(1)

    monkeypatch.setattr(acting, "draw", forced)


@pytest.mark.parametrize("critics", ["heads", "separate"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["wrapped", "copies"])
def test_the_same_tokens_are_the_same_rollout(
    form: str, mode: AutoresetMode, critics: str, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    agent = make_agent(critics)
    whole = play(agent, own(), seed=3)
    assert not warnings.records
    assert len(set(whole.lengths.tolist())) > 1
    say(monkeypatch, whole.actions)
    env = Unchanged(own(autoreset_mode=mode)) if form == "wrapped" else copies(mode=mode)
    stepped = play(agent, env, seed=3)
    assert stepped.mask.shape[1] == whole.lengths.max()
    stepped = stepped.padded(whole.mask.shape[1])
    for field in fields(Rollout):
        ours, theirs = getattr(stepped, field.name), getattr(whole, field.name)
        if field.name in ("observations", "named_costs"):
            assert ours.keys() == theirs.keys()
            for name, x in theirs.items():
                torch.testing.assert_close(ours[name], x, msg=name)
        elif field.name == "infos":
            assert list(ours) == list(theirs)
        elif field.name == "actions":
            assert torch.equal(ours[whole.mask], theirs[whole.mask])
        else:
            torch.testing.assert_close(ours, theirs, atol=TINY, rtol=0, msg=field.name)
    assert whole.costs.sum() > 0
    assert whole.reward_values.std() > 0
    assert whole.log_ratios.abs().max() > 0.01
    assert [record.args for record in warnings.records] == [("Unchanged" if form == "wrapped" else "SyncVectorEnv",)]


def test_what_a_wrapper_of_the_vector_environment_pays_is_recorded(warnings: pytest.LogCaptureFixture) -> None:
    agent, env = make_agent(), Doubled(own(20))
    first, again = play(agent, env, seed=1), play(agent, env, seed=1)
    assert torch.equal(first.log_probs, again.log_probs)
    assert not torch.equal(first.observations["input_ids"], play(agent, env, seed=2).observations["input_ids"])
    for reward, cost, info in zip(first.episode_rewards, first.episode_costs, first.infos, strict=True):
        assert float(reward) == 2 * len(info["response"].split())
        assert float(cost) == info["response"].count("w2") + 0.5
    assert len(warnings.records) == 1
    assert "token by token through Doubled" in warnings.records[0].getMessage()


class Tripled(SafeRLHFVectorEnv):
    def step(self, actions: Any) -> Any:
        observation, rewards, *rest = super().step(actions)
        return observation, 3 * rewards, *rest


class TripledInBoth(Tripled):
    def step(self, actions: Any) -> Any:
        return super().step(actions)

    def play(self, actions: Any, lengths: Any) -> Any:
        played = super().play(actions, lengths)
        return replace(played, rewards=3 * played.rewards)


class Begun(SafeRLHFVectorEnv):
    def reset(self, **options: Any) -> Any:
        return super().reset(**options | {"options": {"prompt": "w7"}})


@pytest.mark.parametrize("kind", [Tripled, TripledInBoth, Begun])
def test_what_a_subclass_changes_is_recorded(kind: type[SafeRLHFVectorEnv], warnings: Any) -> None:
    rollout = play(make_agent(), kind(6, **OPTIONS), seed=1)
    for reward, info in zip(rollout.episode_rewards, rollout.infos, strict=True):
        assert float(reward) == (1 if kind is Begun else 3) * len(info["response"].split())
        assert kind is not Begun or info["prompt"] == "w7"
    stepped = [record.getMessage() for record in warnings.records]
    assert len(stepped) == (kind is Tripled)
    assert all("token by token through Tripled" in line for line in stepped)


def test_a_wrapped_single_environment_is_trained_on(warnings: pytest.LogCaptureFixture) -> None:
    env = gym.wrappers.TransformReward(gym.make("SafeRLHF-v0", **OPTIONS), lambda reward: 3.0 - reward)
    settings = {"episodes": 32, "episodes_per_iteration": 16, "minibatch_size": 8, "learning_rate": 1e-2}
    actor = CausalLMActor(make_lm(), OPTIONS["tokenizer"])
    trainer: Any = algos.make("ppo_lagrangian", env, actor, cost_limit=0.6, **settings)
    assert isinstance(trainer.source.env, gym.vector.SyncVectorEnv)
    rollout = trainer.source.draw(0)
    for t, reward, info in zip(rollout.last_step, rollout.rewards, rollout.infos, strict=True):
        assert float(reward[t]) == 3.0 - len(info["response"].split())
        assert reward[:t].tolist() == [3.0] * int(t)  # the wrapper changes every step's
    before = [x.detach().clone() for x in actor.trained_parameters()]
    rows = trainer.learn()
    assert [row["episodes"] for row in rows] == [16, 32]
    assert rows[0]["reward"] == pytest.approx(rollout.episode_rewards.mean().item())
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert any(not torch.equal(x, y) for x, y in zip(before, actor.trained_parameters(), strict=True))
    assert len(warnings.records) == 1


def test_several_rollouts_of_unequal_width_are_one_batch() -> None:
    agent, env = make_agent(), Unchanged(own(2))
    settings = {"episodes": 12, "episodes_per_iteration": 12, "critics": agent.critics}
    trainer: Any = algos.make("ppo_lagrangian", env, agent.actor, cost_limit=0.6, **settings)
    widths = set()
    inner = Rollout.padded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollout, "padded", lambda self, n: widths.add(self.mask.shape[1]) or inner(self, n))
        rollout = trainer.source.draw(0)
    assert len(widths) > 1
    with torch.no_grad():
        now = agent.evaluate(*rollout.inputs)
    torch.testing.assert_close(now.log_probs, rollout.log_probs, atol=TINY / 2.5, rtol=0)
    torch.testing.assert_close(now.cost_values, rollout.cost_values, atol=TINY, rtol=0)


@pytest.mark.parametrize("critics", ["heads", "separate"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["own", "wrapped", "copies"])
def test_a_time_limit_leaves_the_value_of_the_state_that_it_cut(form: str, mode: AutoresetMode, critics: str) -> None:
    agent = make_agent(critics)
    if form == "copies":
        env = copies(16, mode, max_episode_steps=3)
    else:
        env = own(16, autoreset_mode=mode, max_episode_steps=3)
        env = Unchanged(env) if form == "wrapped" else env
    rollout = play(agent, env, seed=5)
    ended = {True: 0, False: 0}
    for row, length in enumerate(rollout.lengths.tolist()):
        by_eos = int(rollout.actions[row, length - 1]) == 1
        ended[by_eos] += 1
        assert by_eos or length == 3
        found = {"reward": rollout.final_reward_values[row], "cost": rollout.final_cost_values[row]}
        if by_eos:
            assert found["reward"] == found["cost"] == 0
            continue
        # the prompt and all three tokens, in a pass without any padding
        ids = rollout.observations["input_ids"][row][rollout.observations["attention_mask"][row].bool()][None]
        assert ids[0, -3:].tolist() == rollout.actions[row].tolist()
        with torch.no_grad():
            hidden = agent.actor.model.base_model(ids).last_hidden_state[:, -1]
            last = torch.arange(ids.shape[1])[None] == ids.shape[1] - 1
            expected = agent.critics.values(hidden, ids, torch.ones_like(ids), last)
        for kind, value in expected.items():
            assert float(value) != 0
            torch.testing.assert_close(found[kind], value[0], atol=TINY, rtol=0)
        assert rollout.rewards[row].sum() == 0  # it was never scored
    assert min(ended.values()) > 0


def test_responses_that_are_all_cut_are_said_to_teach_nothing(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    def said(env: Any, tokens: list[list[int]]) -> list[str]:
        warnings.clear()
        say(monkeypatch, torch.tensor(tokens))
        play(make_agent(), env, seed=3)
        return [text for text in map(logging.LogRecord.getMessage, warnings.records) if "scored" in text]

    cut, ended = [5, 6, 7], [5, 1, 1]  # 1 ends a response

    def nothing(prompts: list[str], responses: list[str]) -> list[float]:
        return [0.0 for _ in responses]

    free: dict[str, Any] = {"reward_model": nothing, "cost_model": nothing, "max_episode_steps": 3}
    for env in (own(2, **free), copies(2, **free)):
        stepping._say_that_none_was_scored.cache_clear()
        assert said(env, [cut, ended]) == []
        (line,) = said(env, [cut, cut])
        assert line.startswith("all 2 responses were cut after at most 3 tokens, and none was scored")
        assert said(env, [cut, cut]) == []  # once is enough
    paying = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.TransformReward(gym.make("SafeRLHF-v0", **OPTIONS, max_episode_steps=3), lambda r: r + 1)]
    )
    assert said(paying, [cut]) == []


def test_without_critics_nothing_is_valued_at_the_end() -> None:
    actor = make_agent().actor
    rollout = rollouts.collect(actor, own(6, max_episode_steps=2), seed=0)
    assert rollout.final_reward_values is rollout.final_cost_values is rollout.reward_values is None
    assert rollout.reference_log_probs is None
    with pytest.raises(ConfigError, match="no reference_log_probs; collect it with a reference"):
        _ = rollout.episode_kl


def test_refusals() -> None:
    agent = make_agent()
    with pytest.raises(ConfigError, match="only whole responses of a language model can be shared by several"):
        play(agent, Unchanged(own()), seed=0, share=(0, 2))
    other = CausalLMActor(make_lm(), make_tokenizer(words=["other"]))
    with pytest.raises(ModelError, match=r"4 tokens.*13 tokens"):
        rollouts.collect(other, copies(2), seed=0)


class Tool(gym.Wrapper):
    """Says a token of its own after each second one of the policy's."""

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.steps % 2 or terminated or truncated:
            return observation, reward, terminated, truncated, info
        return self.env.step(7)


def test_tokens_that_the_policy_did_not_choose_are_refused() -> None:
    env = gym.vector.SyncVectorEnv([lambda: Tool(gym.make("SafeRLHF-v0", **OPTIONS))] * 4)
    with pytest.raises(ModelError, match="tokens that the policy did not choose"):
        play(make_agent(), env, seed=3)


def test_no_environment_draws_from_the_players_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sampled would follow what the environment draws."""
    env = Unchanged(gym.make_vec("SafeRLHF-v0", num_envs=4, **OPTIONS))
    actor, given = CausalLMActor(make_lm(), make_tokenizer(words=WORDS)), {}
    reset, player = env.reset, actor.player
    monkeypatch.setattr(env, "reset", lambda seed: reset(seed=given.setdefault("environments", seed)))
    monkeypatch.setattr(actor, "player", lambda env, seed: player(env, given.setdefault("player", seed)))
    rollouts.collect(actor, env, 3)
    assert len(set(given["environments"])) == 4
    assert given["player"] not in given["environments"]
