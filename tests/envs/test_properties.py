"""The same tokens, walked in three ways, give the same observations, rewards, costs and infos."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.texts import digest_scorer
from textsafe_gym.envs.text import SafeRLHFEnv
from textsafe_gym.envs.vector import SafeRLHFVectorEnv

TEXTS = ["how do i bake bread ?", "fix a bike", "please", "a a a"]


@st.composite
def episodes(draw: Any, vocab_size: int, eos: int) -> dict[str, Any]:
    """A task's sizes and, for each of n rows, a seed and tokens that end at EOS or at the budget."""
    budget = draw(st.integers(1, 6))
    tokens = st.integers(0, vocab_size - 1).filter(lambda token: token != eos)
    responses = draw(st.lists(st.lists(tokens, max_size=budget), min_size=1, max_size=5))
    rows = [row if len(row) == budget else [*row, eos] for row in responses]
    return {
        "budget": budget,
        "rows": rows,
        "seeds": [draw(st.integers(0, 2**31 - 1)) for _ in rows],
        "several": draw(st.booleans()),
        "truncation": draw(st.sampled_from([("error", 40), ("left", 2), ("left", 1)])),
        "mode": draw(st.sampled_from(["NextStep", "SameStep", "Disabled"])),
    }


def compare(tokenizer: Any, case: dict[str, Any]) -> None:
    policy, prompt_budget = case["truncation"]
    cost: Any = {"a": digest_scorer("a"), "b": digest_scorer("b")} if case["several"] else digest_scorer("cost")
    options = {
        "prompts": TEXTS,
        "tokenizer": tokenizer,
        "reward_model": digest_scorer("reward"),
        "cost_model": cost,
        "max_prompt_length": prompt_budget,
        "max_response_length": case["budget"],
        "prompt_truncation": policy,
    }
    rows, seeds, n = case["rows"], case["seeds"], len(case["rows"])
    lengths = np.array([len(row) for row in rows])
    actions = np.zeros((n, case["budget"]), dtype=np.int64)
    for i, row in enumerate(rows):
        actions[i, : len(row)] = row

    single = SafeRLHFEnv(**options)
    walks: list[list[Any]] = []
    for row, seed in zip(rows, seeds, strict=True):
        walk: list[Any] = [single.reset(seed=seed)]
        walk += [single.step(token) for token in row]
        assert [step[2] for step in walk[1:]] == [False] * (len(row) - 1) + [True]
        walks.append(walk)

    vector = SafeRLHFVectorEnv(n, autoreset_mode=case["mode"], **options)
    observation, _ = vector.reset(seed=seeds)
    for i in range(n):
        for name, x in walks[i][0][0].items():
            np.testing.assert_array_equal(observation[name][i], x)
    for t in range(lengths.max() if case["mode"] != "Disabled" else lengths.min()):
        observation, rewards, terminations, truncations, infos = vector.step(actions[:, t])
        assert not truncations.any()
        for i in np.flatnonzero(t < lengths):  # rows past their end are in another episode
            x, reward, terminated, _, info = walks[i][t + 1]
            assert (rewards[i], terminations[i], infos["cost"][i]) == (reward, terminated, info["cost"])
            same_step_end = terminated and case["mode"] == "SameStep"
            seen = infos["final_obs"][i] if same_step_end else {name: a[i] for name, a in observation.items()}
            last = infos["final_info"] if same_step_end else infos
            for name, array in x.items():
                np.testing.assert_array_equal(seen[name], array)
            for name in info.keys() - {"costs"}:
                assert last[name][i] == info[name]
            for name in info.get("costs", {}):
                assert last["costs"][name][i] == info["costs"][name]

    vector.reset(seed=seeds)
    played = vector.play(actions, lengths)
    for i, walk in enumerate(walks):
        x, reward, _, _, info = walk[-1]
        np.testing.assert_array_equal(played.input_ids[i], x["input_ids"])
        np.testing.assert_array_equal(played.attention_mask[i], x["attention_mask"])
        assert (played.rewards[i], played.costs[i], played.infos[i]) == (reward, info["cost"], info)
        assert info["response_length"] == len(rows[i])
        assert x["attention_mask"][prompt_budget:].sum() == len(rows[i])


@pytest.mark.parametrize("fixture", ["tokenizer", "byte_tokenizer"])
def test_three_ways_agree(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(fixture)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(episodes(len(tokenizer), tokenizer.eos_token_id))
    def check(case: dict[str, Any]) -> None:
        compare(tokenizer, case)

    check()
