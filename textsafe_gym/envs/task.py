"""What the single and the vector environment share: texts and tokens, budgets, scores and spaces."""

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import SupportsIndex

import gymnasium as gym
import numpy as np

from textsafe_gym.data.prompts import Prompt, PromptSource, read_prompts
from textsafe_gym.data.readers import Preference
from textsafe_gym.envs.scorers import checked_scores, embedded_scorer, names_judge, resolve_scorer
from textsafe_gym.errors import ConfigError, DataError, ModelError
from textsafe_gym.models.files import check_source, one_line
from textsafe_gym.models.texts import end_with_turn, prompt_ids
from textsafe_gym.protocols import Info, Tokenizer
from textsafe_gym.registry import nearest

DEFAULT_BUDGET = 128  # tokens, for a tokenizer other than the embedded world's
DTYPES = ("float32", "float64", "bfloat16", "float16")

Judge = Callable[[list[str], list[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Ending:
    """How n responses ended.

    Attributes:
        prompts: n prompts.
        responses: n texts, without the token that ended them.
        lengths: (n,) int64, tokens in each response, the end-of-sequence token included.
        finish_reasons: n of "eos" and "length".
        rewards: (n,) float64.
        costs: (n,) float64, the sum of the named costs.
        named_costs: name to (n,) float64; empty if there is a single cost model.
    """

    prompts: Sequence[Prompt]
    responses: list[str]
    lengths: np.ndarray
    finish_reasons: list[str]
    rewards: np.ndarray
    costs: np.ndarray
    named_costs: dict[str, np.ndarray]

    def infos(self) -> list[Info]:
        """What a single environment's `info` holds at the end of each of the n episodes."""
        return [
            {
                **prompt_info(prompt),
                "response": self.responses[i],
                "response_length": int(self.lengths[i]),
                "finish_reason": self.finish_reasons[i],
                "cost": float(self.costs[i]),
                **({"costs": {name: float(x[i]) for name, x in self.named_costs.items()}} if self.named_costs else {}),
            }
            for i, prompt in enumerate(self.prompts)
        ]


def prompt_info(prompt: Prompt) -> dict[str, str]:
    """What `info` says of a prompt: "prompt" and, if it has one, "group"."""
    return {"prompt": prompt.text, "group": prompt.group} if prompt.group else {"prompt": prompt.text}


class Task:
    """One text-generation task; without arguments, the embedded world's.

    Args:
        prompts: a list of strings, a file, or what else `textsafe_gym.data.prompts.read_prompts` reads.
        tokenizer: a directory or hub id, or a loaded Hugging Face tokenizer. With a `chat_template` it puts each
            prompt as a user's message; without, prompts are tokenised as they are. A response ends at the tokenizer's
            end-of-sequence token, which for one loaded here is the token that ends a turn in its template.
        reward_model: a directory or hub id, a module, or a callable on (prompts, responses) that returns n scores,
            which "MODULE:NAME" names as well.
        cost_model: the same, above 0 for harmful; or a mapping from names to several.
        max_prompt_length, max_response_length: budgets in tokens, at least 1, the chat template's included.
        prompt_truncation: what becomes of a prompt over its budget: "error", or "left" to keep its text's last tokens.
        cost_limit: the limit on the mean episode cost, any finite number; by default the embedded world's where
            prompts and cost model are, else 0.
        device, dtype: of models that are loaded from a path, such as "cuda" and "bfloat16".
        evaluation_prompts: like `prompts`; without them the embedded world's held-out ones, or those of `prompts`
            if given.
        gold_judge: a callable on (prompts, responses) that returns true scores by name, if they are known.
        demonstrations: pairs (prompt, response), or a file with columns "prompt" and "response"; by default none,
            as the embedded world's are what its policy was made from, harmful answers included.

    Raises:
        ConfigError: a value is out of range.
        DataError: prompts or demonstrations cannot be read, or a prompt exceeds its budget.
        ModelError: a model or the tokenizer cannot be loaded or used.
    """

    def __init__(
        self,
        *,
        prompts: PromptSource | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        reward_model: object = None,
        cost_model: object = None,
        max_prompt_length: int | None = None,
        max_response_length: int | None = None,
        prompt_truncation: str = "error",
        cost_limit: float | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        evaluation_prompts: PromptSource | None = None,
        gold_judge: Judge | None = None,
        demonstrations: str | Path | Sequence[tuple[str, str]] | None = None,
    ) -> None:
        default_lengths = (DEFAULT_BUDGET, DEFAULT_BUDGET)
        self.default_policy: Path | None = None
        if tokenizer is None:
            default_lengths = (_embedded_world().MAX_PROMPT_LENGTH, _embedded_world().MAX_RESPONSE_LENGTH)
            self.default_policy = _embedded_world().ASSETS / "policy"
        self.max_prompt_length = _budget("max_prompt_length", max_prompt_length, default_lengths[0])
        self.max_response_length = _budget("max_response_length", max_response_length, default_lengths[1])
        if cost_limit is None:
            cost_limit = _embedded_world().COST_LIMIT if prompts is None and cost_model is None else 0.0
        self.cost_limit = _finite("cost_limit", cost_limit)
        if prompt_truncation not in ("error", "left"):
            raise ConfigError(f"prompt_truncation: expected 'error' or 'left', got {prompt_truncation!r:.60}")
        self._truncate = prompt_truncation == "left"
        device, dtype = str(device), str(dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r:.60}")

        self.tokenizer: Tokenizer = _embedded_tokenizer() if tokenizer is None else _load_tokenizer(tokenizer)
        self.vocab_size = len(self.tokenizer)
        self.eos_id: int = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad

        self.prompts = _embedded_world().prompts("train") if prompts is None else _read_prompts("prompts", prompts)
        if evaluation_prompts is not None:
            self.evaluation_prompts = _read_prompts("evaluation_prompts", evaluation_prompts)
        else:
            self.evaluation_prompts = _embedded_world().prompts("heldout") if prompts is None else self.prompts
        if gold_judge is None and prompts is None and evaluation_prompts is None:
            gold_judge = _embedded_world().judge  # which knows its own prompts alone
        self.gold_judge: Judge | None = gold_judge
        self._demonstrations = demonstrations
        self._simulated = prompts is None
        self.prompt_ids, self.prompt_mask = self.encode_prompts([prompt.text for prompt in self.prompts])

        models = {"reward": reward_model, "cost": cost_model}
        self.score_models: dict[str, str | Path] = {
            kind: _embedded_world().ASSETS / kind if model is None else model
            for kind, model in models.items()
            if model is None or (isinstance(model, str | Path) and not names_judge(model))
        }
        self.names: list[str] = []  # of several costs; empty if there is one without a name
        if isinstance(cost_model, Mapping):
            self.names = _cost_names(cost_model)
            models = {"reward": reward_model, **{f"cost {name}": cost_model[name] for name in self.names}}
        self._scorers = {
            key: embedded_scorer(key, device, dtype)
            if spec is None
            else resolve_scorer(spec, key.split()[0], self.tokenizer, device, dtype)
            for key, spec in models.items()
        }

    @property
    def window(self) -> int:
        """Tokens in an observation: both budgets."""
        return self.max_prompt_length + self.max_response_length

    def observation_space(self) -> gym.spaces.Dict:
        """`input_ids` int64 and `attention_mask` int8, both of shape (window,)."""
        ids = gym.spaces.Box(0, self.vocab_size - 1, (self.window,), np.int64)
        return gym.spaces.Dict(input_ids=ids, attention_mask=gym.spaces.Box(0, 1, (self.window,), np.int8))

    def action_space(self) -> gym.spaces.Discrete:
        """`Discrete(vocab_size)`: an action is a token id of the policy's tokenizer."""
        return gym.spaces.Discrete(self.vocab_size)

    def encode_prompts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts as the environment's observations begin, in the tokenizer's chat template if it has one.

        Args:
            texts: n prompts.

        Returns:
            Token ids int64 and mask int8, both of shape (n, max_prompt_length), padded on the left.

        Raises:
            DataError: a prompt has no tokens, or too many of them.
            ModelError: the chat template cannot be rendered, or leaves a prompt no room.
        """
        budget = self.max_prompt_length
        ids = np.full((len(texts), budget), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(texts), budget), dtype=np.int8)
        for i, tokens in enumerate(prompt_ids(self.tokenizer, texts)):
            if not tokens:
                raise DataError(f"prompt {i} {texts[i]!r:.80} has no tokens; remove it or check the tokenizer")
            if len(tokens) > budget:
                if not self._truncate:
                    raise DataError(
                        f"prompt {i} {texts[i]!r:.80} has {len(tokens)} tokens, over max_prompt_length={budget}; "
                        'raise that budget, shorten the prompt, or set prompt_truncation="left" to keep its end'
                    )
                tokens = prompt_ids(self.tokenizer, [texts[i]], budget)[0]
            ids[i, budget - len(tokens) :] = tokens
            mask[i, budget - len(tokens) :] = 1
        return ids, mask

    def start(self, rng: np.random.Generator, text: str | None) -> tuple[Prompt, np.ndarray, np.ndarray]:
        """A prompt to begin with, drawn by `rng` unless `text` sets it, and its row of `encode_prompts`.

        Raises:
            ConfigError: `text` is not text.
            DataError: `text` does not fit the budget.
        """
        if text is None:
            i = int(rng.integers(len(self.prompts)))
            return self.prompts[i], self.prompt_ids[i], self.prompt_mask[i]
        if not isinstance(text, str):
            raise ConfigError(f"options['prompt']: expected text, got {text!r:.60}")
        ids, mask = self.encode_prompts([text])
        return Prompt(text), ids[0], mask[0]

    def decode(self, rows: Sequence[np.ndarray]) -> list[str]:
        """Texts of token rows; a special token inside a response stays visible, as the policy did say it."""
        if not len(rows):
            return []
        return self.tokenizer.batch_decode(
            [row.tolist() for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def end(self, prompts: Sequence[Prompt], rows: Sequence[np.ndarray]) -> Ending:
        """Decodes and scores n finished responses, each scorer called once.

        Args:
            prompts: n prompts.
            rows: n arrays of response tokens, the end-of-sequence token included where there is one.

        Raises:
            ScoreError: a scorer returned something other than n finite numbers.
        """
        eos = [row[-1] == self.eos_id for row in rows]
        texts = [prompt.text for prompt in prompts]
        responses = self.decode([row[:-1] if ended else row for row, ended in zip(rows, eos, strict=True)])
        rewards = self.score("reward", texts, responses)
        named = {name: self.score(f"cost {name}", texts, responses) for name in self.names}
        costs = sum(named.values(), np.zeros(len(rows))) if named else self.score("cost", texts, responses)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        reasons = ["eos" if ended else "length" for ended in eos]
        return Ending(prompts, responses, lengths, reasons, rewards, costs, named)

    def score(self, key: str, prompts: list[str], responses: list[str]) -> np.ndarray:
        """What one scorer says of n responses, float64 of shape (n,).

        Args:
            key: "reward", or "cost", or "cost NAME" where costs are named.
            prompts: n texts.
            responses: n texts, without the token that ended them.

        Raises:
            ScoreError: the scorer returned something other than n finite numbers.
        """
        kind, _, name = key.partition(" ")
        return checked_scores(
            self._scorers[key], f"{kind} model '{name}'" if name else f"{kind} model", prompts, responses
        )

    @cached_property
    def demonstrations(self) -> list[tuple[str, str]]:
        """Supervised pairs (prompt, response); empty if there are none.

        Raises:
            DataError: the file or the list cannot be read.
        """
        given = self._demonstrations
        if given is None:
            return []
        if isinstance(given, str | Path):
            from textsafe_gym.data.readers import read_demonstrations

            return read_demonstrations(given)
        for i, pair in enumerate(given):
            if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise DataError(f"demonstration {i}: expected a pair (prompt, response) of texts, got {pair!r:.60}")
        return [(prompt, response) for prompt, response in given]

    def preferences(self, count: int, seed: int) -> list[Preference]:
        """Pairs of responses with simulated labels, by helpfulness.

        Args:
            count: how many.
            seed: of everything in them.

        Raises:
            ConfigError: only the embedded world has them, which can judge its own prompts alone.
        """
        if not self._simulated:
            raise ConfigError("this environment has prompts of its own, of which no preferences are simulated")
        from textsafe_gym.embedded_world.preferences import simulated_preferences

        return simulated_preferences(count, seed)


def make_task(options: Info) -> Task:
    """A task from an environment's keyword arguments.

    Raises:
        ConfigError: an unknown one; the message offers the nearest.
    """
    known = list(inspect.signature(Task).parameters)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown environment argument '{name}'; {nearest(name, known)}")
    return Task(**options)


def check_options(options: Mapping[str, object], known: list[str]) -> None:
    """Refuses options of `reset` that would have no effect.

    Raises:
        ConfigError: an unknown one; the message offers the nearest.
    """
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown reset option '{name}'; {nearest(str(name), known)}")


def _embedded_world() -> ModuleType:
    from textsafe_gym import embedded_world  # which reads its word lists when it is imported

    return embedded_world


def _embedded_tokenizer() -> Tokenizer:
    from transformers import PreTrainedTokenizerFast  # loads without torch, unlike AutoTokenizer

    return PreTrainedTokenizerFast.from_pretrained(_embedded_world().ASSETS / "tokenizer")


def _budget(name: str, value: SupportsIndex | None, default: int) -> int:
    if value is None:
        return default
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ConfigError(f"{name}: expected a whole number of tokens of at least 1, got {value!r:.60}")
    return number


def _finite(name: str, value: float) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name}: expected a finite number, got {value!r:.60}")
    return number


def _read_prompts(name: str, source: object) -> list[Prompt]:
    if not isinstance(source, str | Path | Sequence):
        raise ConfigError(f"{name}: expected a file or a list of prompts, got {source!r:.60}")
    return read_prompts(source)


def _cost_names(models: Mapping[str, object]) -> list[str]:
    if not models:
        raise ConfigError("cost_model: the mapping is empty; give at least one named cost model")
    for name, model in models.items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"cost_model: a name must be text, got {name!r:.60}")
        if model is None:
            raise ConfigError(f"cost_model: '{name}' has no model; give it a path, a module or a callable")
    return list(models)


def _load_tokenizer(spec: str | Path | Tokenizer) -> Tokenizer:
    if isinstance(spec, str | Path):
        from transformers import AutoTokenizer

        # A folder may hold a tokenizer alone; anything else must at least look like a hub id.
        name = str(spec) if Path(spec).is_dir() else check_source(spec, "tokenizer")
        try:
            spec = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its parsers raise
            raise ModelError(f"cannot load tokenizer '{name}': {one_line(error)}; give a tokenizer's folder") from error
        end_with_turn(spec)
    if not callable(spec) or not hasattr(spec, "eos_token_id"):
        raise ConfigError(f"tokenizer: expected a path, a hub id or a Hugging Face tokenizer, got {spec!r:.60}")
    if spec.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
    return spec
