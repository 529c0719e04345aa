"""The language model as a policy: what it says it did is what it did, whatever the padding and temperature."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.models_doubles import KINDS, TextVectorEnv, agent_of, make_classifier, make_lm, make_tokenizer, play
from tests.helpers.rounding import TINY, rounding, same_tensors, tiny_gradient
from textsafe_gym.errors import ModelError
from textsafe_gym.models import load_policy, make_actor, make_critics
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Agent


def make_agent_of(kind: str = "llama", **options: Any) -> Any:
    return agent_of(CausalLMActor(make_lm(kind), make_tokenizer(), **options))


def parameters(agent: Agent) -> list[torch.nn.Parameter]:
    return [x for part in (agent.actor, agent.critics) for x in part.parameters()]


def separate(**options: Any) -> Any:
    critics = {
        "reward_critic": ScoreModel(make_classifier(seed=1), make_tokenizer(), "reward", mean=0.3, std=2.0),
        "cost_critic": ScoreModel(make_classifier("gpt2", seed=2), make_tokenizer(), "cost", std=0.5),
    }
    return agent_of(CausalLMActor(make_lm(), make_tokenizer(), **options), critics="separate", **critics)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_log_probs_are_those_of_the_distribution_sampled_from(kind: str, temperature: float) -> None:
    agent = make_agent_of(kind, temperature=temperature)
    env = TextVectorEnv(40, agent.actor.tokenizer)
    rollout = play(agent, env, seed=1)
    assert rollout.log_probs.dtype == torch.float32
    assert len(set(rollout.lengths.tolist())) > 1
    for row, length in enumerate(rollout.lengths.tolist()):
        # one token at a time, in a pass without any padding
        ids = rollout.observations["input_ids"][row][rollout.observations["attention_mask"][row].bool()]
        prompt = len(ids) - length
        assert torch.equal(ids[prompt:], rollout.actions[row, :length])
        for t in range(length):
            with torch.no_grad():
                logits = agent.actor.model(ids[None, : prompt + t]).logits[0, -1].double() / temperature
            log_p = torch.log_softmax(logits, -1)
            assert float(rollout.log_probs[row, t]) == pytest.approx(
                float(log_p[ids[prompt + t]]), abs=TINY / temperature
            )
        assert rollout.log_probs[row, length:].abs().sum() == 0
        assert rollout.mask[row].tolist() == [t < length for t in range(8)]


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_evaluate_does_not_depend_on_padding_or_company(temperature: float) -> None:
    agent = separate(temperature=temperature)
    rollout = play(agent, TextVectorEnv(12, agent.actor.tokenizer), seed=2)
    order = torch.tensor([7, 3, 5])
    part = rollout[order]
    with torch.no_grad():
        again = agent.evaluate(part.observations, part.actions, part.mask)
        # wider on the left, with rubbish in every gap
        mask = torch.nn.functional.pad(part.observations["attention_mask"], (5, 0))
        ids = torch.nn.functional.pad(part.observations["input_ids"], (5, 0))
        ids = torch.where(mask.bool(), ids, 9)
        actions = torch.where(part.mask, part.actions, 4)
        wide = agent.evaluate({"input_ids": ids, "attention_mask": mask}, actions, part.mask)
    for name in ("log_probs", "reward_values", "cost_values"):
        torch.testing.assert_close(getattr(again, name), getattr(rollout, name)[order], atol=TINY / temperature, rtol=0)
        torch.testing.assert_close(getattr(wide, name), getattr(again, name), atol=TINY / temperature, rtol=0)
    torch.testing.assert_close(wide.entropy, again.entropy, atol=TINY / temperature, rtol=0)


def test_the_ratio_is_one_and_the_kl_zero_at_the_start() -> None:
    agent = make_agent_of()
    rollout = play(agent, TextVectorEnv(8, agent.actor.tokenizer), seed=3)
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    # up to the rounding of generation's cache
    torch.testing.assert_close(now.log_probs, rollout.log_probs, atol=TINY, rtol=0)
    torch.testing.assert_close(rollout.reference_log_probs, rollout.log_probs, atol=TINY, rtol=0)
    with torch.no_grad():
        for parameter in agent.actor.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    moved = play(agent, TextVectorEnv(8, agent.actor.tokenizer), seed=3)
    assert (moved.log_probs - moved.reference_log_probs).abs().max() > 0.05


def test_rewards_and_costs_are_paid_at_the_last_token() -> None:
    agent = make_agent_of()
    rollout = play(agent, TextVectorEnv(10, agent.actor.tokenizer), seed=4)
    for row, length in enumerate(rollout.lengths.tolist()):
        assert rollout.rewards[row].tolist() == [float(length) if t == length - 1 else 0.0 for t in range(8)]
        assert rollout.costs[row, length - 1] == float(rollout.actions[row, 0])
        assert rollout.infos[row]["response_length"] == length
    assert rollout.final_reward_values is rollout.final_cost_values is None  # nothing was cut


def test_a_rollout_follows_from_its_seed_and_a_row_from_its_own() -> None:
    agent = make_agent_of()
    tokenizer = agent.actor.tokenizer
    one, two, other = (play(agent, TextVectorEnv(n, tokenizer), seed) for n, seed in [(8, 5), (8, 5), (8, 6)])
    assert torch.equal(one.observations["input_ids"], two.observations["input_ids"])
    assert not torch.equal(one.observations["input_ids"], other.observations["input_ids"])
    few = play(agent, TextVectorEnv(3, agent.actor.tokenizer), 5)
    assert torch.equal(few.observations["input_ids"], one.observations["input_ids"][:3])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])  # a tied head, and one with a cap
def test_evaluate_gradients_equal_the_plain_computation(kind: str) -> None:
    agent = make_agent_of(kind, temperature=0.8)
    rollout = play(agent, TextVectorEnv(6, agent.actor.tokenizer), seed=7)
    weights = torch.randn(rollout.mask.shape)
    (agent.evaluate(rollout.observations, rollout.actions, rollout.mask).log_probs * weights).sum().backward()
    ours = [p.grad.clone() for p in agent.actor.model.parameters()]
    agent.actor.zero_grad()
    mask = rollout.observations["attention_mask"]
    full = agent.actor.model(
        input_ids=rollout.observations["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
    ).logits[:, 5:-1]
    log_p = torch.log_softmax(full / 0.8, -1).gather(-1, rollout.actions[..., None]).squeeze(-1)
    (log_p * weights * rollout.mask).sum().backward()
    for a, b in zip(ours, agent.actor.model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, atol=tiny_gradient(mask.numel()), rtol=TINY)


def test_value_heads_start_at_zero_and_learn() -> None:
    agent = make_agent_of()
    rollout = play(agent, TextVectorEnv(6, agent.actor.tokenizer), seed=8)
    assert rollout.reward_values.abs().sum() == 0
    assert rollout.cost_values.abs().sum() == 0
    groups = agent.parameter_groups()
    assert {name: len(group) for name, group in groups.items() if name != "actor"} == {
        "reward_critic": 4,
        "cost_critic": 4,
    }
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in parameters(agent)}
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    ((now.reward_values - rollout.mask.float()) ** 2).sum().backward()
    assert agent.critics.reward_critic[-1].weight.grad.abs().sum() > 0
    assert agent.critics.cost_critic[-1].weight.grad is None


def test_separate_critics_begin_as_the_score_models() -> None:
    agent = separate()
    rollout = play(agent, TextVectorEnv(9, agent.actor.tokenizer), seed=9)
    groups = agent.parameter_groups()
    assert set(groups) == {"actor", "reward_critic", "cost_critic"}
    assert sum(len(group) for group in groups.values()) == len({id(p) for group in groups.values() for p in group})
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in parameters(agent)}
    reward = ScoreModel(make_classifier(seed=1), make_tokenizer(), "reward", mean=0.3, std=2.0)
    cost = ScoreModel(make_classifier("gpt2", seed=2), make_tokenizer(), "cost", std=0.5)
    for row, length in enumerate(rollout.lengths.tolist()):
        ids = rollout.observations["input_ids"][row][rollout.observations["attention_mask"][row].bool()][None]
        for score, values in ((reward, rollout.reward_values), (cost, rollout.cost_values)):
            raw = score.token_scores(ids)[0].detach()
            # V(s_t) is read at the token before a_t
            expected = (raw[-length - 1 : -1] - score.mean) / score.std
            torch.testing.assert_close(values[row, :length], expected, atol=2 * TINY, rtol=0)  # a cost is over 0.5


def test_padded_embeddings_are_never_sampled_and_carry_no_probability() -> None:
    agent = agent_of(CausalLMActor(make_lm(vocab_size=40), make_tokenizer()))
    agent.actor.model.get_output_embeddings().weight.data[32:] *= 50
    rollout = play(agent, TextVectorEnv(8, agent.actor.tokenizer), seed=10)
    assert int(rollout.actions.max()) < 32
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    assert float(now.entropy.detach().max()) <= np.log(32) + TINY
    total = torch.zeros(())
    for token in range(32):
        one = {name: x[:1, :7] for name, x in rollout.observations.items()}
        total = total + agent.evaluate(one, torch.tensor([[token]]), torch.tensor([[True]])).log_probs.exp().sum()
    assert float(total.detach()) == pytest.approx(1.0, abs=TINY)


def test_dropout_stays_off() -> None:
    agent = make_agent_of("gpt2")
    agent.actor.train()
    rollout = play(agent, TextVectorEnv(4, agent.actor.tokenizer), seed=11)
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    torch.testing.assert_close(now.log_probs, rollout.log_probs, atol=TINY, rtol=0)


@pytest.mark.parametrize("critics", ["heads", "separate"])
def test_state_dict_round_trip_through_safetensors(critics: str, tmp_path: Path) -> None:
    def new(seed: int) -> Agent:
        if critics == "separate":
            return separate()
        return agent_of(CausalLMActor(make_lm(seed=seed, tie_word_embeddings=True), make_tokenizer()))

    agent, other = new(0), new(5)
    with torch.no_grad():
        for parameter in parameters(agent):
            parameter.add_(0.1)
    save_file(agent.state_dict(), tmp_path / "state.safetensors")  # refuses tensors that share memory
    assert not any("reference" in name for name in agent.state_dict())
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    ours, theirs = (play(x, TextVectorEnv(4, make_tokenizer()), seed=1) for x in (agent, other))
    assert same_tensors(agent.state_dict(), other.state_dict())
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=TINY, rtol=0)
    torch.testing.assert_close(ours.reward_values, theirs.reward_values, atol=TINY, rtol=0)
    state = dict(agent.state_dict())
    name = next(iter(state))
    for bad in (
        {k: v for k, v in state.items() if k != name},
        state | {"extra": state[name]},
        state | {name: torch.zeros(3)},
    ):
        with pytest.raises(ModelError, match="not of this policy") as caught:
            other.load_state_dict(bad)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    agent = make_agent_of(kind, temperature=0.7)
    agent.actor.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, CausalLMActor)
    assert loaded.temperature == 0.7
    ours, theirs = (collect(x, TextVectorEnv(4, x.tokenizer), seed=1) for x in (agent.actor, loaded))
    assert same_tensors(agent.actor.model, loaded.model)
    assert torch.equal(ours.actions, theirs.actions)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=TINY / 0.7, rtol=0)
    assert CausalLMActor.load(tmp_path / "policy", temperature=1.0).temperature == 1.0
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot load policy") as caught:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(caught.value)


def test_actor_and_critics_are_read_from_the_environment(tmp_path: Path) -> None:
    env = TextVectorEnv(2, make_tokenizer())
    with pytest.raises(ModelError, match="no policy of its own"):
        make_actor(env)
    make_agent_of().actor.save(tmp_path / "policy")
    env.default_policy = tmp_path / "policy"
    actor: Any = make_actor(env, temperature=0.5)
    assert isinstance(actor, CausalLMActor)
    assert actor.temperature == 0.5
    both = ("reward", "cost")
    with pytest.raises(ModelError, match="needs reward_critic"):
        make_critics(actor, env, both, critics="separate")
    for kind in both:
        ScoreModel(make_classifier(seed=len(kind)), make_tokenizer(), kind).save(tmp_path / kind)
        env.score_models[kind] = tmp_path / kind
    rollout = play(agent_of(actor, both, env, critics="separate"), env, seed=1)
    assert not torch.equal(rollout.reward_values, rollout.cost_values)
    swapped = {"reward_critic": tmp_path / "cost", "cost_critic": None}
    with pytest.raises(ModelError, match="are the two swapped"):
        make_critics(actor, env, both, critics="separate", **swapped)


def test_demonstrations_have_the_shape_of_rollouts() -> None:
    agent = make_agent_of()
    rows = [("w0 w1", "w2"), ("w0 w1 w2 w3 w4", "w5 w6 w7 w8 w9")]
    demonstrations = Demonstrations.encode(rows, agent.actor, max_prompt_length=3, max_response_length=4)
    assert demonstrations.actions.tolist() == [[5, 1, 1, 1], [8, 9, 10, 11]]
    assert demonstrations.mask.tolist() == [[True, True, False, False], [True] * 4]
    ids, mask = demonstrations.observations["input_ids"], demonstrations.observations["attention_mask"]
    assert ids[mask.bool()].tolist() == [3, 4, 5, 1, 5, 6, 7, 8, 9, 10, 11]
    assert mask.tolist() == [[0, 1, 1, 1, 1, 0, 0], [1] * 7]
    now = agent.evaluate(demonstrations.observations, demonstrations.actions, demonstrations.mask)
    with torch.no_grad():
        logits = agent.actor.model(torch.tensor([[3, 4, 5]])).logits[0]
    expected = torch.log_softmax(logits, -1)[[1, 2], [5, 1]]
    torch.testing.assert_close(now.log_probs[0, :2], expected, atol=TINY, rtol=0)


def test_refusals() -> None:
    agent = make_agent_of()
    other = make_tokenizer(words=["other"])
    with pytest.raises(ModelError, match=r"32 tokens.*4 tokens"):
        play(agent, TextVectorEnv(2, other), seed=0)
    cart = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    with pytest.raises(ModelError, match=r"needs a text environment.*SyncVectorEnv has Box"):
        play(agent, cart, seed=0)
    for temperature in (0.0, -1.0, "warm", float("nan"), float("inf")):
        with pytest.raises(ModelError, match="temperature"):
            make_agent_of(temperature=temperature)
    actor = agent.actor
    with pytest.raises(ModelError, match="known: heads, separate"):
        agent_of(actor, critics="both")
    with pytest.raises(ModelError, match="needs reward_critic"):
        agent_of(actor, critics="separate")
    score = ScoreModel(make_classifier(), make_tokenizer(), "reward")
    with pytest.raises(ModelError, match="set critics='separate'"):
        agent_of(actor, reward_critic=score)
    with pytest.raises(ModelError, match="swapped"):
        agent_of(actor, critics="separate", reward_critic=score, cost_critic=score)
    foreign = ScoreModel(make_classifier(), other, "reward")
    with pytest.raises(ModelError, match="differ"):
        agent_of(actor, critics="separate", reward_critic=foreign, cost_critic=foreign)
    with pytest.raises(ModelError, match="embeddings"):
        CausalLMActor(make_lm(vocab_size=8), make_tokenizer())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(value: float) -> None:
    agent = make_agent_of()
    env = TextVectorEnv(4, agent.actor.tokenizer)
    rollout = play(agent, env, seed=0)
    agent.actor.model.base_model.norm.weight.data[3] = value
    with pytest.raises(ModelError, match="not finite"):
        play(agent, env, seed=0)
    with pytest.raises(ModelError, match="not finite"):
        agent.evaluate(rollout.observations, rollout.actions, rollout.mask)


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    make_agent_of().actor.save(tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    (tmp_path / "policy" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        load_policy(tmp_path / "policy")
    assert not (tmp_path / "ran").exists()


def test_the_package_environment_carries_the_rollout() -> None:
    agent = make_agent_of(temperature=1.3)
    env = gym.make_vec(
        "SafeRLHF-v0",
        num_envs=10,
        prompts=["w1 w2", "w3 w4 w5 w6", "w7"],
        tokenizer=agent.actor.tokenizer,
        reward_model=lambda prompts, responses: [float(len(text.split())) for text in responses],
        cost_model=lambda prompts, responses: [float(text.count("w2")) for text in responses],
        max_prompt_length=6,
        max_response_length=9,
    )
    rollout = play(agent, env, seed=12)
    for row, info in enumerate(rollout.infos):
        ids = rollout.actions[row][rollout.mask[row]]
        assert info["response"] == agent.actor.tokenizer.decode(ids[:-1] if ids[-1] == 1 else ids)
        assert info["response_length"] == len(ids)
        assert info["finish_reason"] == ("eos" if ids[-1] == 1 else "length")
        assert float(rollout.episode_rewards[row]) == len(info["response"].split())
        assert float(rollout.episode_costs[row]) == info["cost"] == info["response"].count("w2")
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    torch.testing.assert_close(now.log_probs, rollout.log_probs, atol=TINY, rtol=0)
    again = play(agent, env, seed=12)
    assert torch.equal(again.actions, rollout.actions)
    assert [info["prompt"] for info in again.infos] == [info["prompt"] for info in rollout.infos]


def test_bfloat16_keeps_its_statistics_in_float32(tmp_path: Path) -> None:
    make_agent_of().actor.save(tmp_path / "policy")
    agent = agent_of(CausalLMActor.load(tmp_path / "policy", dtype="bfloat16"))
    rollout = play(agent, TextVectorEnv(6, agent.actor.tokenizer), seed=13)
    assert rollout.log_probs.dtype == rollout.reward_values.dtype == torch.float32
    now = agent.evaluate(rollout.observations, rollout.actions, rollout.mask)
    now.log_probs.sum().backward()
    whole = make_agent_of().evaluate(rollout.observations, rollout.actions, rollout.mask)
    torch.testing.assert_close(now.log_probs, whole.log_probs, atol=0.15, rtol=0.05)


def test_groups_answer_the_same_prompt() -> None:
    import textsafe_gym  # noqa: F401 (registers the environment)

    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=12, prompts=8)
    agent = agent_of(make_actor(env), env=env)
    rollout = play(agent, env, seed=3, group_size=4)
    prompts = [info["prompt"] for info in rollout.infos]
    assert rollout.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [len(set(prompts[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(prompts)) > 1
    assert len({info["response"] for info in rollout.infos[:4]}) > 1


def test_distributions_are_those_that_evaluate_reads() -> None:
    agent = make_agent_of("llama", temperature=0.7)
    rollout = play(agent, TextVectorEnv(6, agent.actor.tokenizer), seed=4)
    logits = agent.actor.distributions(rollout.observations, rollout.actions, rollout.mask)
    log_p = logits.log_softmax(-1)
    taken = log_p.gather(1, rollout.actions[rollout.mask][:, None]).squeeze(1)
    torch.testing.assert_close(taken, rollout.log_probs[rollout.mask], atol=TINY / 0.7, rtol=0)
    other = logits + torch.randn_like(logits)
    expected = (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1)
    found = agent.actor.divergence(logits, other)
    torch.testing.assert_close(found, expected, atol=rounding(terms=32, depth=2), rtol=0)  # sums over 32 tokens
    assert found.min() > 0
