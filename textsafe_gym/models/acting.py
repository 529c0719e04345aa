"""A language model that acts one token at a time on batched observations, with a cache that lives across steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from textsafe_gym.errors import ModelError
from textsafe_gym.models import reads_tokens, task_of
from textsafe_gym.models.critics import LanguageCritics
from textsafe_gym.models.encoding import same_vocabulary, vocabularies_differ
from textsafe_gym.models.sampling import draw, last, model_inputs, packing, states_at
from textsafe_gym.protocols import TextTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textsafe_gym.models.causal_lm import CausalLMActor


class _RowLayer(DynamicLayer):
    """One layer's cache with a column for each of an observation's; every row writes where its own response ends."""

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    def fill(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Sets the first columns of some rows to states (n, heads, columns, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            size = (self.rows, keys.shape[1], self.width)
            self.keys, self.values = keys.new_zeros(*size, keys.shape[-1]), values.new_zeros(*size, values.shape[-1])
        self.keys[rows, :, : keys.shape[2]], self.values[rows, :, : values.shape[2]] = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, 1, head_dim) states into each row's column of `at`, and returns all up to the last one."""
        every = torch.arange(self.rows, device=key_states.device)
        self.keys[every, :, self.at], self.values[every, :, self.at] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]

    def place(self, at: Tensor, end: int) -> None:
        """Where the next `update` writes, (B,) int64, and the last column of them plus 1."""
        self.at, self.end = at, end


class TokenSampler:
    """Samples the next token of every row of a text vector environment.

    Rows may be anywhere in their responses and may begin anew at any step, as autoreset has it; only what is new in an
    observation goes through the model.

    Args:
        actor: a `CausalLMActor`; its temperature is used.
        max_prompt_length: the environment's, where responses begin in an observation.
        seed: all draws follow from it.
    """

    def __init__(self, actor: "CausalLMActor", max_prompt_length: int, seed: int = 0) -> None:
        self.actor = actor
        self.prompt = max_prompt_length
        self.generator = np.random.default_rng(seed)
        self.ids = np.zeros((0, 0), dtype=np.int64)
        self.mask = np.zeros((0, 0), dtype=np.int8)

    @torch.inference_mode()
    def __call__(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Acts on `input_ids` (B, W) and `attention_mask` (B, W).

        Returns:
            actions: (B,) int64.
            log_probs: (B,) float32, of the actions.

        Raises:
            ModelError: the logits are not finite.
        """
        ids, mask = observation["input_ids"], observation["attention_mask"]
        lengths = mask[:, self.prompt :].sum(1, dtype=np.int64)
        model = self.actor.model
        if ids.shape != self.ids.shape:
            self.layers = [_RowLayer(*ids.shape) for _ in range(model.config.num_hidden_layers)]
            self.cache = DynamicCache()
            self.cache.layers = list(self.layers)
            goes_on = np.zeros(len(ids), dtype=bool)
        else:
            goes_on = (self.mask[:, self.prompt :].sum(1) + 1 == lengths) & ((ids == self.ids) | (self.mask == 0)).all(
                1
            )
        device = self.actor.device
        states = torch.as_tensor(ids, device=device), torch.as_tensor(mask, dtype=torch.int64, device=device)
        logits = torch.empty(len(ids), model.config.vocab_size, device=device, dtype=model.dtype)
        if goes_on.any():
            logits[:] = self._step(*states, torch.as_tensor(lengths, device=device))
        for length in np.unique(lengths[~goes_on]):
            rows = torch.as_tensor(np.flatnonzero(~goes_on & (lengths == length)), device=device)
            logits[rows] = self._read(*states, rows, self.prompt + int(length))
        self.ids, self.mask = ids.copy(), mask.copy()
        chance = torch.as_tensor(self.generator.random(len(ids)), device=device)
        actions, log_probs = draw(logits[:, : self.actor.vocab_size], chance, self.actor.temperature)
        return actions.cpu().numpy(), log_probs.cpu().numpy()

    def _read(self, ids: Tensor, mask: Tensor, rows: Tensor, end: int) -> Tensor:
        """Logits (n, V) of rows whose first `end` columns are read anew."""
        model = self.actor.model
        past: Any = DynamicCache()
        inputs = model_inputs(model, ids[rows, :end], mask[rows, :end])
        with packing(model, last):
            logits = model(**inputs, past_key_values=past, use_cache=True).logits
        for layer, read in zip(self.layers, past.layers, strict=True):
            layer.fill(rows, read.keys, read.values)
        return logits

    def _step(self, ids: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, V) after the last token of each row; what rows that do not go on write here is overwritten."""
        model = self.actor.model
        at = self.prompt - 1 + lengths
        end = int(at.max()) + 1
        for layer in self.layers:
            layer.place(at, end)
        return model(
            input_ids=ids.gather(1, at[:, None]),
            position_ids=(mask[:, :end].sum(1, keepdim=True) - 1).clamp_min(0),
            attention_mask=_visible(model, mask[:, :end]),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]


class TokenPlayer:
    """Implements `textsafe_gym.protocols.Player` for text environments that are stepped token by token.

    Args:
        actor: a `CausalLMActor`.
        env: a vector environment with token observations.
        seed: of all draws.

    Raises:
        ModelError: the environment's observations are not tokens, or its vocabulary is not the actor's.
    """

    def __init__(self, actor: "CausalLMActor", env: gym.vector.VectorEnv, seed: int) -> None:
        if not reads_tokens(env):
            raise ModelError(
                f"a language model needs a text environment, whose observations have input_ids and attention_mask; "
                f"{type(env.unwrapped).__name__} has {env.single_observation_space}"
            )
        task = task_of(env)
        if isinstance(task, TextTask) and not same_vocabulary(actor.tokenizer, task.tokenizer):
            raise ModelError(vocabularies_differ(actor.tokenizer, task.tokenizer))
        self._actor, self._seed = actor, seed
        self._prompt = task.max_prompt_length if isinstance(task, TextTask) else 0
        self._sampler: TokenSampler | None = None
        self._done: list[np.ndarray] = []
        self._last = {name: np.zeros(()) for name in ("input_ids", "attention_mask")}

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Samples a token for each row with a cache; see `Player.act`."""
        if self._sampler is None:
            # Prompts are padded on the left, so that a response begins after the last column that is attended to.
            prompt = self._prompt or int(np.flatnonzero(observation["attention_mask"].any(0))[-1]) + 1
            self._sampler = TokenSampler(self._actor, prompt, self._seed)
            self._last = {name: np.array(observation[name]) for name in self._last}
        actions, _ = self._sampler(observation)
        self._done.append(actions)
        return actions

    def end(self, row: int, observation: Mapping[str, np.ndarray]) -> None:
        """Keeps the row's last window, whose value an episode that was cut needs; see `Player.end`.

        Raises:
            ModelError: the window holds other tokens behind the prompt than the actor's own.
        """
        assert self._sampler is not None
        chosen = np.stack(self._done, 1)[row]
        ids, seen = (np.asarray(observation[name])[self._sampler.prompt :] for name in ("input_ids", "attention_mask"))
        own = seen[: len(chosen)].astype(bool)
        if seen[len(chosen) :].any() or (ids[: len(chosen)] != chosen)[own].any():
            raise ModelError(
                "the environment's observation holds tokens that the policy did not choose; a language model that is "
                "stepped token by token cannot tell them from its own"
            )
        for name, ends in self._last.items():
            ends[row] = observation[name]

    def episodes(self) -> tuple[dict[str, Tensor], Tensor]:
        """See `Player.episodes`: `input_ids` and `attention_mask`, (n, P + T), and actions (n, T)."""
        assert self._sampler is not None
        columns = self._sampler.prompt + len(self._done)
        device = self._actor.device
        seen = {name: torch.as_tensor(x[:, :columns]).long().to(device) for name, x in self._last.items()}
        return seen, torch.as_tensor(np.stack(self._done, 1)).to(device)

    @torch.no_grad()
    def final_values(self, critics: LanguageCritics) -> dict[str, Tensor]:
        """The critics' values after each row's last token; see `Player.final_values`."""
        ids, attention = (torch.as_tensor(x).long().to(self._actor.device) for x in self._last.values())
        end = ids.shape[1] - 1 - attention.flip(1).argmax(1)
        where = torch.arange(ids.shape[1], device=ids.device) == end[:, None]
        model = self._actor.model
        hidden = states_at(model, where, **model_inputs(model, ids, attention), use_cache=False)
        return critics.values(hidden, ids, attention, where)


def _visible(model: "PreTrainedModel", mask: Tensor) -> Tensor | dict[str, Tensor]:
    """What the last token of each row may attend to, (B, 1, 1, L), in the form that the model's attention wants."""
    config = model.config
    full = mask.bool()
    window = getattr(config, "sliding_window", None)
    kinds = set(
        getattr(config, "layer_types", None) or (["full_attention"] if window is None else ["sliding_attention"])
    )
    masks = {"full_attention": full}
    if window is not None and "sliding_attention" in kinds:
        place = mask.cumsum(1)
        masks["sliding_attention"] = full & (place > place[:, -1:] - window)
    for kind, seen in masks.items():
        shaped = seen[:, None, None, :]
        if config._attn_implementation != "sdpa":
            lowest = torch.finfo(model.dtype).min
            shaped = torch.zeros(shaped.shape, dtype=model.dtype, device=mask.device).masked_fill(~shaped, lowest)
        masks[kind] = shaped
    return masks if len(kinds) > 1 else masks[kinds.pop()]
