"""A causal language model as a policy over tokens, with two critics and a frozen reference."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models import adapters
from textsafe_gym.models.cards import write_card
from textsafe_gym.models.encoding import encode_prompts, pad, rows_at_once, same_vocabulary
from textsafe_gym.models.files import new_directory, one_line, quiet
from textsafe_gym.models.layers import compile_layers, fuse_norms, recompute_activations, train_last
from textsafe_gym.models.likelihood import LinearStatistics, has_linear_head, statistics
from textsafe_gym.models.sampling import generate, logits_at, model_inputs, states_at
from textsafe_gym.models.score import Critic, ScoreModel
from textsafe_gym.models.texts import encode
from textsafe_gym.types import Demonstrations, Evaluation, Rollout, group_numbers

_KEY = "textsafe_policy"
_ADAPTER = "policy"


class CausalLMPolicy(nn.Module):
    """Implements `textsafe_gym.types.Policy` over token actions.

    Observations of a rollout are `input_ids` and `attention_mask`, each (B, P + T) int64: prompts left-padded to P,
    responses right-padded to T, so that action t stands in column P + t of every row.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer; ids beyond it (padded embeddings) are never sampled.
        temperature: of the softmax that actions are sampled from; log-probs and entropy are of the same distribution.
        critics: "heads": two heads on the policy's trunk, whose values begin at zero; "separate": two models that begin
            as copies of `reward_critic` and `cost_critic` (arXiv 2310.12773), which must have the policy's vocabulary.
        reward_critic, cost_critic: score models, or where they lie.
        lora_rank: trains a low-rank adapter of that rank and no weight of the model; the reference is the model without
            it, so that there is no second copy.
        lora_alpha: the adapter's weight is lora_alpha / lora_rank; by default twice the rank, a weight of 2.
        last_layers: trains that many of the last layers alone; the reference shares the others.
        gradient_checkpointing: recompute activations in the backward pass, for less memory and more time.
        compile: compile the layers with torch.compile for passes without a cache; the first takes some ten seconds.

    Raises:
        ModelError: an argument does not fit.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        temperature: float = 1.0,
        critics: str = "heads",
        reward_critic: ScoreModel | str | Path | None = None,
        cost_critic: ScoreModel | str | Path | None = None,
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
        embeddings = model.get_input_embeddings().weight
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
        self.reward_critic: nn.Module
        self.cost_critic: nn.Module
        if critics == "heads":
            if reward_critic is not None or cost_critic is not None:
                raise ModelError("critics='heads' takes no reward_critic or cost_critic; set critics='separate'")
            size = model.get_output_embeddings().weight.shape[1]
            self.reward_critic = _value_head(size, embeddings.device)
            self.cost_critic = _value_head(size, embeddings.device)
        elif critics == "separate":
            self.reward_critic = self._separate_critic(reward_critic, "reward")
            self.cost_critic = self._separate_critic(cost_critic, "cost")
        else:
            raise ModelError(f"critics='{critics}' is unknown; known: heads, separate")
        self.critics = critics
        for module in (self.reward_critic, self.cost_critic):
            module.requires_grad_(True)
        if lora_rank is not None and last_layers is not None:
            raise ModelError("lora_rank and last_layers exclude each other; set one of them")
        if lora_rank is not None:
            if not model.name_or_path:
                raise ModelError("lora_rank needs a policy that was loaded from a folder or the hub: it is saved apart")
            adapters.add_new(model, _ADAPTER, lora_rank, 2 * lora_rank if lora_alpha is None else lora_alpha)
            adapters.train(model, _ADAPTER)
        elif lora_alpha is not None:
            raise ModelError("lora_alpha means something with lora_rank only; set that too")
        elif last_layers is not None:
            train_last(model, last_layers)
        else:
            model.requires_grad_(True)
        self.lora = lora_rank is not None
        self.lockstep = False  # set by an engine that gathers layers for each pass: all processes make the same passes
        # In a tuple, so that the module does not count the reference's tensors among its own.
        self._reference: tuple[Any, ...] = () if self.lora else (_frozen_copy(model),)
        self._linear_head = has_linear_head(model)
        trunks = [x.trunk for x in (self.reward_critic, self.cost_critic) if isinstance(x, Critic)]
        for trained in (model, *trunks):
            if compile:
                compile_layers(trained)
            if gradient_checkpointing:
                recompute_activations(trained)
        self.eval()

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        temperature: float | None = None,
        **options: Any,
    ) -> "CausalLMPolicy":
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
            model = adapters.shared_base(source, "policy", device, dtype)
            if _ADAPTER in adapters.adapters_of(model):  # another policy's
                model = adapters.load_causal_lm(source, "policy", device, dtype)
        else:
            model = adapters.load_causal_lm(source, "policy", device, dtype)
        saved = adapters.settings_of(source) if adapters.is_adapter(source) else getattr(model.config, _KEY, None)
        if temperature is None:
            temperature = saved.get("temperature", 1.0) if isinstance(saved, dict) else 1.0
        return cls(model, adapters.tokenizer_of(source, "policy"), temperature, **options)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.get_input_embeddings().weight.device

    def train(self, mode: bool = True) -> "CausalLMPolicy":
        """Always eval mode: with dropout on, the ratio of new to old probabilities would be noise."""
        return super().train(False)

    @torch.no_grad()
    def rollout(
        self, env: gym.vector.VectorEnv, seed: int, group_size: int = 1, share: tuple[int, int] = (0, 1)
    ) -> Rollout:
        """Samples one whole response in each sub-environment; see `Policy.rollout`.

        Raises:
            ModelError: the environment is not a batched text environment, or its vocabulary is not the policy's.
            ConfigError: a wrapper changes its steps.
        """
        task: Any = env.unwrapped
        if not hasattr(task, "play"):
            raise ModelError(
                f"a language model needs a text vector environment that plays whole responses, which "
                f"{type(task).__name__} is not; make it with gymnasium.make_vec('SafeRLHF-v0', num_envs=...)"
            )
        layer: Any = env
        while layer is not task:
            if type(layer).step is not gym.vector.VectorWrapper.step:
                raise ConfigError(
                    f"a language model plays whole responses, past the steps that {type(layer).__name__} would change; "
                    "leave it out, and change what the environment pays by its reward_model and cost_model"
                )
            layer = layer.env
        if not same_vocabulary(self.tokenizer, task.tokenizer):
            raise ModelError(
                f"the policy's tokenizer {_name(self.tokenizer)} and the environment's {_name(task.tokenizer)} differ; "
                "give both the same one, for example tokenizer=<the policy's folder>"
            )
        groups = group_numbers(env.num_envs, group_size)
        together = share[1] * env.num_envs
        mine = slice(share[0] * env.num_envs, (share[0] + 1) * env.num_envs)
        starts, rows = (np.random.SeedSequence([seed, stream]).generate_state(together) for stream in (0, 1))
        env_seeds, row_seeds = starts[group_numbers(together, group_size).numpy()][mine].tolist(), rows[mine].tolist()
        observation, _ = env.reset(seed=env_seeds)
        width, budget = task.max_prompt_length, task.max_response_length
        prompt = {name: torch.as_tensor(np.asarray(observation[name])[:, :width]) for name in observation}
        # In lower precision the cache's rounding would show in the ratios, so that a pass as in training has to tell.
        exact = self.model.dtype == torch.float32
        said = generate(
            self.model,
            prompt["input_ids"],
            prompt["attention_mask"],
            budget,
            self.tokenizer.eos_token_id,
            row_seeds,
            self.temperature,
            self.vocab_size,
            keep_states=exact and self.critics == "heads",
            lockstep=self.lockstep,
        )
        tokens, lengths = said.tokens, said.lengths
        played = task.play(tokens.cpu().numpy(), lengths.cpu().numpy())
        observations = {
            "input_ids": torch.as_tensor(played.input_ids).long().to(self.device),
            "attention_mask": torch.as_tensor(played.attention_mask).long().to(self.device),
        }
        mask = torch.arange(budget, device=self.device) < lengths[:, None]
        if said.states is not None:
            log_probs, values = said.log_probs, self._head_values(said.states)
        else:
            old = self._evaluate_in_chunks(observations, tokens, mask)
            log_probs, values = old.log_probs, (old.reward_values, old.cost_values)
        with self._acting_as_reference():
            reference = self._evaluate_in_chunks(observations, tokens, mask, values=False)
        last = mask & (torch.arange(budget, device=self.device) == lengths[:, None] - 1)

        def paid(scores: np.ndarray) -> Tensor:
            return torch.as_tensor(scores, dtype=torch.float32, device=self.device)[:, None] * last

        # A response ends by EOS or by its budget, and both end the MDP: no state comes after, so its value is 0.
        final = torch.zeros(len(tokens), device=self.device)
        return Rollout(
            observations=observations,
            actions=tokens,
            mask=mask,
            log_probs=log_probs,
            reference_log_probs=reference.log_probs,
            reward_values=values[0].masked_fill(~mask, 0.0),
            cost_values=values[1].masked_fill(~mask, 0.0),
            rewards=paid(played.rewards),
            costs=paid(played.costs),
            named_costs={name: paid(costs) for name, costs in played.named_costs.items()},
            groups=groups.to(self.device),
            final_reward_values=final,
            final_cost_values=final.clone(),
            infos=played.infos,
        )

    def evaluate(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, values: bool = True
    ) -> Evaluation:
        """Teacher-forced log-probs, entropy and values; see `Policy.evaluate`.

        Only what some row needs is computed: the batch is trimmed to its longest prompt and its longest response, and
        logits and values to the positions inside the mask.

        Args:
            observations: `input_ids` and `attention_mask`, (B, P + T).
            actions: (B, T) int64.
            mask: (B, T) bool.
            values: whether to compute values; else they are 0.

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
        columns = [log_probs, entropy]
        if not values:
            columns += [torch.zeros_like(entropy)] * 2
        elif self.critics == "heads":
            columns += self._head_values(hidden)
        else:
            for critic in (self.reward_critic, self.cost_critic):
                columns.append(critic(where, **model_inputs(critic.trunk, ids, attention)))
        if not all(bool(torch.isfinite(column).all()) for column in columns):
            raise ModelError("the policy's logits or values are not finite; it has diverged or its weights are damaged")
        spread = [column.new_zeros(mask.shape).masked_scatter(mask, column) for column in columns]
        return Evaluation(*spread)

    def distributions(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """(N, V) float32 logits, scaled by the temperature; see `Policy.distributions`."""
        return self._logits(*self._trimmed(observations, actions.to(self.device), mask.to(self.device)))[0]

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL of two categorical distributions given by logits (N, V); see `Policy.divergence`."""
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        return torch.linalg.vecdot(log_p.exp(), log_p - log_q)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `Policy.parameter_groups`."""
        modules = {"actor": self.model, "reward_critic": self.reward_critic, "cost_critic": self.cost_critic}
        return {name: [x for x in module.parameters() if x.requires_grad] for name, module in modules.items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The tensors that are trained, each once: safetensors refuses two names for one tensor."""
        return {name: x.detach() for name, x in self.named_parameters() if x.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
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
        """Writes the language model, or its adapter alone, and the tokenizer; whole or not at all.

        A model is in Hugging Face's format, an adapter in PEFT's.
        """
        settings = {"temperature": self.temperature}
        with new_directory(directory) as scratch, quiet():
            if self.lora:
                adapters.save_adapter(self.model, _ADAPTER, scratch, "CAUSAL_LM", settings)
            else:
                setattr(self.model.config, _KEY, settings)
                self.model.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            write_card(scratch, "policy", base=self.model.name_or_path)

    def load_weights(self, source: str | Path) -> None:
        """Takes over the weights that another policy of this shape saved; the reference and the critics stay.

        Raises:
            ModelError: they are missing or damaged, or of another shape.
        """
        if self.lora:
            adapters.load_saved(self.model, _ADAPTER, source, "policy")
            return
        dtype = str(self.model.dtype).removeprefix("torch.")
        saved = adapters.load_causal_lm(source, "policy", str(self.device), dtype)
        try:
            self.model.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ModelError(f"policy '{source}' does not fit: {one_line(error)}") from error

    def demonstrations(
        self, rows: Sequence[tuple[str, str]], max_prompt_length: int, max_response_length: int
    ) -> Demonstrations:
        """Supervised texts in the shapes of a rollout.

        A prompt that is too long keeps its last tokens, a response its first ones (then without EOS, as a response
        that uses up the budget has none).

        Args:
            rows: pairs (prompt, response).
            max_prompt_length: budget in tokens.
            max_response_length: budget in tokens.

        Raises:
            ModelError: a prompt has no tokens.
        """
        prompts, prompt_mask = pad_to(
            encode_prompts(self.tokenizer, [row[0] for row in rows], max_prompt_length), max_prompt_length
        )
        eos = self.tokenizer.eos_token_id
        responses = [[*row, eos][:max_response_length] for row in encode(self.tokenizer, [row[1] for row in rows])]
        actions, mask = pad(responses, eos, width=max_response_length)
        observations = {
            "input_ids": torch.cat([prompts, actions], 1),
            "attention_mask": torch.cat([prompt_mask, mask], 1),
        }
        return Demonstrations(observations, actions, mask.bool())

    def _trimmed(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and attention mask without the columns that no row needs, and where actions are predicted in them."""
        ids, attention = (observations[name].to(self.device) for name in ("input_ids", "attention_mask"))
        prompt = ids.shape[1] - actions.shape[1]
        used = mask.shape[1] - int(mask.any(0).flip(0).int().argmax())  # the mask may have gaps
        skip = int(attention.any(0).int().argmax())
        # The last action is predicted from what stands before it, so its own column is no input.
        ids, attention = ids[:, skip : prompt + used - 1], attention[:, skip : prompt + used - 1]
        where = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        where[:, prompt - skip - 1 :] = mask[:, :used]
        return ids, attention, where

    def _logits(self, ids: Tensor, attention: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the distribution that is sampled from, and the hidden states (N, H) behind them."""
        logits, hidden = logits_at(self.model, where, **model_inputs(self.model, ids, attention), use_cache=False)
        # Widened before the division, as in `draw`: the sampler's distribution in bfloat16 as well.
        return logits[:, : self.vocab_size].float() / self.temperature, hidden

    def _head_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Values (...) float32 of both heads for states (..., H)."""
        hidden = hidden.to(next(self.reward_critic.parameters()).dtype)  # float32, unless an engine stores them in less
        return self.reward_critic(hidden).squeeze(-1).float(), self.cost_critic(hidden).squeeze(-1).float()

    def _separate_critic(self, source: ScoreModel | str | Path | None, kind: str) -> Critic:
        if source is None:
            raise ModelError(
                f"critics='separate' needs {kind}_critic: a score model or its folder to start from; "
                "the environment has no folder of one"
            )
        if not isinstance(source, ScoreModel):
            dtype = str(self.model.dtype).removeprefix("torch.")
            source = ScoreModel.load(source, kind, str(self.device), dtype)
        if source.kind != kind:
            raise ModelError(f"{kind}_critic is a {source.kind} model; are the two swapped?")
        if not same_vocabulary(self.tokenizer, source.tokenizer):
            raise ModelError(
                f"the policy's tokenizer {_name(self.tokenizer)} and {kind}_critic's {_name(source.tokenizer)} differ, "
                "but a separate critic reads the policy's tokens; use critics='heads' or a model with that vocabulary"
            )
        return Critic(source).to(self.device)

    @contextmanager
    def _acting_as_reference(self) -> Iterator[None]:
        """Swaps the reference in, so that exactly the same code evaluates it."""
        if self.lora:
            with adapters.acting_as(self.model, None):
                yield
            return
        model = self.model
        self.model = self._reference[0]
        try:
            yield
        finally:
            self.model = model

    @torch.no_grad()
    def _evaluate_in_chunks(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, values: bool = True
    ) -> Evaluation:
        """`evaluate`, a few episodes of like length at a time."""
        size = rows_at_once(observations["input_ids"].shape[1], self.device)
        parts = observations["attention_mask"].sum(1).argsort(stable=True).split(size)
        found = [
            self.evaluate({name: x[part] for name, x in observations.items()}, actions[part], mask[part], values)
            for part in parts
        ]
        back = torch.cat(parts).argsort()
        names = ("log_probs", "entropy", "reward_values", "cost_values")
        return Evaluation(*(torch.cat([getattr(part, name) for part in found])[back] for name in names))


def _frozen_copy(model: Any) -> Any:
    """A copy that shares what is frozen in the original."""
    shared = {id(x): x for x in model.parameters() if not x.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _value_head(size: int, device: torch.device) -> nn.Sequential:
    """Two layers, as the trunk's last state is made for the next token and shows little else to a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden, value = nn.Linear(size, 2 * size), nn.Linear(2 * size, 1)
    nn.init.zeros_(value.weight)
    nn.init.zeros_(value.bias)
    return nn.Sequential(hidden, nn.Tanh(), value).to(device)


def pad_to(padded: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Widens left-padded ids and mask (n, L) to (n, width); what is added stands outside the mask."""
    ids, mask = (nn.functional.pad(x, (width - x.shape[1], 0)) for x in padded)
    return ids, mask


def _name(tokenizer: Any) -> str:
    where = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return f"'{where}' ({len(tokenizer.get_vocab())} tokens)"
