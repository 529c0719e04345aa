"""Score models in the form of the official Safe RLHF release, of toy size."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaModel, PreTrainedTokenizerFast

from tests.helpers.models_doubles import BOS, make_chat_tokenizer, make_config

MEAN, VARIANCE = -1.5, 6.25


def make_official_tokenizer() -> PreTrainedTokenizerFast:
    """Knows the official format's words; like Llama's it puts a BOS before every text, and has no chat template."""
    tokenizer = make_chat_tokenizer()
    tokenizer.add_tokens(["BEGINNING OF CONVERSATION:", "USER:", "ASSISTANT:"])
    tokenizer.chat_template = None
    return tokenizer


def build(folder: Path, kind: str | None, do_normalize: bool, bias: bool = True, **more: Any) -> Any:
    """A small published model: config, weights in two shards, tokenizer. Returns the plain formula for one pair."""
    torch.manual_seed(0)
    tokenizer = make_official_tokenizer()
    config = make_config(vocab_size=len(tokenizer))
    trunk = LlamaModel(config).eval()
    head = torch.nn.Linear(16, 1, bias=bias)
    tensors = {f"model.{name}": tensor for name, tensor in trunk.state_dict().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)  # of older versions of transformers
    heads = {f"score_head.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    heads |= {"normalizer.mean": torch.tensor([MEAN]), "normalizer.var": torch.tensor([VARIANCE])}
    heads["normalizer.count"] = torch.tensor([64])
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": heads}
    for name, shard in shards.items():
        save_file(shard, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, shard in shards.items() for key in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    official = {"architectures": ["LlamaForScore"], "score_dim": 1, "score_bias": bias, "do_normalize": do_normalize}
    official |= {"normalizer_type": "ExponentialMovingAverage", "momentum": 0.9, "mean": [MEAN], "var": [VARIANCE]}
    official |= ({} if kind is None else {"score_type": kind}) | more
    (folder / "config.json").write_text(json.dumps(config.to_dict() | official))
    tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def formula(prompt: str, response: str) -> float:
        text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}{tokenizer.eos_token}"
        ids = tokenizer(text)["input_ids"]
        assert (ids.count(BOS), ids[0], ids[-1]) == (1, BOS, tokenizer.eos_token_id)
        raw = head(trunk(torch.tensor([ids])).last_hidden_state)[0, -1, 0].item()
        if not do_normalize:
            return raw
        return (raw - (MEAN if kind == "reward" else 0)) / (math.sqrt(VARIANCE) + 1e-8)

    return formula
