"""Texts to ids by a chat template, worked out by hand; without one, the bare texts."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.models_doubles import (
    ASSISTANT,
    BOS,
    END,
    USER,
    make_chat_tokenizer,
    make_classifier,
    make_lm,
    make_tokenizer,
)
from tests.helpers.rounding import TINY
from textsafe_gym.errors import DataError, ModelError
from textsafe_gym.fitting.sft import encode_demonstration
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.files import load_tokenizer
from textsafe_gym.models.formats.beaver import CHAT_TEMPLATE
from textsafe_gym.models.sampling import generate, sample_responses
from textsafe_gym.models.score import ScoreModel
from textsafe_gym.models.texts import answers_ids, end_with_turn, pair_ids, prompt_ids
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.rollouts import collect

W = 3  # the id of w0


def asked(*words: int) -> list[int]:
    """What the policy reads of a prompt of these words."""
    return [BOS, USER, *(W + word for word in words), END, ASSISTANT]


def answered(prompt: list[int], response: list[int]) -> list[int]:
    """What a score model reads of an exchange."""
    return [*asked(*prompt), *(W + word for word in response), END]


def test_ids_by_hand_and_as_transformers_has_them() -> None:
    tokenizer = make_chat_tokenizer()
    assert tokenizer("w1")["input_ids"] == [BOS, W + 1]  # it would double the template's BOS
    assert prompt_ids(tokenizer, ["w1 w2", "w3"]) == [asked(1, 2), asked(3)]
    assert pair_ids(tokenizer, ["w1 w2", "w3"], ["w4", ""]) == [answered([1, 2], [4]), answered([3], [])]
    user, assistant = {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w4"}
    theirs = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    assert theirs == prompt_ids(tokenizer, ["w1 w2"])[0]
    assert tokenizer.apply_chat_template([user, assistant])["input_ids"] == pair_ids(tokenizer, ["w1 w2"], ["w4"])[0]
    assert prompt_ids(tokenizer, []) == pair_ids(tokenizer, [], []) == []


def test_without_a_template_nothing_is_added() -> None:
    tokenizer = make_chat_tokenizer()
    tokenizer.chat_template = None
    assert prompt_ids(tokenizer, ["w1 w2"]) == [[W + 1, W + 2]]
    assert prompt_ids(tokenizer, ["w1 w2"], 1) == [[W + 2]]
    assert pair_ids(tokenizer, ["w1"], ["w2"]) == [[W + 1, W + 2, tokenizer.eos_token_id]]
    both = [[W + 2, W + 3, W + 4, W + 5, tokenizer.eos_token_id], [W + 2, W + 3, W + 6, tokenizer.eos_token_id]]
    assert answers_ids(tokenizer, "w1 w2 w3", ["w4 w5", "w6"], 5) == both  # the longer answer decides for both


def test_too_long_prompts_lose_their_texts_beginning_and_never_the_template() -> None:
    tokenizer = make_chat_tokenizer()
    assert prompt_ids(tokenizer, ["w1 w2 w3", "w4"], 6) == [asked(2, 3), asked(4)]
    assert prompt_ids(tokenizer, ["w1 w2 w3"], 4) == [asked()]
    with pytest.raises(ModelError, match="template alone takes 4 tokens, but a prompt may take 3"):
        prompt_ids(tokenizer, ["w1 w2 w3"], 3)
    assert pair_ids(tokenizer, ["w1 w2 w3"], ["w4 w5"], 8) == [answered([3], [4, 5])]
    assert pair_ids(tokenizer, ["w1"], ["w4 w5 w6"], 4) == [[W + 4, W + 5, W + 6, END]]
    # the longer answer decides for both, so that both go on from the same position
    assert answers_ids(tokenizer, "w1 w2 w3", ["w4 w5", "w6"], 8) == [answered([3], [4, 5]), answered([3], [6])]


def test_truncation_ends_though_tokens_do_not_survive_decoding(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    byte_tokenizer.chat_template = "[{{ messages[0]['content'] }}]"
    text = "é" * 20  # two bytes each: half of one decodes into three bytes of replacement
    try:
        for budget in range(2, 42):
            row = prompt_ids(byte_tokenizer, [text], budget)[0]
            said = byte_tokenizer.decode(row)
            assert len(row) <= budget
            assert said[0] + said[-1] == "[]"
            assert said.count("é") >= (budget - 2) // 2 - 2
    finally:
        byte_tokenizer.chat_template = None


def test_a_templates_bos_leaves_what_follows_the_beginning_of_a_text() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "▁a": 4, "a": 5}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert tokenizer("<s>a", add_special_tokens=False)["input_ids"] == [1, 5]
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    assert prompt_ids(tokenizer, ["a"]) == [[1, 4]]


def test_the_beaver_template_is_the_official_format() -> None:
    tokenizer = make_chat_tokenizer()
    exchange = [{"role": "user", "content": "{q} "}, {"role": "assistant", "content": " {a}"}]
    begin = "<bos>BEGINNING OF CONVERSATION: USER: {q}  ASSISTANT:"
    for generation in (False, True):
        rendered = tokenizer.apply_chat_template(
            exchange[:1], chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=generation
        )
        assert rendered == begin
    assert tokenizer.apply_chat_template(exchange, chat_template=CHAT_TEMPLATE, tokenize=False) == begin + " {a}<eos>"


def test_a_broken_template_is_one_line(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer()
    for template in ("{{ messages[", "{{ raise_exception('no\nsystem message') }}", "{{ ''.__class__.mro() }}"):
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match="chat template cannot be rendered") as caught:
            prompt_ids(tokenizer, ["w1"])
        assert "\n" not in str(caught.value)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"cannot use policy '{tmp_path}': the tokenizer's chat template"):
        load_tokenizer(tmp_path, "policy")


def test_a_response_ends_as_a_turn_does(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path, "policy").eos_token_id == END
    for template in (None, "{{ messages[0]['content'] }}", "{{ bos_token }} {{ messages[-1]['content'] }}"):
        tokenizer.chat_template = template  # none, one without answers, and one that ends them with nothing
        end_with_turn(tokenizer)
        assert tokenizer.eos_token == "<eos>"


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """A policy's folder, with a chat template."""
    make_lm(vocab_size=36).save_pretrained(tmp_path / "policy")
    make_chat_tokenizer().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def length(prompts: list[str], responses: list[str]) -> np.ndarray:
    return np.array([len(response.split()) for response in responses])


def test_environment_and_policy_agree_on_the_template(chat_model: Path) -> None:
    options = {"prompts": ["w1 w2"], "tokenizer": chat_model, "reward_model": length, "cost_model": length}
    env = gym.make("SafeRLHF-v0", max_prompt_length=8, max_response_length=4, **options)
    observation, info = env.reset(seed=0)
    assert observation["input_ids"][:8][observation["attention_mask"][:8] == 1].tolist() == asked(1, 2)
    assert info["prompt"] == "w1 w2"
    _, reward, terminated, *_, info = env.step(END)
    assert (reward, terminated, info["finish_reason"], info["response"]) == (0, True, "eos", "")
    observation, info = env.reset(options={"prompt": "w3"})
    assert observation["input_ids"][:8][observation["attention_mask"][:8] == 1].tolist() == asked(3)

    policy = CausalLMActor.load(chat_model)
    vector = gym.make_vec("SafeRLHF-v0", num_envs=2, max_prompt_length=8, max_response_length=4, **options)
    rollout = collect(policy, vector, seed=0)
    taught = Demonstrations.encode([("w1 w2", "w4")], policy, 8, 4)
    assert torch.equal(rollout.observations["input_ids"][0, :8][2:], taught.observations["input_ids"][0, 2:8])
    assert taught.observations["attention_mask"][0].tolist() == [0, 0, *[1] * 6, 1, 1, 0, 0]
    assert taught.actions[0, :2].tolist() == [W + 4, END]
    assert encode_demonstration(policy.tokenizer, "w1 w2", "w4", 64) == (asked(1, 2), [W + 4, END])
    assert encode_demonstration(policy.tokenizer, "w1 w2", "w4", 7) == (asked(2), [W + 4, END])
    tokens = generate(policy.model, torch.tensor([asked(1, 2)]), torch.ones(1, 6), 4, END, [7], 1.0, 36).tokens
    said = policy.tokenizer.decode([token for token in tokens[0].tolist() if token != END])
    assert sample_responses(policy.model, policy.tokenizer, ["w1 w2"], 4, [7]) == [said]


def test_an_environments_budget_counts_the_template(chat_model: Path) -> None:
    options = {"prompts": ["w1 w2 w3"], "tokenizer": chat_model, "reward_model": length, "cost_model": length}
    with pytest.raises(DataError, match="has 7 tokens, over max_prompt_length=6"):
        gym.make("SafeRLHF-v0", max_prompt_length=6, **options)
    env = gym.make("SafeRLHF-v0", max_prompt_length=6, prompt_truncation="left", **options)
    assert env.reset(seed=0)[0]["input_ids"][:6].tolist() == asked(2, 3)
    with pytest.raises(ModelError, match="template alone takes 4 tokens"):
        gym.make("SafeRLHF-v0", max_prompt_length=3, prompt_truncation="left", **options)


def test_a_score_model_reads_exchanges_in_its_own_template() -> None:
    score = ScoreModel(make_classifier(vocab_size=36), make_chat_tokenizer(), "reward")
    found = score(["w1 w2", "w3"], ["w4", "w5 w6 w7"])
    for (prompt, response), value in zip([([1, 2], [4]), ([3], [5, 6, 7])], found, strict=True):
        with torch.no_grad():
            hidden = score.model.base_model(torch.tensor([answered(prompt, response)])).last_hidden_state[0, -1]
            assert value == pytest.approx(float(hidden @ score.model.score.weight[0]), abs=TINY)
    bare = ScoreModel(score.model, make_tokenizer(), "reward")(["w1 w2", "w3"], ["w4", "w5 w6 w7"])
    assert (np.abs(bare - found) > 1e-4).all()
