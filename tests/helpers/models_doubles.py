"""Tiny random language models and a batched text environment, for the tests of `textsafe_gym.models`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from textsafe_gym.models import make_critics
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Agent, Rollout

WORDS = [f"w{i}" for i in range(29)]
KINDS = ["llama", "gpt2", "mistral", "gemma", "gemma2", "qwen2", "qwen3", "opt"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BOS, USER, ASSISTANT, END = range(32, 36)  # the ids that `make_chat_tokenizer` adds


def make_tokenizer(pad_is_eos: bool = False, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad = "<eos>" if pad_is_eos else "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", pad_token=pad)


def make_chat_tokenizer() -> PreTrainedTokenizerFast:
    """The words of `make_tokenizer`, a chat template, and a BOS of its own before every text."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": ["<user>", "<assistant>", "<end>"]})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_config(kind: str = "llama", vocab_size: int = 32, **more: Any) -> Any:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        return GPT2Config(vocab_size=vocab_size, **sizes, **ids, **more)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    if kind == "opt":
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64}
        return OPTConfig(vocab_size=vocab_size, init_std=0.3, **sizes, **ids, **more)
    if kind == "mistral":  # a window shorter than the sequences
        return MistralConfig(vocab_size=vocab_size, sliding_window=4, initializer_range=0.3, **sizes, **ids, **more)
    if kind == "gemma2":  # alternating windows, and a soft cap after the output embedding
        more = {"final_logit_softcapping": 3.0, "head_dim": 4, "sliding_window": 4} | more
        return Gemma2Config(vocab_size=vocab_size, initializer_range=0.3, **sizes, **ids, **more)
    others = {"llama": LlamaConfig, "gemma": GemmaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    more = ({} if kind in ("llama", "qwen2") else {"head_dim": 4}) | more
    return others[kind](vocab_size=vocab_size, initializer_range=0.3, **ids, **sizes | more)


def make_lm(kind: str = "llama", seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(kind, **more)).eval()
    if kind == "gpt2":  # its initial weights are so small that every distribution is near uniform
        for parameter in model.parameters():
            parameter.data.mul_(5)
    return model


def make_classifier(kind: str = "llama", seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(make_config(kind, num_labels=1, **more)).eval()


def agent_of(actor: Any, kinds: Sequence[str] = ("reward", "cost"), env: Any = None, **options: Any) -> Agent:
    """An actor with critics of the given kinds, and as it is now for a reference."""
    env = TextVectorEnv(1, make_tokenizer()) if env is None else env  # which has no score models
    return Agent(actor, make_critics(actor, env, kinds, **options), actor.reference())


def play(agent: Agent, env: Any, seed: int, **options: Any) -> Rollout:
    """A rollout with all that the agent has to say of it."""
    return collect(agent.actor, env, seed, critics=agent.critics, reference=agent.reference, **options)


@dataclass(frozen=True)
class Played:
    input_ids: np.ndarray
    attention_mask: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    named_costs: dict[str, np.ndarray]
    infos: list[dict[str, Any]]


class TextVectorEnv(gym.vector.VectorEnv):
    """Prompts of one to `max_prompt_length` words; the reward is the response's length, the cost its first id."""

    def __init__(self, num_envs: int, tokenizer: Any, max_prompt_length: int = 6, max_response_length: int = 8) -> None:
        self.num_envs = num_envs
        self.tokenizer = tokenizer
        self.default_policy = self.gold_judge = self.max_episode_steps = None
        self.score_models = {}
        self.cost_limit, self.evaluation_prompts, self.demonstrations = 0.0, [], []
        self.max_prompt_length, self.max_response_length = max_prompt_length, max_response_length
        shape = (max_prompt_length + max_response_length,)
        self.single_observation_space = gym.spaces.Dict(
            input_ids=gym.spaces.Box(0, len(tokenizer) - 1, shape, np.int64),
            attention_mask=gym.spaces.Box(0, 1, shape, np.int8),
        )
        self.single_action_space = gym.spaces.Discrete(len(tokenizer))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        width = self.max_prompt_length + self.max_response_length
        self.ids = np.zeros((self.num_envs, width), np.int64)
        self.mask = np.zeros((self.num_envs, width), np.int8)
        self.seeds = list(seed)
        for row, row_seed in enumerate(seed):
            generator = np.random.default_rng(row_seed)
            length = int(generator.integers(1, self.max_prompt_length + 1))
            where = slice(self.max_prompt_length - length, self.max_prompt_length)
            self.ids[row, where] = generator.integers(3, len(self.tokenizer), length)
            self.mask[row, where] = 1
        return {"input_ids": self.ids.copy(), "attention_mask": self.mask.copy()}, {}

    def preferences(self, count: int, seed: int) -> list[Any]:
        return []

    def play(self, actions: np.ndarray, lengths: np.ndarray) -> Played:
        assert actions.shape == (self.num_envs, self.max_response_length)
        assert actions.dtype == np.int64
        for row, length in enumerate(lengths):
            assert (actions[row, : length - 1] != self.tokenizer.eos_token_id).all()
            self.ids[row, self.max_prompt_length :][:length] = actions[row, :length]
            self.mask[row, self.max_prompt_length :][:length] = 1
        infos = [{"response_length": int(length)} for length in lengths]
        return Played(self.ids, self.mask, lengths.astype(float), actions[:, 0].astype(float), {}, infos)


def named_parameters(agent: Agent) -> dict[str, torch.nn.Parameter]:
    """As they are named in the agent's state."""
    roles: dict[str, Any] = {"actor": agent.actor, "critics": agent.critics}
    return {f"{role}.{name}": x for role, part in roles.items() for name, x in part.named_parameters()}
