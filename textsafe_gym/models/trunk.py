"""A scalar head on the trunk of a causal language model that others use too, while a LoRA of its own acts."""

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from textsafe_gym.errors import ModelError
from textsafe_gym.models import lora

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

_numbers = count(1)


class LoRAClassifier(nn.Module):
    """What `ScoreModel` uses of a sequence classifier, made of a causal LM, one of its LoRAs and a head.

    Args:
        causal: a Hugging Face causal LM that holds the LoRA; its output embedding is not used.
        name: the LoRA's.
        head: weight (1, hidden size) of `score`, which has no bias.
    """

    def __init__(self, causal: "PreTrainedModel", name: str, head: Tensor) -> None:
        super().__init__()
        self.causal = causal
        self.name = name
        embeddings = causal.get_input_embeddings().weight
        self.score = nn.Linear(head.shape[1], 1, bias=False, device=embeddings.device, dtype=embeddings.dtype)
        with torch.no_grad():
            self.score.weight.copy_(head)

    @classmethod
    def load(cls, directory: str | Path, what: str, device: str, dtype: str) -> "LoRAClassifier":
        """A saved LoRA and its head, both frozen, on the one copy of its base model in this process.

        Args:
            directory: a folder in PEFT's format, of task type SEQ_CLS with one label.
            what: what it should be, for messages.
            device: a torch device.
            dtype: a torch dtype's name.

        Raises:
            ModelError: it is damaged, or holds no such head, or more than LoRA and head.
        """
        causal = lora.shared_base(lora.base_of(directory, what), what, device, dtype)
        name = _new_name()
        others = lora.add_saved(causal, name, directory, what)
        # PEFT keeps a head's old weight next to the one that was trained, and some of its versions write both.
        heads = [x for key, x in others.items() if _is_head(key)]
        odd = [key for key in others if not _is_head(key) and "original_module" not in key]
        if odd:
            raise ModelError(
                f"{what} '{directory}' holds {len(odd)} tensors besides a LoRA and a head 'score', first "
                f"'{odd[0]}'; merge it into its base model and give the whole model"
            )
        shape = (1, causal.get_output_embeddings().weight.shape[1])
        if len(heads) != 1 or heads[0].shape != shape:
            found = f"has {tuple(heads[0].shape)}" if heads else "has none"
            raise ModelError(
                f"{what} '{directory}' needs a head 'score' of shape {shape} next to its LoRA but {found}; "
                "give a LoRA of task type SEQ_CLS with one label"
            )
        classifier = cls(causal, name, heads[0])
        classifier.score.requires_grad_(False)  # not all of it: others' LoRAs on the trunk may be learning
        return classifier

    @classmethod
    def new(cls, source: str | Path, what: str, device: str, rank: int) -> "LoRAClassifier":
        """A new LoRA and a head at zero, both to be trained, on a frozen copy of `source` of its own in float32.

        Raises:
            ModelError: the model is missing or corrupt, or has no layers to adapt.
        """
        causal = lora.load_causal_lm(source, what, device, "float32")
        name = _new_name()
        lora.add_new(causal, name, rank, 2 * rank)
        lora.train(causal, name)
        return cls(causal, name, torch.zeros(1, causal.get_output_embeddings().weight.shape[1]))

    def base_model(self, **inputs: Tensor) -> "BaseModelOutput":
        """The trunk's output for the inputs of its forward; the states before the output embedding are in it."""
        with lora.acting_as(self.causal, self.name):
            return self.causal.base_model(**inputs)

    def save(self, directory: Path, settings: Mapping[str, object]) -> None:
        """Writes LoRA, head and settings (see `lora.settings_of`) into an existing folder.

        Raises:
            ModelError: the base model has no folder or hub id to refer to.
        """
        lora.save_lora(self.causal, self.name, directory, "SEQ_CLS", settings, {"score.weight": self.score.weight})

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's embeddings, which PEFT and transformers ask for."""
        return self.causal.get_input_embeddings()

    @property
    def config(self) -> "PretrainedConfig":
        """The causal LM's, which is not this classifier's alone."""
        return self.causal.config

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.score.weight.device


def _new_name() -> str:
    """Unlike any other in this process, so that any number of LoRAs can be on one trunk."""
    return f"scores_{next(_numbers)}"


def _is_head(key: str) -> bool:
    return key.startswith("score.") and key.endswith("weight") and "original_module" not in key
