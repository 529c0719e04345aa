"""Score models as the official implementation of Safe RLHF saves them, such as PKU-Alignment/beaver-7b-v1.0-reward.

A Llama trunk, a linear `score_head` with a bias that is read at the last attended token, and a normaliser. Source:
`safe_rlhf/models/score_model`, `safe_rlhf/models/normalizer.py` and `safe_rlhf/configs/constants.py` of
PKU-Alignment/safe-rlhf.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from textsafe_gym.errors import ModelError
from textsafe_gym.models.files import load_pretrained, load_tokenizer
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ARCHITECTURES = frozenset({"LlamaForScore", "LlamaModelForScore"})

CHAT_TEMPLATE = (
    "{{ bos_token }}BEGINNING OF CONVERSATION: {% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }} ASSISTANT:"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""How all models of that project, policies too, are prompted; their tokenizers do not say so themselves."""

_EPSILON = 1e-8  # of the official normaliser


class LlamaForScore(LlamaForSequenceClassification):
    """A Llama trunk with one score; unlike the classifier of transformers its head has a bias."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()


def load(
    source: str | Path, config: "PretrainedConfig", what: str, device: str, dtype: str
) -> "tuple[PreTrainedModel, Tokenizer]":
    """Loads model and tokenizer.

    The tensors of the normaliser in the weights are not read: the official implementation writes the same numbers to
    config.json.

    Args:
        source: a folder or hub id.
        config: its config.
        what: what it should be, for messages.
        device: a torch device.
        dtype: a torch dtype's name.

    Raises:
        ModelError: missing, corrupt, or without a single score.
    """
    dimension = getattr(config, "score_dim", 1)
    if dimension != 1:
        raise ModelError(f"{what} '{source}' has score_dim {dimension}; take one with a single score")
    # A checkpoint may have been trained without a bias, which is a bias of zero.
    model = load_pretrained(
        LlamaForScore, source, what, device, dtype, may_miss=["score.bias"], key_mapping={"^score_head": "score"}
    )
    tokenizer: Any = load_tokenizer(source, what)
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


def normaliser(config: "PretrainedConfig", kind: str) -> dict[str, object]:
    """The "kind", "mean" and "std" that the official config means; `kind` where it does not say its own.

    Rewards are shifted and scaled, costs only scaled, and either only if `do_normalize` is set.

    Raises:
        ModelError: the config is malformed.
    """
    kind = getattr(config, "score_type", kind)
    if not getattr(config, "do_normalize", False):
        return {"kind": kind, "mean": 0.0, "std": 1.0}
    try:
        (mean,), (variance,) = config.mean, config.var
        return {"kind": kind, "mean": float(mean) if kind == "reward" else 0.0, "std": math.sqrt(variance) + _EPSILON}
    except (AttributeError, TypeError, ValueError):
        raise ModelError(
            "do_normalize is set in its config.json, which needs mean and var, lists of one number each"
        ) from None
