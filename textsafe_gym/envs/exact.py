"""`SafeRLHF-Exact-v0`: a text CMDP so small that every response can be listed, and its constrained optimum computed.

Prompts are two words, responses up to `max_response_length` of them. Reward and cost are sums over the words of a
response and, for the reward, over neighbours; their tables differ by prompt and are correlated, more in some prompts
than in others, so that what helps also harms, in degrees that differ. The reference policy is a small transformer with
random weights, the one that a policy starts from.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium.envs.registration import EnvSpec
from scipy.special import expit

from textsafe_gym.data.readers import Preference
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.envs.optimum import Optimum, Responses, checked_kl_coefficient, solve, solve_each, solve_weighted
from textsafe_gym.envs.task import Task
from textsafe_gym.envs.text import SafeRLHFEnv
from textsafe_gym.envs.vector import SafeRLHFVectorEnv
from textsafe_gym.errors import ConfigError, DataError
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "SafeRLHF-Exact-v0"
MOST_RESPONSES = 200_000
_EOS = 0
_WORDS = [vowel + last for last in "bdln" for vowel in "aeiou"]


class Row(NamedTuple):
    """One response that an episode can end with.

    Attributes:
        prompt: its text.
        prompt_probability: of being drawn at a reset.
        response: its text, without the token that ends it.
        reference_log_prob: log-probability of the whole response, its end included, under the reference policy.
        reward, cost: what the episode pays.
    """

    prompt: str
    prompt_probability: float
    response: str
    reference_log_prob: float
    reward: float
    cost: float


class ExactValues(NamedTuple):
    """Expectations over prompts and a policy's responses.

    Attributes:
        reward, cost: of a response, without any KL.
        kl: to the reference, in nats a response.
        prompt_costs: the mean cost for each prompt, in the order of the environment's prompts.
    """

    reward: float
    cost: float
    kl: float
    prompt_costs: list[float]


@dataclass(frozen=True)
class ExactTask:
    """The CMDP's tables and its reference policy.

    Args:
        vocabulary: tokens, of which one ends a response; at least 3.
        max_response_length: tokens in a response, at least 1.
        prompts: how many, equally probable.
        seed: of the tables and of the reference policy's weights.

    Raises:
        ConfigError: a number is out of range, or there are more than `MOST_RESPONSES` responses.
    """

    vocabulary: int
    max_response_length: int
    prompts: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in {"vocabulary": 3, "max_response_length": 1, "prompts": 1, "seed": 0}.items():
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ConfigError(f"{name}: expected a whole number, at least {least}, got {value!r:.60}")
        for name, most in {"vocabulary": len(_WORDS) + 1, "prompts": (self.vocabulary - 1) ** 2}.items():
            if vars(self)[name] > most:
                raise ConfigError(f"{name} = {vars(self)[name]}: at most {most}")
        words = self.vocabulary - 1
        count = self.prompts * sum(words**length for length in range(self.max_response_length + 1))
        if count > MOST_RESPONSES:
            raise ConfigError(
                f"{count} responses are too many to list (at most {MOST_RESPONSES}); "
                "lower vocabulary, max_response_length or prompts"
            )

    @cached_property
    def prompt_texts(self) -> list[str]:
        """Pairs of words, drawn without repetition."""
        pairs = list(itertools.product(_WORDS[: self.vocabulary - 1], repeat=2))
        chosen = np.random.default_rng([self.seed, 0]).permutation(len(pairs))[: self.prompts]
        return [" ".join(pairs[i]) for i in chosen]

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By prompt: rewards of words (prompts, words), of neighbours (prompts, words, words), and costs of words."""
        rng = np.random.default_rng([self.seed, 1])
        words = self.vocabulary - 1
        helpful, other = rng.normal(size=(2, self.prompts, words))
        pairs = 0.5 * rng.normal(size=(self.prompts, words, words))
        helpful = _standardised(helpful)
        other = _standardised(other - (other * helpful).mean(1, keepdims=True) * helpful)
        # The correlation of a word's help with its harm.
        conflict = np.linspace(0.3, 0.9, self.prompts)[:, None]
        harmful = conflict * helpful + np.sqrt(1 - conflict**2) * other
        scale = self.max_response_length**-0.5
        return scale * helpful, scale * pairs, scale * harmful

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Word-level; the token that ends a response is also the one that pads."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = {"<eos>": _EOS} | {word: i + 1 for i, word in enumerate(_WORDS[: self.vocabulary - 1])}
        inner = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>", clean_up_tokenization_spaces=False
        )

    @cached_property
    def reference(self) -> "PreTrainedModel":
        """A transformer of two layers whose random weights make a policy of medium entropy."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=2 + self.max_response_length,
            bos_token_id=None,
            eos_token_id=_EOS,
            pad_token_id=_EOS,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(config).eval()
            torch.nn.init.normal_(model.get_input_embeddings().weight)
            torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5 * 64**-0.5)
        return model

    def scores(self, kind: str, prompt: int, words: np.ndarray) -> np.ndarray:
        """Rewards or costs (n,) of n responses of one length: `words` (n, length) from 0."""
        helpful, pairs, harmful = self.tables
        if kind == "cost":
            return harmful[prompt][words].sum(1)
        return helpful[prompt][words].sum(1) + pairs[prompt][words[:, :-1], words[:, 1:]].sum(1)

    def score_texts(self, kind: str, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Rewards or costs (n,) of texts.

        Raises:
            DataError: a prompt is none of this task's.
        """
        numbers = {text: i for i, text in enumerate(self.prompt_texts)}
        found = []
        for prompt, response in zip(prompts, responses, strict=True):
            if prompt not in numbers:
                raise DataError(f"{NAME} has no prompt {prompt!r:.60}; its prompts: {', '.join(self.prompt_texts)}")
            words = np.array([[_WORDS.index(word) for word in response.split()]], dtype=np.int64)
            found.append(self.scores(kind, numbers[prompt], words)[0])
        return np.array(found, dtype=np.float64)

    @cached_property
    def rows(self) -> list[Row]:
        """Every response of every prompt, shorter ones first."""
        return [
            Row(self.prompt_texts[prompt], 1 / self.prompts, *row)
            for prompt in range(self.prompts)
            for row in self._rows_of(prompt)
        ]

    @cached_property
    def responses(self) -> Responses:
        """The rows as arrays."""
        numbers = {text: i for i, text in enumerate(self.prompt_texts)}
        prompt = [numbers[row.prompt] for row in self.rows]
        scores = zip(*((row.reference_log_prob, row.reward, row.cost) for row in self.rows), strict=True)
        return Responses(np.array(prompt), np.full(self.prompts, 1 / self.prompts), *map(np.array, scores))

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `textsafe_gym.envs.task.Task` that make this task."""
        return {
            "prompts": self.prompt_texts,
            "tokenizer": self.tokenizer,
            "reward_model": partial(self.score_texts, "reward"),
            "cost_model": partial(self.score_texts, "cost"),
            "max_prompt_length": 2,
            "max_response_length": self.max_response_length,
        }

    def log_probs(self, model: "PreTrainedModel") -> np.ndarray:
        """(n,) log-probabilities of all responses, in the order of `rows`, under a causal LM of this vocabulary."""
        return np.concatenate([self._log_probs_of(prompt, model) for prompt in range(self.prompts)])

    def _rows_of(self, prompt: int) -> list[tuple[str, float, float, float]]:
        count = self.vocabulary - 1
        words = np.zeros((1, 0), dtype=np.int64)
        texts: list[str] = []
        scores: list[list[float]] = [[], []]
        for _ in range(self.max_response_length + 1):
            texts += [" ".join(_WORDS[word] for word in row) for row in words.tolist()]
            for kind, found in zip(("reward", "cost"), scores, strict=True):
                found += self.scores(kind, prompt, words).tolist()
            longer = np.tile(np.arange(count), len(words))[:, None]
            words = np.concatenate([words.repeat(count, 0), longer], 1)
        return list(zip(texts, self._log_probs_of(prompt, self.reference).tolist(), *scores, strict=True))

    def _log_probs_of(self, prompt: int, model: "PreTrainedModel") -> np.ndarray:
        """(responses,) for one prompt, shorter ones first."""
        so_far = np.zeros(1)
        found = []
        for next_token in self._next_token(prompt, model):
            found.append(so_far + next_token[:, _EOS])
            so_far = (so_far[:, None] + next_token[:, 1:]).reshape(-1)
        return np.concatenate([*found, so_far])

    def _next_token(self, prompt: int, model: "PreTrainedModel") -> list[np.ndarray]:
        """A model's log-probabilities after each beginning of t words, (words^t, vocabulary), for every t."""
        import torch

        length, count = self.max_response_length, self.vocabulary - 1
        beginnings = np.array(list(itertools.product(range(1, count + 1), repeat=length - 1)), dtype=np.int64)
        prompt_ids = self.tokenizer(self.prompt_texts[prompt], add_special_tokens=False)["input_ids"]
        ids = torch.as_tensor(np.concatenate([np.tile(prompt_ids, (len(beginnings), 1)), beginnings], 1))
        with torch.no_grad():
            logits = torch.cat([model(input_ids=part.to(model.device)).logits[:, 1:].cpu() for part in ids.split(4096)])
        log_probs = torch.log_softmax(logits.double(), -1).numpy()
        return [log_probs[:: count ** (length - 1 - t), t] for t in range(length)]


def _standardised(x: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and standard deviation 1."""
    centred = x - x.mean(1, keepdims=True)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-12)


class ExactView:
    """What an enumerable environment knows of itself; `self.exact_task` and `self.kl_coefficient` hold it."""

    exact_task: ExactTask
    kl_coefficient: float
    task: Task

    @property
    def default_policy(self) -> tuple["PreTrainedModel", Tokenizer]:
        """The reference policy and its tokenizer."""
        return self.exact_task.reference, self.exact_task.tokenizer

    def enumerate(self) -> list[Row]:
        """One row for every response that an episode can end with; see `Row`."""
        return self.exact_task.rows

    def solve(
        self, cost_limit: float | None = None, kl_coefficient: float | None = None, kl_in_cost: bool = False
    ) -> Optimum:
        """The exact constrained optimum, its policy over the rows of `enumerate`; see `textsafe_gym.envs.optimum`.

        Args:
            cost_limit: by default the environment's.
            kl_coefficient: by default the environment's; 0 for no KL penalty.
            kl_in_cost: whether the KL burdens the cost as well.

        Raises:
            ConfigError: a number is not finite, or kl_coefficient is negative.
        """
        limit = self.task.cost_limit if cost_limit is None else cost_limit
        return solve(
            self.exact_task.responses,
            limit,
            self._beta(kl_coefficient),
            kl_in_cost,
        )

    def solve_each(self, cost_limit: float | None = None, kl_coefficient: float | None = None) -> Optimum:
        """As `solve`, where every prompt has to keep the limit by itself.

        Args:
            cost_limit: on each prompt's mean cost; by default the environment's.
            kl_coefficient: by default the environment's.

        Raises:
            ConfigError: a number is not finite, or kl_coefficient is negative.
        """
        limit = self.task.cost_limit if cost_limit is None else cost_limit
        return solve_each(self.exact_task.responses, limit, self._beta(kl_coefficient))

    def solve_weighted(self, cost_weight: float, kl_coefficient: float | None = None) -> Optimum:
        """The optimum of E[R] - ν·E[C] - β·KL, without a limit; `objective` leaves the cost out.

        Args:
            cost_weight: ν, what a unit of cost weighs in units of reward.
            kl_coefficient: by default the environment's.

        Raises:
            ConfigError: a number is not finite or negative, or kl_coefficient is 0.
        """
        return solve_weighted(self.exact_task.responses, cost_weight, self._beta(kl_coefficient))

    def _beta(self, kl_coefficient: float | None) -> float:
        return self.kl_coefficient if kl_coefficient is None else kl_coefficient

    def preferences(self, count: int, seed: int) -> list[Preference]:
        """Pairs of different responses drawn from the reference, the one of more reward first.

        Each has its exact Bradley-Terry probability that this one is preferred, σ(R - R').

        Args:
            count: how many.
            seed: of the draws.
        """
        rows, responses, draws = self.enumerate(), self.exact_task.responses, np.random.default_rng([seed, 2])
        prompts = draws.integers(self.exact_task.prompts, size=count)
        first, second = picked = np.empty((2, count), dtype=np.int64)
        for prompt in range(self.exact_task.prompts):
            known = np.flatnonzero(responses.prompt == prompt)
            share = np.exp(responses.reference_log_prob[known])
            missing = np.flatnonzero(prompts == prompt)
            while len(missing):
                picked[:, missing] = draws.choice(known, size=(2, len(missing)), p=share / share.sum())
                missing = missing[first[missing] == second[missing]]
        swapped = responses.reward[first] < responses.reward[second]
        first, second = np.where(swapped, (second, first), (first, second))
        better = expit(responses.reward[first] - responses.reward[second])
        return [
            Preference(rows[i].prompt, rows[i].response, rows[j].response, float(p))
            for i, j, p in zip(first, second, better, strict=True)
        ]

    def evaluate(self, model: "PreTrainedModel") -> ExactValues:
        """What a causal LM that speaks this vocabulary earns, without sampling.

        Args:
            model: such as a trained policy's `model`, at temperature 1.
        """
        responses = self.exact_task.responses
        policy = np.exp(self.exact_task.log_probs(model))
        by_prompt = np.bincount(responses.prompt, policy * responses.cost, self.exact_task.prompts)
        return ExactValues(
            responses.mean(policy, responses.reward),
            responses.mean(policy, responses.cost),
            responses.divergence(policy),
            by_prompt.tolist(),
        )

    def frontier(self, kl_coefficient: float | None = None, n: int = 20) -> list[Optimum]:
        """`n` optima at equal steps of cost, from the one that no limit binds to nearly the smallest attainable cost.

        Args:
            kl_coefficient: by default the environment's.
            n: at least 2.

        Raises:
            ConfigError: kl_coefficient is negative or not finite, or n is below 2.
        """
        if n < 2:
            raise ConfigError(f"n = {n}: a frontier takes at least 2 points")
        free = self.solve(float(np.finfo(np.float32).max), kl_coefficient)
        lowest = free.smallest_cost + 0.01 * (free.cost - free.smallest_cost)
        return [self.solve(limit, kl_coefficient) for limit in np.linspace(free.cost, lowest, n)]


class ExactEnv(ExactView, SafeRLHFEnv):
    """A task so small that every response can be listed and the constrained optimum computed.

    Args:
        cost_limit: on the mean episode cost.
        kl_coefficient: β of the KL penalty that `solve` and `frontier` assume by default.
        vocabulary: tokens, of which one ends a response; 3 to 21.
        max_response_length: tokens in a response, at least 1.
        prompts: how many, equally probable.
        seed: of the rewards, the costs and the reference policy's weights.
        render_mode: as for `SafeRLHFEnv`.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        cost_limit: float = 0.0,
        kl_coefficient: float = 0.1,
        vocabulary: int = 7,
        max_response_length: int = 4,
        prompts: int = 4,
        seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.exact_task = ExactTask(vocabulary, max_response_length, prompts, seed)
        self.kl_coefficient = checked_kl_coefficient(kl_coefficient)
        super().__init__(render_mode, cost_limit=cost_limit, **self.exact_task.options())
        if type(self) is not ExactEnv:
            return
        entry_point, vector_entry_point = ENVIRONMENTS[NAME]
        sizes = {"vocabulary": vocabulary, "max_response_length": max_response_length, "prompts": prompts, "seed": seed}
        kwargs = {"cost_limit": cost_limit, "kl_coefficient": kl_coefficient, "render_mode": render_mode, **sizes}
        self.spec = EnvSpec(NAME, entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs)


class ExactVectorEnv(ExactView, SafeRLHFVectorEnv):
    """Many episodes of `ExactEnv`'s task at once, as a `SafeRLHFVectorEnv`.

    Args:
        num_envs: how many.
        cost_limit, kl_coefficient, vocabulary, max_response_length, prompts, seed: as for `ExactEnv`.
        **options: `autoreset_mode`, `max_episode_steps` and `render_mode` of `SafeRLHFVectorEnv`.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        cost_limit: float = 0.0,
        kl_coefficient: float = 0.1,
        vocabulary: int = 7,
        max_response_length: int = 4,
        prompts: int = 4,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.exact_task = ExactTask(vocabulary, max_response_length, prompts, seed)
        self.kl_coefficient = checked_kl_coefficient(kl_coefficient)
        super().__init__(num_envs, cost_limit=cost_limit, **self.exact_task.options(), **options)
