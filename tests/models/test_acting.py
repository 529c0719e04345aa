"""Acting step by step with a cache against full forward passes, whatever the rows do."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import textsafe_gym  # noqa: F401 (registers the environment)
from tests.helpers.models_doubles import KINDS, make_lm, make_tokenizer
from tests.helpers.rounding import TINY
from textsafe_gym.models.acting import TokenSampler
from textsafe_gym.models.causal_lm import CausalLMActor


def vector(actor: CausalLMActor, **more: Any) -> Any:
    return gym.make_vec(
        "SafeRLHF-v0",
        num_envs=5,
        prompts=["w1 w2", "w3 w4 w5 w6", "w7", "w8 w9 w10"],
        tokenizer=actor.tokenizer,
        reward_model=lambda prompts, responses: [0.0] * len(prompts),
        cost_model=lambda prompts, responses: [0.0] * len(prompts),
        max_prompt_length=6,
        max_response_length=9,
        **more,
    )


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_full_passes_through_resets(kind: str, mode: AutoresetMode) -> None:
    actor = CausalLMActor(make_lm(kind), make_tokenizer(), temperature=1.3)
    env = vector(actor, autoreset_mode=mode)
    act = TokenSampler(actor, 6, seed=1)
    observation, _ = env.reset(seed=3)
    lengths = set()
    for _ in range(60):
        actions, log_probs = act(observation)
        for row in range(5):
            seen = observation["attention_mask"][row].astype(bool)
            with torch.no_grad():
                logits = actor.model(torch.as_tensor(observation["input_ids"][row][seen])[None]).logits[0, -1]
            expected = torch.log_softmax(logits.double() / 1.3, -1)[actions[row]]
            assert log_probs[row] == pytest.approx(float(expected), abs=TINY / 1.3)
        observation = env.step(actions)[0]
        lengths.add(tuple(observation["attention_mask"][:, 6:].sum(1)))
    assert any(len(set(row)) > 1 for row in lengths)  # rows were in different places


def test_a_sampler_may_begin_in_the_middle_of_responses() -> None:
    """What it has not seen grow is read anew, of several lengths at once, and goes on from there."""
    actor = CausalLMActor(make_lm(), make_tokenizer())
    env = vector(actor)
    observation, _ = env.reset(seed=3)
    for tokens in ([4, 5, 6, 7, 8], [4, 1, 6, 1, 8], [9, 4, 5, 6, 7], [8, 8, 8, 8, 8]):  # EOS is 1: two begin anew
        observation = env.step(np.array(tokens))[0]
    assert len(set(observation["attention_mask"][:, 6:].sum(1))) > 1
    act = TokenSampler(actor, 6, seed=1)
    for _ in range(2):
        actions, log_probs = act(observation)
        for row in range(5):
            seen = observation["attention_mask"][row].astype(bool)
            with torch.no_grad():
                logits = actor.model(torch.as_tensor(observation["input_ids"][row][seen])[None]).logits[0, -1]
            expected = torch.log_softmax(logits.double(), -1)[actions[row]]
            assert log_probs[row] == pytest.approx(float(expected), abs=TINY)
        observation = env.step(actions)[0]


def test_only_what_is_new_goes_through_the_model() -> None:
    actor = CausalLMActor(make_lm(), make_tokenizer())
    env = vector(actor)
    act = TokenSampler(actor, 6)
    read: list[tuple[int, ...]] = []
    actor.model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(tuple(args[0].shape)))
    observation, _ = env.reset(seed=0)
    act(observation)
    observation = env.step(np.full(5, 4))[0]
    act(observation)
    assert read == [(5, 6), (5, 1)]
    env.reset(seed=0)
    observation, *_ = env.step(np.array([4, 4, 1, 4, 4]))  # row 2 ends, and begins anew in the next step
    act(observation)
    observation, *_ = env.step(np.full(5, 5))
    act(observation)
    assert read[-2:] == [(5, 1), (1, 6)]


def test_the_seed_decides() -> None:
    actor = CausalLMActor(make_lm(), make_tokenizer())
    env = vector(actor)
    observation, _ = env.reset(seed=0)
    first, again, other = (TokenSampler(actor, 6, seed)(observation)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other
