"""Reward and cost models: a decoder with a scalar head, read at the last attended token, and its normaliser."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from textsafe_gym.errors import ModelError
from textsafe_gym.models import lora
from textsafe_gym.models.cards import write_card
from textsafe_gym.models.encoding import pad, rows_at_once
from textsafe_gym.models.files import load_config, load_pretrained, load_tokenizer, new_directory, quiet
from textsafe_gym.models.layers import fuse_norms
from textsafe_gym.models.texts import pair_ids
from textsafe_gym.models.trunk import LoRAClassifier
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("reward", "cost")
_KEY = "textsafe_score"


class ScoreModel:
    """A learned judge of (prompt, response) pairs.

    Attributes:
        model: a Hugging Face sequence classifier with one label on a decoder (`score` is its head), or an
            `LoRAClassifier`.
        tokenizer: its own tokenizer; it need not be the policy's, since pairs come as text. What it makes of a pair, by
            its chat template if it has one, is in `textsafe_gym.models.texts`.
        kind: "reward" (high is helpful) or "cost" (above 0 is harmful).
        mean, std: the normaliser; a score is (raw - mean) / std. A cost's mean is 0: moving it would move what is
            safe (arXiv 2310.12773, and the score normaliser of the official implementation).
        max_length: longer sequences lose tokens from the left; None where the model sets no limit.
    """

    def __init__(
        self,
        model: "PreTrainedModel | LoRAClassifier",
        tokenizer: Tokenizer,
        kind: str,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        if kind not in KINDS:
            raise ModelError(f"unknown kind of score model '{kind}'; known: {', '.join(KINDS)}")
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ModelError(
                f"{type(model).__name__} has no scalar head 'score'; a {kind} model is a decoder such as Llama "
                "or GPT-2 as sequence classifier with num_labels=1"
            )
        if len(tokenizer) > (embeddings := len(next(model.get_input_embeddings().parameters()))):
            raise ModelError(
                f"the {kind} model has {embeddings} embeddings but its tokenizer "
                f"has {len(tokenizer)} tokens; take the tokenizer that it was trained with"
            )
        fuse_norms(model)
        self.model: Any = model  # nn.Module does not know the types of its parts
        self.tokenizer = tokenizer
        self.kind = kind
        self.set_normaliser(mean, std)
        self.max_length: int | None = getattr(model.config, "max_position_embeddings", None)

    def set_normaliser(self, mean: float, std: float) -> None:
        """Sets `mean` and `std`.

        Raises:
            ModelError: not finite, a std that is not positive, or a cost model's mean that is not 0.
        """
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ModelError(f"a {self.kind} model's normaliser has to be finite with std > 0, not {mean=}, {std=}")
        if self.kind == "cost" and mean != 0:
            raise ModelError(f"a cost model's normaliser only scales, so that 0 keeps its meaning; {mean=} is not 0")
        self.mean, self.std = float(mean), float(std)

    @classmethod
    def load(cls, source: str | Path, kind: str, device: str = "cpu", dtype: str = "float32") -> "ScoreModel":
        """Loads a saved score model, any Hugging Face decoder classifier with one label, or one of `formats`.

        A folder in PEFT's format is a LoRA, which is added to the one copy of its base model in this process.

        Args:
            source: a folder or a hub id.
            kind: what it is to be used as; one that was saved as the other kind is refused.
            device: a torch device.
            dtype: a torch dtype's name.

        Raises:
            ModelError: missing, corrupt, or of the other kind.
        """
        from transformers import AutoModelForSequenceClassification

        from textsafe_gym.models.formats import format_of

        what = f"{kind} model"
        if lora.is_lora(source):
            return cls._load_lora(source, kind, what, device, dtype)
        config = load_config(source, what)
        other = format_of(config)
        if other:
            model, tokenizer = other.load(source, config, what, device, dtype)
        else:
            model = load_pretrained(AutoModelForSequenceClassification, source, what, device, dtype)
            tokenizer = load_tokenizer(source, what)
        try:
            if other and not hasattr(model.config, _KEY):
                setattr(model.config, _KEY, other.normaliser(model.config, kind))
            return cls.of(model, tokenizer, kind)
        except ModelError as error:
            raise ModelError(f"cannot use {what} '{source}': {error}") from error

    @classmethod
    def of(cls, model: "PreTrainedModel | LoRAClassifier", tokenizer: Tokenizer, kind: str) -> "ScoreModel":
        """A loaded classifier with the normaliser that its config holds; the identity where it holds none.

        Raises:
            ModelError: the model was saved as the other kind, or what the config holds is malformed.
        """
        return cls._with_normaliser(model, tokenizer, kind, getattr(model.config, _KEY, None))

    @classmethod
    def _load_lora(cls, source: str | Path, kind: str, what: str, device: str, dtype: str) -> "ScoreModel":
        saved = lora.settings_of(source).get(_KEY)
        model = LoRAClassifier.load(source, what, device, dtype)
        try:
            return cls._with_normaliser(model, lora.tokenizer_of(source, what), kind, saved)
        except ModelError as error:
            raise ModelError(f"cannot use {what} '{source}': {error}") from error

    @classmethod
    def _with_normaliser(
        cls, model: "PreTrainedModel | LoRAClassifier", tokenizer: Tokenizer, kind: str, saved: object
    ) -> "ScoreModel":
        if saved is None:
            return cls(model, tokenizer, kind)
        if not isinstance(saved, dict) or set(saved) != {"kind", "mean", "std"}:
            raise ModelError(f"its saved '{_KEY}' is malformed; it needs kind, mean and std")
        if saved["kind"] != kind:
            raise ModelError(f"this is a {saved['kind']} model, not a {kind} model; are the two swapped?")
        if not all(isinstance(saved[name], int | float) for name in ("mean", "std")):
            raise ModelError(f"its saved '{_KEY}' is malformed; mean and std have to be numbers")
        return cls(model, tokenizer, kind, saved["mean"], saved["std"])

    @classmethod
    def on_trunk(cls, source: str | Path, kind: str, device: str = "cpu", dtype: str = "float32") -> "ScoreModel":
        """A new score model: the trunk of any causal LM or classifier in `source`, with a head at zero.

        Raises:
            ModelError: missing or corrupt, or a model without a decoder classifier.
        """
        from transformers import AutoModelForSequenceClassification

        model: Any = load_pretrained(
            AutoModelForSequenceClassification,
            source,
            f"{kind} model",
            device,
            dtype,
            may_miss=["score."],
            num_labels=1,
        )
        score = cls(model, load_tokenizer(source, f"{kind} model"), kind)
        nn.init.zeros_(model.score.weight)
        return score

    @classmethod
    def on_lora(cls, source: str | Path, kind: str, rank: int, device: str = "cpu") -> "ScoreModel":
        """A new score model to be trained: a LoRA of any causal LM in `source`, with a head at zero.

        Raises:
            ModelError: missing or corrupt.
        """
        what = f"{kind} model"
        return cls(LoRAClassifier.new(source, what, device, rank), lora.tokenizer_of(source, what), kind)

    def save(self, directory: str | Path) -> None:
        """Writes model, tokenizer and normaliser; the folder appears whole or not at all.

        A model is in Hugging Face's format, a LoRA in PEFT's.
        """
        normaliser = {"kind": self.kind, "mean": self.mean, "std": self.std}
        with new_directory(directory) as scratch, quiet():
            if isinstance(self.model, LoRAClassifier):
                self.model.save(scratch, {_KEY: normaliser})
            else:
                setattr(self.model.config, _KEY, normaliser)
                if self.model.config.pad_token_id is None:
                    self.model.config.pad_token_id = self.tokenizer.eos_token_id
                self.model.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            write_card(scratch, self.kind)

    def token_scores(self, input_ids: Tensor) -> Tensor:
        """The raw score at every position, with gradients.

        Args:
            input_ids: (B, L) int64, right-padded.

        Returns:
            (B, L) float32; that of padding means nothing.
        """
        return self.model.score(self._hidden(input_ids)).squeeze(-1).float()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Normalised scores.

        Args:
            prompts: n texts.
            responses: n texts.

        Returns:
            (n,) float64.
        """
        self.model.eval()
        rows = pair_ids(self.tokenizer, prompts, responses, self.max_length)
        raw = np.zeros(len(rows))
        # Neighbours of like length, so that little is spent on padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        device = self.model.score.weight.device
        size = rows_at_once(max(map(len, rows), default=1), device)
        for start in range(0, len(order), size):
            index = order[start : start + size]
            ids, mask = (x.to(device) for x in pad([rows[i] for i in index], self.tokenizer.eos_token_id))
            last = self._hidden(ids)[torch.arange(len(index), device=device), mask.sum(1) - 1]
            raw[index] = self.model.score(last).squeeze(-1).double().cpu().numpy()
        return (raw - self.mean) / self.std

    def normalised_head(self) -> nn.Linear:
        """A copy of the head with the normaliser folded in, so that it gives what calling the model gives."""
        old = self.model.score
        head = nn.Linear(old.in_features, 1, device=old.weight.device, dtype=old.weight.dtype)
        with torch.no_grad():
            head.weight.copy_(old.weight / self.std)
            head.bias.fill_(-self.mean / self.std)
            if old.bias is not None:
                head.bias.add_(old.bias / self.std)
        return head

    def _hidden(self, input_ids: Tensor) -> Tensor:
        # No mask: what pads a row on the right is not seen by what stands before it.
        return self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state


class Critic(nn.Module):
    """A value function of its own, begun as a copy of a score model: V of a prefix starts as the score of it.

    Raises:
        ModelError: the score model is a LoRA, whose trunk is not its own.
    """

    def __init__(self, score: ScoreModel) -> None:
        super().__init__()
        if isinstance(score.model, LoRAClassifier):
            raise ModelError(
                f"the {score.kind} model is a LoRA, which shares its trunk, and no separate critic can begin as "
                "one; set critics=heads"
            )
        self.trunk = copy.deepcopy(score.model.base_model)
        self.head = score.normalised_head()

    def forward(self, where: Tensor, **inputs: Tensor) -> Tensor:
        """Values (N,) float32 at the N true positions of `where` (B, L); `inputs` go to the trunk."""
        hidden = self.trunk(**inputs, use_cache=False).last_hidden_state[where]
        return self.head(hidden).squeeze(-1).float()
