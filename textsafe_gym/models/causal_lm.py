"""A causal language model as an actor over tokens, and the frozen reference that its KL is measured to."""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from textsafe_gym.errors import ModelError
from textsafe_gym.models import lora
from textsafe_gym.models.cards import write_card
from textsafe_gym.models.critics import LanguageCritics
from textsafe_gym.models.encoding import encode_prompts, pad, rows_at_once
from textsafe_gym.models.files import new_directory, one_line, quiet
from textsafe_gym.models.layers import compile_layers, fuse_norms, recompute_activations, train_last
from textsafe_gym.models.likelihood import LinearStatistics, has_linear_head, statistics
from textsafe_gym.models.sampling import logits_at, model_inputs, states_at
from textsafe_gym.models.texts import encode, prompt_ids
from textsafe_gym.protocols import Player, State, Tokenizer
from textsafe_gym.types import EncodedTexts, Evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY = "textsafe_policy"
_LORA = "policy"


class CausalLMActor(nn.Module):
    """Implements `textsafe_gym.protocols.TextActor`: its actions are tokens.

    Observations of a rollout are `input_ids` and `attention_mask`, each (B, P + T) int64: prompts left-padded to P,
    responses to the right of them, so that action t stands in column P + t of every row.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer; ids beyond it (padded embeddings) are never sampled.
        temperature: of the softmax that actions are sampled from; log-probs and entropy are of the same distribution.
        lora_rank: trains a LoRA of that rank and no weight of the model; the reference is the model without
            it, so that there is no second copy.
        lora_alpha: the LoRA's weight is lora_alpha / lora_rank; by default twice the rank, a weight of 2.
        last_layers: trains that many of the last layers alone; the reference shares the others.
        gradient_checkpointing: recompute activations in the backward pass, for less memory and more time.
        compile: compile the layers with torch.compile for passes without a cache; the first takes some ten seconds.

    Raises:
        ModelError: an argument does not fit.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: Tokenizer,
        temperature: float = 1.0,
        lora_rank: int | None = None,
        lora_alpha: int | None = None,
        last_layers: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
            raise ModelError(f"temperature has to be a number above 0, not {temperature!r}")
        if tokenizer.eos_token_id is None:
            raise ModelError("the policy's tokenizer has no end-of-sequence token; set its eos_token")
        embeddings = next(model.get_input_embeddings().parameters())
        if len(tokenizer) > len(embeddings):
            raise ModelError(
                f"the policy has {len(embeddings)} embeddings but its tokenizer has {len(tokenizer)} tokens; "
                "take the tokenizer that it was trained with"
            )
        fuse_norms(model)
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = float(temperature)
        self.vocab_size = len(tokenizer)
        if lora_rank is not None and last_layers is not None:
            raise ModelError("lora_rank and last_layers exclude each other; set one of them")
        if lora_rank is not None:
            if not model.name_or_path:
                raise ModelError("lora_rank needs a policy that was loaded from a folder or the hub: it is saved apart")
            lora.add_new(model, _LORA, lora_rank, 2 * lora_rank if lora_alpha is None else lora_alpha)
            lora.train(model, _LORA)
        elif lora_alpha is not None:
            raise ModelError("lora_alpha means something with lora_rank only; set that too")
        elif last_layers is not None:
            train_last(model, last_layers)
        else:
            model.requires_grad_(True)
        self.lora = lora_rank is not None
        self.lockstep = False  # set by an engine that gathers layers for each pass: all processes make the same passes
        self._linear_head = has_linear_head(model)
        self.gradient_checkpointing, self.compiled = gradient_checkpointing, compile
        self._initial: tuple[PreTrainedModel, ...] = (
            () if self.lora else (_frozen_copy(model),)
        )  # no tensors of the module's own
        if compile:  # the reference too, as a compiled layer rounds otherwise and the KL would not begin at 0
            for each in (model, *self._initial):
                compile_layers(each)
        if gradient_checkpointing:
            recompute_activations(model)
        self.eval()

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        temperature: float | None = None,
        **options: Any,
    ) -> "CausalLMActor":
        """Loads a policy from a folder in Hugging Face format or from the hub.

        Args:
            source: the folder or hub id.
            device: a torch device.
            dtype: a torch dtype's name.
            temperature: by default the one that the policy was saved with, else 1.
            **options: the others of the class.

        Raises:
            ModelError: missing, corrupt or not fitting.
        """
        if options.get("lora_rank") is not None:
            model = lora.shared_base(source, "policy", device, dtype)
            if _LORA in lora.names_of(model):  # another policy's
                model = lora.load_causal_lm(source, "policy", device, dtype)
        else:
            model = lora.load_causal_lm(source, "policy", device, dtype)
        saved = lora.settings_of(source) if lora.is_lora(source) else getattr(model.config, _KEY, None)
        if temperature is None:
            temperature = saved.get("temperature", 1.0) if isinstance(saved, dict) else 1.0
        return cls(model, lora.tokenizer_of(source, "policy"), temperature, **options)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def train(self, mode: bool = True) -> "CausalLMActor":
        """Always eval mode: with dropout on, the ratio of new to old probabilities would be noise."""
        return super().train(False)

    def evaluate(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        mask: Tensor,
        critics: LanguageCritics | None = None,
    ) -> Evaluation:
        """Teacher-forced log-probs, entropy and values; see `Actor.evaluate`.

        Only what some row needs is computed: the batch is trimmed to its longest prompt and its longest response, and
        logits and values to the positions inside the mask.

        Args:
            observations: `input_ids` and `attention_mask`, (B, P + T).
            actions: (B, T) int64.
            mask: (B, T) bool.
            critics: on this actor's trunk, or models of their own.

        Raises:
            ModelError: the logits or values are not finite.
        """
        actions, mask = actions.to(self.device), mask.to(self.device)
        ids, attention, where = self._trimmed(observations, actions, mask)
        if self._linear_head and not hasattr(self.model.get_output_embeddings().weight, "ds_id"):  # nor partitioned
            hidden = states_at(self.model, where, **model_inputs(self.model, ids, attention), use_cache=False)
            head = self.model.get_output_embeddings()
            log_probs, entropy = LinearStatistics.apply(
                hidden, head.weight, head.bias, actions[mask], self.temperature, self.vocab_size
            )
        else:
            scaled, hidden = self._logits(ids, attention, where)
            log_probs, entropy = statistics(scaled, actions[mask])
        columns = {"log_probs": log_probs, "entropy": entropy}
        if critics is not None:
            values = critics.values(hidden, ids, attention, where)
            columns |= {f"{kind}_values": x for kind, x in values.items()}
        if not all(bool(torch.isfinite(column).all()) for column in columns.values()):
            raise ModelError("the policy's logits or values are not finite; it has diverged or its weights are damaged")
        return Evaluation(**{name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in columns.items()})

    @torch.no_grad()
    def evaluate_in_chunks(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        mask: Tensor,
        critics: LanguageCritics | None = None,
    ) -> Evaluation:
        """`evaluate` without gradients, a few episodes of like length at a time."""
        size = rows_at_once(observations["input_ids"].shape[1], self.device)
        parts = observations["attention_mask"].sum(1).argsort(stable=True).split(size)
        found = [
            self.evaluate({name: x[part] for name, x in observations.items()}, actions[part], mask[part], critics)
            for part in parts
        ]
        back = torch.cat(parts).argsort()
        columns = {name: [x for part in found if (x := vars(part)[name]) is not None] for name in vars(found[0])}
        return Evaluation(**{name: torch.cat(xs)[back] for name, xs in columns.items() if xs})

    def distributions(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """(N, V) float32 logits, scaled by the temperature; see `Actor.distributions`."""
        return self._logits(*self._trimmed(observations, actions.to(self.device), mask.to(self.device)))[0]

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL of two categorical distributions given by logits (N, V); see `Actor.divergence`."""
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        return torch.linalg.vecdot(log_p.exp(), log_p - log_q)

    def player(self, env: gym.vector.VectorEnv, seed: int) -> Player:
        """See `Actor.player`.

        Raises:
            ModelError: the environment's observations are not tokens, or its vocabulary is not the actor's.
        """
        from textsafe_gym.models.acting import TokenPlayer

        return TokenPlayer(self, env, seed)

    def reference(self) -> "CausalLMReference":
        """The model as it was when this actor was made, whose tensors it shares where they are not trained."""
        return CausalLMReference(self, *self._initial)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those that take gradients: all, the LoRA's or the last layers'; see `Actor.trained_parameters`."""
        return [x for x in self.model.parameters() if x.requires_grad]

    def state_dict(self, *args: object, **kwargs: object) -> State:  # type: ignore[override]
        """The tensors that are trained, each once: safetensors refuses two names for one tensor."""
        return {name: x.detach() for name, x in self.named_parameters() if x.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, object], *args: object, **kwargs: object) -> object:
        """The inverse of `state_dict`.

        Raises:
            ModelError: the tensors are not this policy's.
        """
        wanted = set(self.state_dict())
        odd = sorted(wanted ^ set(state_dict))
        if odd:
            raise ModelError(f"the saved state is not of this policy: {len(odd)} names differ, first '{odd[0]}'")
        try:
            return super().load_state_dict(state_dict, strict=False)
        except RuntimeError as error:
            raise ModelError(f"the saved state is not of this policy: {' '.join(str(error).split())[:200]}") from error

    def save(self, directory: str | Path) -> None:
        """Writes the language model, or its LoRA alone, and the tokenizer; whole or not at all.

        A model is in Hugging Face's format, a LoRA in PEFT's.
        """
        settings = {"temperature": self.temperature}
        with new_directory(directory) as scratch, quiet():
            if self.lora:
                lora.save_lora(self.model, _LORA, scratch, "CAUSAL_LM", settings)
            else:
                setattr(self.model.config, _KEY, settings)
                self.model.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            write_card(scratch, "policy", base=self.model.name_or_path)

    def load_weights(self, source: str | Path) -> None:
        """Takes over the weights that another actor of this shape saved; the reference stays.

        Raises:
            ModelError: they are missing or damaged, or of another shape.
        """
        if self.lora:
            lora.load_saved(self.model, _LORA, source, "policy")
            return
        dtype = str(self.model.dtype).removeprefix("torch.")
        saved = lora.load_causal_lm(source, "policy", str(self.device), dtype)
        try:
            self.model.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ModelError(f"policy '{source}' does not fit: {one_line(error)}") from error

    def encode(
        self, prompts: Sequence[str], responses: Sequence[str], max_prompt_length: int, max_response_length: int
    ) -> EncodedTexts:
        """Given texts in the shapes of a rollout; see `TextActor.encode`.

        Raises:
            ModelError: a prompt has no tokens.
        """
        said, eos = encode(self.tokenizer, responses), self.tokenizer.eos_token_id
        asked = prompt_ids(self.tokenizer, prompts)
        cut = [len(x) > max_prompt_length or len(y) > max_response_length for x, y in zip(asked, said, strict=True)]
        encoded = encode_prompts(self.tokenizer, prompts, max_prompt_length)
        ids, prompt_mask = pad_to(encoded, max_prompt_length)
        actions, mask = pad([[*row, eos][:max_response_length] for row in said], eos, width=max_response_length)
        observations = {"input_ids": torch.cat([ids, actions], 1), "attention_mask": torch.cat([prompt_mask, mask], 1)}
        return EncodedTexts(observations, actions, mask.bool(), torch.tensor(cut, dtype=torch.bool))

    def _trimmed(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and attention mask without the columns that no row needs, and where actions are predicted in them."""
        ids, attention = (observations[name].to(self.device) for name in ("input_ids", "attention_mask"))
        prompt = ids.shape[1] - actions.shape[1]
        used = mask.shape[1] - int(mask.any(0).flip(0).int().argmax())  # the mask may have gaps
        skip = int(attention.any(0).int().argmax())
        # The last action is predicted from what stands before it, so its own column is not an input.
        ids, attention = ids[:, skip : prompt + used - 1], attention[:, skip : prompt + used - 1]
        where = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        where[:, prompt - skip - 1 :] = mask[:, :used]
        return ids, attention, where

    def _logits(self, ids: Tensor, attention: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the distribution that is sampled from, and the hidden states (N, H) behind them."""
        logits, hidden = logits_at(self.model, where, **model_inputs(self.model, ids, attention), use_cache=False)
        # Widened before the division, as in `draw`: the sampler's distribution in bfloat16 as well.
        return logits[:, : self.vocab_size].float() / self.temperature, hidden


class CausalLMReference:
    """Implements `textsafe_gym.protocols.Reference`: the starting model, evaluated by the same code as the actor.

    Args:
        actor: evaluates.
        model: the starting model; none: the actor's without its LoRA.
    """

    def __init__(self, actor: CausalLMActor, model: "PreTrainedModel | None" = None) -> None:
        self._actor, self._model = actor, model

    def log_probs(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """Under the starting weights or with the LoRA off; see `Reference.log_probs`."""
        actor, trained = self._actor, self._actor.model
        without: AbstractContextManager[None] = nullcontext()
        if self._model is None:
            without = lora.acting_as(trained, None)
        else:
            actor.model = self._model
        try:
            with without:
                return actor.evaluate_in_chunks(observations, actions, mask).log_probs
        finally:
            actor.model = trained

    def state_dict(self) -> State:
        """Empty: the starting model can be loaded again."""
        return {}

    def load_state_dict(self, state_dict: State) -> None:
        """The inverse of `state_dict`."""


def _frozen_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy that shares what is frozen in the original."""
    shared = {id(x): x for x in model.parameters() if not x.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def pad_to(padded: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Widens left-padded ids and mask (n, L) to (n, width); what is added stands outside the mask."""
    ids, mask = (nn.functional.pad(x, (width - x.shape[1], 0)) for x in padded)
    return ids, mask
