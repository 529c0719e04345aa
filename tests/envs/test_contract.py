"""What SafeRLHF-v0 promises, for one environment and for many."""

import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import textsafe_gym  # noqa: F401 (registers the environments)
from tests.helpers.rounding import TINY
from tests.helpers.texts import PROMPTS, digest_scorer, word_tokenizer
from textsafe_gym.data.prompts import Prompt
from textsafe_gym.envs.making import own_cost_limit
from textsafe_gym.envs.text import SafeRLHFEnv
from textsafe_gym.envs.vector import SafeRLHFVectorEnv
from textsafe_gym.errors import ConfigError, DataError, ModelError, ScoreError, TextsafeError

NAME = "SafeRLHF-v0"
EOS = 1
MODES = list(AutoresetMode)


def make(options: dict[str, Any], **more: Any) -> Any:
    return gym.make(NAME, **{**options, **more})


def make_vec(options: dict[str, Any], num_envs: int = 3, **more: Any) -> Any:
    return gym.make_vec(NAME, num_envs=num_envs, **{**options, **more})


# The single environment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["direct", "unwrapped", "wrapped"])
def test_check_env_warns_of_nothing(task_options: dict[str, Any], how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker warns of any wrapper, and gym.make adds two by default.
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        env = SafeRLHFEnv(**task_options) if how == "direct" else make(task_options)
        check_env(env.unwrapped if how == "unwrapped" else env)


def test_observation_grows_to_the_right_of_a_left_padded_prompt(task_options: dict[str, Any]) -> None:
    env = make(task_options)
    observation, info = env.reset(options={"prompt": "fix a bike"})
    ids = [0, 0, 0, 0, *env.unwrapped.tokenizer.convert_tokens_to_ids(["fix", "a", "bike"])]
    assert observation["input_ids"].tolist() == [*ids, 0, 0, 0, 0, 0]
    assert observation["attention_mask"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert observation["input_ids"].dtype == np.int64
    assert observation["attention_mask"].dtype == np.int8
    assert info == {"prompt": "fix a bike", "cost": 0.0}
    after, reward, terminated, truncated, info = env.step(9)
    assert after["input_ids"].tolist() == [*ids, 9, 0, 0, 0, 0]
    assert after["attention_mask"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"cost": 0.0})


def test_end_at_eos_is_scored_without_it(task_options: dict[str, Any]) -> None:
    env = make(task_options)
    env.reset(options={"prompt": "please"})
    for token in env.unwrapped.tokenizer.convert_tokens_to_ids(["sorry", "no"]):
        assert env.step(token)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(EOS)
    assert (terminated, truncated) == (True, False)
    assert reward == digest_scorer("reward")(["please"], ["sorry no"])[0]
    assert info == {
        "prompt": "please",
        "response": "sorry no",
        "response_length": 3,
        "finish_reason": "eos",
        "cost": digest_scorer("cost")(["please"], ["sorry no"])[0],
    }


def test_end_of_the_budget_terminates_and_eos_wins_on_the_last_token(task_options: dict[str, Any]) -> None:
    env = make(task_options)
    for last, reason, response in ((5, "length", "i i i i i"), (EOS, "eos", "i i i i")):
        env.reset(seed=0)
        for token in (5, 5, 5, 5):
            assert not env.step(token)[2]
        _, _, terminated, truncated, info = env.step(last)
        assert (terminated, truncated) == (True, False)
        assert (info["finish_reason"], info["response"], info["response_length"]) == (reason, response, 5)


def test_eos_first_and_one_token_budget(task_options: dict[str, Any]) -> None:
    env = make(task_options)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(EOS)
    assert terminated
    assert (info["response"], info["response_length"], info["finish_reason"]) == ("", 1, "eos")
    assert reward == digest_scorer("reward")([info["prompt"]], [""])[0]
    env = make(task_options, max_response_length=1, max_prompt_length=1, prompts=["please"])
    env.reset()
    observation, _, terminated, _, info = env.step(4)
    assert terminated
    assert (info["response"], info["finish_reason"]) == ("do", "length")
    assert observation["attention_mask"].tolist() == [1, 1]


def test_special_tokens_in_a_response_stay_visible_to_the_scorers(task_options: dict[str, Any]) -> None:
    env = make(task_options)
    env.reset(seed=0)
    env.step(0)
    env.step(2)
    assert env.step(EOS)[4]["response"] == "<pad> <unk>"


def test_several_costs_have_names_and_a_sum(task_options: dict[str, Any]) -> None:
    costs = {"toxicity": digest_scorer("a"), "privacy": digest_scorer("b")}
    env = make(task_options, cost_model=costs)
    _, info = env.reset(options={"prompt": "please"})
    assert info == {"prompt": "please", "cost": 0.0, "costs": {"toxicity": 0.0, "privacy": 0.0}}
    info = env.step(EOS)[4]
    assert info["costs"] == {name: scorer(["please"], [""])[0] for name, scorer in costs.items()}
    assert info["cost"] == sum(info["costs"].values())


def test_a_group_is_reported_where_a_prompt_has_one(task_options: dict[str, Any]) -> None:
    env = make(task_options, prompts=[Prompt("please", "benign")])
    assert env.reset()[1] == {"prompt": "please", "group": "benign", "cost": 0.0}
    assert env.step(EOS)[4]["group"] == "benign"


def test_seed_repeats_the_prompts_and_all_are_drawn(task_options: dict[str, Any]) -> None:
    env = make(task_options)

    def draw(seed: int) -> list[str]:
        return [env.reset(seed=seed)[1]["prompt"], *(env.reset()[1]["prompt"] for _ in range(30))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert set(draw(3)) == set(PROMPTS)


def test_pad_that_is_eos_or_missing_counts_by_the_mask(task_options: dict[str, Any], byte_tokenizer: Any) -> None:
    env = make(task_options, tokenizer=byte_tokenizer, prompts=["ab"], max_prompt_length=4)
    observation, _ = env.reset()
    end = byte_tokenizer.eos_token_id
    assert observation["input_ids"].tolist()[:2] == [end, end]
    assert observation["attention_mask"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0]
    for token in byte_tokenizer("hi")["input_ids"]:
        env.step(token)
    observation, _, terminated, _, info = env.step(end)
    assert terminated
    assert (info["response"], info["response_length"]) == ("hi", 3)
    assert observation["attention_mask"].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]

    without_pad = word_tokenizer()
    without_pad.pad_token = None
    observation, _ = make(task_options, tokenizer=without_pad).reset(options={"prompt": "please"})
    assert set(observation["input_ids"][:6].tolist()) == {EOS}


def test_prompt_over_its_budget_is_an_error_unless_truncation_is_asked_for(task_options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"prompt 0 'how do i bake bread \?' has 6 tokens.*max_prompt_length=2.*trunc"):
        make(task_options, max_prompt_length=2)
    env = make(task_options, max_prompt_length=2, prompt_truncation="left")
    observation, info = env.reset(options={"prompt": "how do i bake bread ?"})
    assert observation["input_ids"][:2].tolist() == env.unwrapped.tokenizer.convert_tokens_to_ids(["bread", "?"])
    assert info["prompt"] == "how do i bake bread ?"


def test_wrong_use_of_step_and_reset(task_options: dict[str, Any]) -> None:
    env = SafeRLHFEnv(**task_options)
    with pytest.raises(ResetNeeded):
        env.step(4)
    env.reset()
    for action in (-1, env.vocab_size, 1.5, np.array([1, 2]), "a"):
        with pytest.raises(InvalidAction):
            env.step(action)
    env.step(np.int32(EOS))
    with pytest.raises(ResetNeeded):
        env.step(4)
    with pytest.raises(ConfigError, match="unknown reset option 'promt'; did you mean 'prompt'"):
        env.reset(options={"promt": "please"})
    with pytest.raises(ConfigError, match="expected text"):
        env.reset(options={"prompt": 3})
    with pytest.raises(DataError, match="has 8 tokens"):
        env.reset(options={"prompt": "a a a a a a a a"})
    with pytest.raises(DataError, match="no tokens"):
        env.reset(options={"prompt": " "})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"promts": ["a"]}, ConfigError, "unknown environment argument 'promts'; did you mean 'prompts'"),
        ({"max_response_length": -4}, ConfigError, "max_response_length: .* at least 1, got -4"),
        ({"max_response_length": 0}, ConfigError, "max_response_length"),
        ({"max_prompt_length": 2.5}, ConfigError, "max_prompt_length"),
        ({"max_prompt_length": True}, ConfigError, "max_prompt_length"),
        ({"max_prompt_length": "7"}, ConfigError, "max_prompt_length"),
        ({"cost_limit": float("nan")}, ConfigError, "cost_limit: expected a finite number, got nan"),
        ({"cost_limit": float("inf")}, ConfigError, "cost_limit"),
        ({"cost_limit": "low"}, ConfigError, "cost_limit"),
        ({"prompt_truncation": "right"}, ConfigError, "prompt_truncation: expected 'error' or 'left'"),
        ({"prompts": []}, DataError, "empty"),
        ({"prompts": ["please", " "]}, DataError, "prompt 1: the prompt is empty"),
        ({"prompts": 3}, ConfigError, "prompts: expected a file or a list"),
        ({"prompts": "/nowhere/prompts.txt"}, DataError, "/nowhere/prompts.txt"),
        ({"evaluation_prompts": []}, DataError, "empty"),
        ({"reward_model": 5}, ConfigError, "reward_model: expected a path"),
        ({"reward_model": "/nowhere/model"}, ModelError, "reward model '/nowhere/model'"),
        ({"cost_model": {}}, ConfigError, "cost_model: the mapping is empty"),
        ({"cost_model": {"": digest_scorer("a")}}, ConfigError, "cost_model: a name must be text"),
        ({"cost_model": {"a": None}}, ConfigError, "cost_model: 'a' has no model"),
        ({"tokenizer": 7}, ConfigError, "tokenizer: expected a path"),
        ({"tokenizer": "/nowhere/tokenizer"}, ModelError, "tokenizer '/nowhere/tokenizer'"),
        ({"tokenizer": word_tokenizer}, ConfigError, "tokenizer"),
        ({"dtype": "float31"}, ConfigError, "dtype: expected one of float32"),
        ({"render_mode": "rgb_array"}, ConfigError, "render_mode: expected one of ansi, human"),
    ],
)
def test_wrong_arguments_are_one_line_each(
    task_options: dict[str, Any], options: dict[str, Any], error: type[TextsafeError], message: str
) -> None:
    for environment in (SafeRLHFEnv, SafeRLHFVectorEnv):
        with pytest.raises(error, match=message) as caught:
            environment(**{**task_options, **options})
        assert "\n" not in str(caught.value)


def test_tokenizer_without_an_end_is_refused(task_options: dict[str, Any]) -> None:
    endless = word_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        make(task_options, tokenizer=endless)


def test_tokenizer_from_a_folder(task_options: dict[str, Any], tmp_path: Any) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(ModelError, match="cannot load tokenizer"):
        make(task_options, tokenizer=tmp_path / "broken")
    task_options["tokenizer"].save_pretrained(tmp_path / "tokenizer")
    observation, _ = make(task_options, tokenizer=tmp_path / "tokenizer").reset(seed=1)
    assert data_equivalence(observation, make(task_options).reset(seed=1)[0], exact=True)


def test_negative_cost_limits_are_limits(task_options: dict[str, Any]) -> None:
    assert make(task_options, cost_limit=-3).unwrapped.cost_limit == -3.0


def fails(kind: str) -> Any:
    answers: dict[str, Any] = {
        "nan": lambda n: np.where(np.arange(n) == n - 1, np.nan, 0.0),
        "inf": lambda n: np.full(n, np.inf),
        "short": lambda n: np.zeros(n + 1),
        "flat": lambda n: 0.0,
        "column": lambda n: np.zeros((n, 1)),
        "text": lambda n: ["bad"] * n,
        "none": lambda n: None,
    }
    return lambda prompts, responses: answers[kind](len(prompts))


@pytest.mark.parametrize("kind", ["nan", "inf", "short", "flat", "column", "text", "none"])
@pytest.mark.parametrize("which", ["reward_model", "cost_model", "named"])
def test_bad_scores_name_the_model_the_row_and_the_prompt(task_options: dict[str, Any], which: str, kind: str) -> None:
    options = {"cost_model": {"toxicity": fails(kind)}} if which == "named" else {which: fails(kind)}
    label = "cost model 'toxicity'" if which == "named" else which.replace("_", " ")
    env = make_vec(task_options, num_envs=2, **options)
    env.reset(options={"prompt": ["please", "fix a bike"]})
    with pytest.raises(ScoreError) as caught:
        env.step(np.array([EOS, EOS]))
    message = str(caught.value)
    assert message.startswith(label)
    assert "\n" not in message
    if kind == "nan":
        assert "row 1 of 2" in message
        assert "'fix a bike'" in message
    else:
        assert "'please'" in message


def test_what_a_judge_raises_says_which_judge_and_where(task_options: dict[str, Any]) -> None:
    def inner(prompts: list[str], responses: list[str]) -> list[float]:
        return [1.0 / len(response) for response in responses]

    def divides(prompts: list[str], responses: list[str]) -> list[float]:
        return inner(prompts, responses)

    def takes_one(prompts: list[str]) -> list[float]:
        return [0.0 for _ in prompts]

    own = divides.__code__.co_firstlineno + 1  # its own line, not that of what it calls
    for judge, said in [
        (divides, rf"divides raised ZeroDivisionError: .* \(test_contract\.py:{own}\)"),
        (takes_one, r"takes_one raised TypeError: .* \(scorers\.py:\d+\)"),  # none of its lines ran
    ]:
        env = make(task_options, cost_model=judge)
        env.reset(options={"prompt": "please"})
        with pytest.raises(ScoreError, match=f"^cost model: .*{said}, given 1 response.*'please'$"):
            env.step(EOS)


def test_scores_of_torch_are_taken(task_options: dict[str, Any]) -> None:
    import torch

    scorer = lambda p, r: torch.full((len(p),), 0.5, dtype=torch.bfloat16, requires_grad=True)  # noqa: E731
    env = make(task_options, reward_model=scorer)
    env.reset(seed=0)
    assert env.step(EOS)[1] == 0.5


def test_models_by_path_by_module_and_loaded(task_options: dict[str, Any], tmp_path: Any) -> None:
    from tests.helpers.models_doubles import make_classifier
    from textsafe_gym.models.score import ScoreModel

    module = make_classifier()
    model = ScoreModel(module, task_options["tokenizer"], "reward")
    model.save(tmp_path / "reward")
    expected = model(["please"], ["sorry no"])[0]
    for spec in (model, module, tmp_path / "reward", str(tmp_path / "reward")):
        env = make(task_options, reward_model=spec)
        env.reset(options={"prompt": "please"})
        env.step(env.unwrapped.tokenizer.convert_tokens_to_ids("sorry"))
        env.step(env.unwrapped.tokenizer.convert_tokens_to_ids("no"))
        assert env.step(EOS)[1] == pytest.approx(expected, abs=TINY)
    for spec in (model, tmp_path / "reward"):
        for costs in (spec, {"harm": spec}):
            with pytest.raises(ModelError, match="swapped"):
                make(task_options, cost_model=costs)


def test_dtype_reaches_the_models(task_options: dict[str, Any], tmp_path: Any) -> None:
    from tests.helpers.models_doubles import make_classifier
    from textsafe_gym.models.score import ScoreModel

    ScoreModel(make_classifier(), task_options["tokenizer"], "cost").save(tmp_path / "cost")
    scores = []
    for dtype in ("float32", "bfloat16"):
        env = make(task_options, cost_model=tmp_path / "cost", dtype=dtype)
        env.reset(options={"prompt": "please"})
        scores.append(env.step(EOS)[4]["cost"])
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], rel=0.1, abs=0.05)
    with pytest.raises(ModelError, match="toaster"):
        make(task_options, cost_model=tmp_path / "cost", device="toaster")


def test_render(task_options: dict[str, Any], capsys: Any) -> None:
    env = make(task_options, render_mode="ansi")
    env.reset(options={"prompt": "please"})
    env.step(17)
    assert env.render() == "prompt: please\nresponse: sorry"
    _, reward, _, _, info = env.step(EOS)
    assert env.render() == f"prompt: please\nresponse: sorry\n[eos] reward {reward:+.3f}, cost {info['cost']:+.3f}"
    assert capsys.readouterr().out == ""
    env = make(task_options, render_mode="human")
    env.reset(options={"prompt": "please"})
    for token in (17, 18, EOS):
        env.step(token)
    assert capsys.readouterr().out.startswith("prompt: please\nresponse: sorry no\n[eos] reward ")


def test_statistics_wrapper_on_one_environment(task_options: dict[str, Any]) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(make(task_options))
    env.reset(seed=0)
    env.step(5)
    _, reward, _, _, info = env.step(EOS)
    assert info["episode"]["r"] == pytest.approx(reward)
    assert info["episode"]["l"] == 2


def test_the_spec_makes_the_same_environment_again(task_options: dict[str, Any]) -> None:
    first = SafeRLHFEnv(**task_options)
    again = gym.make(first.spec)
    assert data_equivalence(first.reset(seed=5), again.reset(seed=5), exact=True)
    vector = gym.make_vec(again.spec, num_envs=2)
    assert isinstance(vector, SafeRLHFVectorEnv)
    assert vector.num_envs == 2


def test_public_attributes(task_options: dict[str, Any]) -> None:
    pairs = [("please", "sorry no")]
    env = make(task_options, cost_limit=0.5, demonstrations=pairs).unwrapped
    assert env.tokenizer is task_options["tokenizer"]
    assert [prompt.text for prompt in env.prompts] == PROMPTS
    assert env.evaluation_prompts == env.prompts
    assert (env.cost_limit, env.vocab_size, env.max_prompt_length, env.max_response_length) == (0.5, 25, 7, 5)
    assert (env.demonstrations, env.gold_judge, env.default_policy) == (pairs, None, None)
    assert env.score_models == {}
    assert make(task_options).unwrapped.demonstrations == []
    with pytest.raises(DataError, match="demonstration 0"):
        _ = make(task_options, demonstrations=["please"]).unwrapped.demonstrations


# The embedded world ----------------------------------------------------------------------------------------------


def test_default_is_the_embedded_world() -> None:
    from textsafe_gym import embedded_world

    env = gym.make(NAME).unwrapped
    assert env.prompts == embedded_world.prompts("train")
    assert env.evaluation_prompts == embedded_world.prompts("heldout")
    assert env.gold_judge is embedded_world.judge
    assert (env.max_prompt_length, env.max_response_length) == (
        embedded_world.MAX_PROMPT_LENGTH,
        embedded_world.MAX_RESPONSE_LENGTH,
    )
    assert env.cost_limit == embedded_world.COST_LIMIT
    assert env.default_policy == embedded_world.ASSETS / "policy"
    assert env.score_models == {"reward": embedded_world.ASSETS / "reward", "cost": embedded_world.ASSETS / "cost"}
    assert {prompt.group for prompt in env.prompts} >= {"benign", "alarming", "harmful"}
    for prompt, response in embedded_world.demonstrations(50):
        words = env.tokenizer(response, add_special_tokens=False)["input_ids"]
        assert env.tokenizer.decode(words) == response
        env.reset(options={"prompt": prompt})
        for token in [*words, env.tokenizer.eos_token_id][: env.max_response_length]:  # a rambling one has no end
            _, reward, terminated, _, info = env.step(token)
        assert terminated
        assert info["response"] == env.tokenizer.decode(words[: env.max_response_length])
        assert np.isfinite([reward, info["cost"]]).all()
    custom = gym.make(NAME, prompts=["please"]).unwrapped
    assert custom.gold_judge is None


def test_default_passes_check_env_and_scores_the_same_one_by_one_and_in_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(NAME).unwrapped)
    rng = np.random.default_rng(0)
    n, single = 8, gym.make(NAME)
    vector: Any = gym.make_vec(NAME, num_envs=n)
    eos, budget = single.unwrapped.tokenizer.eos_token_id, single.unwrapped.max_response_length
    lengths = rng.integers(1, budget + 1, n)
    actions = rng.integers(3, single.unwrapped.vocab_size, (n, budget))
    actions[np.arange(n), lengths - 1] = eos
    vector.reset(seed=5)
    played = vector.unwrapped.play(actions, lengths)
    for row in range(n):
        single.reset(seed=5 + row)
        for token in actions[row, : lengths[row]]:
            _, reward, _, _, info = single.step(token)
        # 2 layers of 96 numbers, 192 on the way down, may round by 2e-5 (tests/helpers/rounding.py); 64 scores of each
        # kind were 3e-7 apart at most, with AVX-512 and without, so that the bound may be tighter.
        assert reward == pytest.approx(played.rewards[row], abs=1e-5)
        assert info["cost"] == pytest.approx(played.costs[row], abs=1e-5)
        assert info["response"] == played.infos[row]["response"]


# The vector environment ------------------------------------------------------------------------------------------


def sync(options: dict[str, Any], num_envs: int, mode: AutoresetMode, **more: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: make(options, **more)] * num_envs, autoreset_mode=mode)


def differ_in_cost_alone(vector: dict[str, Any], reference: dict[str, Any], over: np.ndarray) -> None:
    """Under SAME_STEP the two differ by design: here info["cost"] keeps the costs of the episodes that ended."""
    final = vector["final_info"]
    np.testing.assert_array_equal(vector["cost"][over], final["cost"][over])
    for infos in (vector, reference):
        for name in ("cost", "_cost", "costs", "_costs"):
            infos.pop(name, None)


@pytest.mark.parametrize("limit", [None, 2, 5])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_vector_equals_sync_vector_env(
    task_options: dict[str, Any], mode: AutoresetMode, several: bool, limit: int | None
) -> None:
    prompts = [Prompt(text, "benign" if i % 2 else "") for i, text in enumerate(PROMPTS)]
    options = {**task_options, "prompts": prompts}
    if several:
        options["cost_model"] = {"a": digest_scorer("a"), "b": digest_scorer("b")}
    more = {} if limit is None else {"max_episode_steps": limit}
    n = 4
    reference = sync(options, n, mode, **more)
    vector = make_vec(options, n, autoreset_mode=mode, **more)
    rng = np.random.default_rng(0)
    assert data_equivalence(vector.reset(seed=11), reference.reset(seed=11), exact=True)
    ended = 0
    for _ in range(60):
        actions = np.where(rng.random(n) < 0.2, EOS, rng.integers(2, 25, n))
        ours, theirs = vector.step(actions), reference.step(actions)
        over = ours[2] | ours[3]
        ended += over.sum()
        assert ours[4]["cost"].shape == (n,)
        assert ours[4]["cost"].dtype == np.float64
        if mode is AutoresetMode.SAME_STEP and over.any():
            differ_in_cost_alone(ours[4], theirs[4], over)
        assert data_equivalence(ours, theirs, exact=True)
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(ResetNeeded):
                vector.step(actions)
            ours = vector.reset(options={"reset_mask": over})
            assert data_equivalence(ours, reference.reset(options={"reset_mask": over}), exact=True)
    assert ended > 40


def test_vector_spaces_and_registration(task_options: dict[str, Any]) -> None:
    env = make_vec(task_options, 3)
    assert isinstance(env, SafeRLHFVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    reference = sync(task_options, 3, AutoresetMode.NEXT_STEP)
    assert env.observation_space == reference.observation_space
    assert env.action_space == reference.action_space
    assert env.single_observation_space == reference.single_observation_space
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert isinstance(gym.make_vec(NAME, num_envs=2, vectorization_mode="sync", **task_options), SyncVectorEnv)
    assert SafeRLHFVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_vector_seeds(task_options: dict[str, Any]) -> None:
    env, single = make_vec(task_options, 3), make(task_options)
    by_number, by_list = env.reset(seed=7), env.reset(seed=[7, 8, 9])
    assert data_equivalence(by_number, by_list, exact=True)
    for row, seed in enumerate((7, 8, 9)):
        assert by_list[1]["prompt"][row] == single.reset(seed=seed)[1]["prompt"]
    assert data_equivalence(env.reset(seed=np.array([7, 8, 9])), by_list, exact=True)
    for wrong in ([1, 2], 1.5, "123"):
        with pytest.raises(ConfigError, match="seed"):
            env.reset(seed=wrong)


def test_vector_prompt_options(task_options: dict[str, Any]) -> None:
    env = make_vec(task_options, 2, autoreset_mode="Disabled")
    assert env.reset(options={"prompt": ["please", "fix a bike"]})[1]["prompt"].tolist() == ["please", "fix a bike"]
    assert env.reset(options={"prompt": "please"})[1]["prompt"].tolist() == ["please", "please"]
    before = env.reset(seed=0, options={"prompt": ["please", "a"]})
    with pytest.raises(DataError, match="has 8 tokens"):
        env.reset(options={"prompt": ["a", "a a a a a a a a"]})
    env.step(np.array([5, 5]))
    mask = np.array([False, True])
    observation, info = env.reset(options={"reset_mask": mask, "prompt": ["fix", "bike"]})
    assert info["_prompt"].tolist() == [False, True]
    assert info["prompt"][1] == "bike"
    assert observation["attention_mask"].sum(1).tolist() == [2, 1]
    assert observation["input_ids"][0, :7].tolist() == before[0]["input_ids"][0, :7].tolist()
    for wrong in ({"prompt": ["please"]}, {"prompt": 3}, {"prompt": ["a", 2]}, {"mask": mask}):
        with pytest.raises(ConfigError):
            env.reset(options=wrong)
    for wrong_mask in ([True, False], np.array([True]), np.array([1, 0]), np.array([False, False])):
        with pytest.raises(ConfigError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong_mask})


@pytest.mark.parametrize("mode", MODES)
def test_vector_statistics_wrapper(task_options: dict[str, Any], mode: AutoresetMode) -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(make_vec(task_options, 4, autoreset_mode=mode))
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    returns = []
    for _ in range(40):
        actions = np.where(rng.random(4) < 0.3, EOS, rng.integers(2, 25, 4))
        _, rewards, terminations, _, infos = env.step(actions)
        returns += rewards[terminations].tolist()
        if terminations.any():
            assert infos["episode"]["r"][terminations].tolist() == rewards[terminations].tolist()
            assert (infos["episode"]["l"][terminations] <= 5).all()
            if mode is AutoresetMode.DISABLED:
                env.reset(options={"reset_mask": terminations})
    assert list(env.return_queue) == returns
    assert len(returns) > 20


def test_vector_infos_as_a_list(task_options: dict[str, Any]) -> None:
    env = gym.wrappers.vector.DictInfoToList(make_vec(task_options, 2))
    env.reset(options={"prompt": "please"})
    infos = env.step(np.array([EOS, 5]))[4]
    assert infos[0]["finish_reason"] == "eos"
    assert infos[1] == {"cost": 0.0}


def test_finished_responses_are_scored_in_one_call(task_options: dict[str, Any]) -> None:
    sizes: list[int] = []

    def scorer(prompts: list[str], responses: list[str]) -> np.ndarray:
        sizes.append(len(prompts))
        return np.zeros(len(prompts))

    env = make_vec(task_options, 5, reward_model=scorer)
    env.reset(seed=0)
    env.step(np.array([EOS, 4, EOS, EOS, 4]))
    env.step(np.array([4, 4, 4, 4, EOS]))
    assert sizes == [3, 1]


def test_returned_arrays_are_the_callers(task_options: dict[str, Any]) -> None:
    env, same = make_vec(task_options, 2), make_vec(task_options, 2)
    for e in (env, same):
        e.reset(seed=0)
    for token in (5, EOS, 5, 5):
        got = env.step(np.array([token, 5]))
        kept = same.step(np.array([token, 5]))
        assert data_equivalence(got, kept, exact=True)
        for array in (*got[0].values(), *got[1:4], got[4]["cost"], got[4]["_cost"]):
            array[:] = 1


def test_vector_refuses_wrong_actions(task_options: dict[str, Any]) -> None:
    env = make_vec(task_options, 2)
    with pytest.raises(ResetNeeded):
        env.step(np.array([4, 4]))
    env.reset(seed=0)
    for wrong in ([4], [4, 25], [-1, 4], [1.0, 2.0], [[4, 4]], [2**63, 4], ["a", "b"]):
        with pytest.raises(InvalidAction):
            env.step(np.array(wrong))
    with pytest.raises(ConfigError, match="num_envs"):
        SafeRLHFVectorEnv(0, **task_options)
    with pytest.raises(ConfigError, match="max_episode_steps"):
        SafeRLHFVectorEnv(2, max_episode_steps=-1, **task_options)
    with pytest.raises(ConfigError, match="autoreset_mode: expected one of NextStep, SameStep, Disabled"):
        SafeRLHFVectorEnv(2, autoreset_mode="next", **task_options)


def test_vector_render(task_options: dict[str, Any], capsys: Any) -> None:
    env = make_vec(task_options, 2, render_mode="ansi")
    env.reset(options={"prompt": ["please", "fix"]})
    env.step(np.array([EOS, 17]))
    first, second = env.render()
    assert first.startswith("prompt: please\nresponse: \n[eos] reward ")
    assert second == "prompt: fix\nresponse: sorry"
    env = make_vec(task_options, 2, render_mode="human")
    env.reset(options={"prompt": ["please", "fix"]})
    env.step(np.array([EOS, 17]))
    assert capsys.readouterr().out.startswith("prompt: please\nresponse: \n[eos] reward ")


# Whole episodes --------------------------------------------------------------------------------------------------


def test_play_refuses_what_step_would_not_make(task_options: dict[str, Any]) -> None:
    env = make_vec(task_options, 2)
    good = np.array([[5, 5, EOS, 0, 0], [5, 5, 5, 5, 5]]), np.array([3, 5])
    with pytest.raises(ResetNeeded):
        env.play(*good)
    env.reset(seed=0)
    no_end = np.array([[5, 5, 5, 0, 0], [5, 5, 5, 5, 5]])
    early = np.array([[5, EOS, EOS, 0, 0], [5, 5, 5, 5, 5]])
    outside = np.array([[5, 25, EOS, 0, 0], [5, 5, 5, 5, 5]])
    for wrong in (no_end, early, outside, good[0][:1], good[0][:, :4], good[0].astype(float)):
        with pytest.raises(InvalidAction):
            env.play(wrong, good[1])
    for lengths in (np.array([0, 5]), np.array([3, 6]), np.array([3.0, 5.0]), np.array([3])):
        with pytest.raises(InvalidAction):
            env.play(good[0], lengths)
    played = env.play(*good)
    assert [info["finish_reason"] for info in played.infos] == ["eos", "length"]
    with pytest.raises(ResetNeeded):
        env.play(*good)
    with pytest.raises(ResetNeeded):
        env.step(np.array([4, 4]))
    env.reset(seed=0)
    env.step(np.array([4, 4]))
    with pytest.raises(ResetNeeded):
        env.play(*good)
    env.reset(seed=0)
    env.play(*good)
    limited = make_vec(task_options, 2, max_episode_steps=3)
    limited.reset(seed=0)
    with pytest.raises(ConfigError, match="max_episode_steps"):
        limited.play(*good)


@pytest.mark.parametrize("name", ["SafeRLHF-v0", "SafeRLHF-Exact-v0"])
def test_a_pickled_copy_goes_on_as_the_original_would(name: str) -> None:
    env = gym.make(name)
    env.reset(seed=3)
    eos = env.unwrapped.task.eos_id
    env.step(eos + 1)
    again = pickle.loads(pickle.dumps(env))
    for action in (eos + 2, eos):
        assert data_equivalence(env.step(action), again.step(action))
    assert data_equivalence(env.reset(), again.reset())


def test_a_vector_environment_has_the_limit_of_its_environments() -> None:
    limit = gym.make("SafeRLHF-v0").unwrapped.cost_limit
    for mode in ("sync", None):
        vector = gym.make_vec("SafeRLHF-v0", num_envs=2, vectorization_mode=mode)
        assert own_cost_limit(vector) == limit
    assert own_cost_limit(gym.make_vec("CartPole-v1", num_envs=2)) is None
