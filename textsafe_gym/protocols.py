"""What one room asks of another: an agent's roles, text environments, enumerable environments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import gymnasium as gym
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from textsafe_gym.types import EncodedTexts, Evaluation

Judge = Callable[[list[str], list[str]], Mapping[str, "np.ndarray"]]
Info = dict[str, Any]  # what Gymnasium's `reset` and `step` return last
State = dict[str, Any]  # what a checkpoint keeps of one part: tensors, numbers, texts, and lists and dicts of these


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer.

    Attributes:
        eos_token_id, pad_token_id, bos_token_id: ids of special tokens.
        eos_token, bos_token: their texts.
    """

    eos_token_id: int
    pad_token_id: int | None
    bos_token_id: int
    eos_token: str
    bos_token: str | None

    def __len__(self) -> int: ...

    def __call__(self, text: Any, *, add_special_tokens: bool, verbose: bool = True) -> Mapping[str, Any]:
        """Ids of a text, or of each of several, under "input_ids"."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """All tokens and their ids."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, object]:
        """The special tokens by their ids."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> Any:
        """The text of a single token."""
        ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        """Each conversation as a text."""
        ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool = ...) -> Any:
        """The text of a row of ids."""
        ...

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = ..., *, clean_up_tokenization_spaces: bool = ...
    ) -> list[str]:
        """The text of each row of ids."""
        ...

    def save_pretrained(self, save_directory: str | Path) -> object:
        """Writes it into a folder."""
        ...


class Critics(Protocol):
    """Value functions of the reward, the cost or both. Implementations are `torch.nn.Module`s.

    Attributes:
        kinds: "reward", "cost" or both; those that there are.
    """

    kinds: tuple[str, ...]

    def parameters(self) -> "Iterator[nn.Parameter]":
        """All weights, trained or not."""
        ...

    def parameter_groups(self) -> "dict[str, list[nn.Parameter]]":
        """Trainable parameters, disjoint, under "reward_critic" and "cost_critic"; of heads on the actor's trunk the
        heads alone, as the trunk is the actor's."""
        ...

    def state_dict(self) -> State:
        """All tensors of the critics by name, for a checkpoint."""
        ...

    def load_state_dict(self, state_dict: State) -> object:
        """The inverse of `state_dict`."""
        ...


class Reference(Protocol):
    """A frozen actor that the KL is measured to."""

    def log_probs(self, observations: "Mapping[str, Tensor]", actions: "Tensor", mask: "Tensor") -> "Tensor":
        """(B, T), without gradient, 0 outside the mask: log π_ref(a_t|s_t); arguments as in `Rollout`."""
        ...

    def state_dict(self) -> State:
        """Those of its tensors that cannot be made again from the starting model."""
        ...

    def load_state_dict(self, state_dict: State) -> object:
        """The inverse of `state_dict`."""
        ...


class Player(Protocol):
    """An actor in the midst of episodes, one in each of n sub-environments."""

    def act(self, observation: Any) -> "np.ndarray":
        """Actions (n, ...) for a batched observation, as the environment takes them; both are remembered."""
        ...

    def end(self, row: int, observation: Any) -> None:
        """Takes the observation that a row's episode ended with."""
        ...

    def episodes(self) -> "tuple[dict[str, Tensor], Tensor]":
        """What was seen and done, as `Rollout.observations` and `Rollout.actions`."""
        ...

    def final_values(self, critics: Any) -> "dict[str, Tensor]":
        """By kind, (n,): the values of the states that the episodes ended in."""
        ...


class Actor(Protocol):
    """A policy. Implementations are `torch.nn.Module`s; the algorithms use nothing beyond this."""

    def evaluate(
        self,
        observations: "Mapping[str, Tensor]",
        actions: "Tensor",
        mask: "Tensor",
        critics: Any = None,
    ) -> "Evaluation":
        """Log-probs and entropy of given actions, with gradients, and in the same pass the critics' values.

        Args:
            observations: as in `Rollout`.
            actions: as in `Rollout`.
            mask: as in `Rollout`.
            critics: `Critics` made for this actor; without them there are no values.
        """
        ...

    def distributions(self, observations: "Mapping[str, Tensor]", actions: "Tensor", mask: "Tensor") -> "Tensor":
        """(N, D), with gradients: the parameters of the action distribution at each of the N steps inside the mask,
        episode after episode."""
        ...

    def divergence(self, p: "Tensor", q: "Tensor") -> "Tensor":
        """(N,): KL(p‖q) in nats, step by step, of distributions as `distributions` gives them."""
        ...

    def player(self, env: "gym.vector.VectorEnv", seed: int) -> Player:
        """Begins to act in an environment, step by step; every draw follows from `seed`."""
        ...

    def reference(self) -> Reference:
        """This actor as it is now, frozen."""
        ...

    def parameters(self) -> "Iterator[nn.Parameter]":
        """All weights, trained or not."""
        ...

    def trained_parameters(self) -> "list[nn.Parameter]":
        """Those that training changes."""
        ...

    def state_dict(self) -> State:
        """All tensors that cannot be made again from the starting model, so that a resumed run is the same run."""
        ...

    def load_state_dict(self, state_dict: State) -> object:
        """The inverse of `state_dict`."""
        ...

    def load_weights(self, source: str | Path) -> None:
        """Takes over the weights that another actor of this shape saved; a reference made before stays as it is."""
        ...

    def save(self, directory: Path) -> None:
        """Writes the policy in its own public format (a language model: Hugging Face's)."""
        ...


@runtime_checkable
class TextActor(Actor, Protocol):
    """A policy over tokens, which puts given texts into its own form."""

    def encode(
        self, prompts: Sequence[str], responses: Sequence[str], max_prompt_length: int, max_response_length: int
    ) -> "EncodedTexts":
        """Prompts, each with a response, in the shapes of a rollout.

        A prompt that is too long keeps its last tokens, a response its first ones (then without EOS, as a response
        that uses up the budget has none).

        Args:
            prompts: n texts.
            responses: n texts.
            max_prompt_length: budget in tokens.
            max_response_length: budget in tokens.

        Raises:
            ModelError: a prompt has no tokens.
        """
        ...


class Rows(Protocol):
    """What an optimiser takes its minibatches from: a `Rollout`, or data that were there before the run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: "Tensor") -> Self:
        """The rows of an int64 index of shape (n,)."""
        ...

    @property
    def inputs(self) -> "tuple[Mapping[str, Tensor], Tensor, Tensor]":
        """What an actor evaluates: observations, actions, mask; of one row or several for each of these."""
        ...

    @property
    def lengths(self) -> "Tensor":
        """(N,) int64: steps in each row, by which rows of like length are put together."""
        ...


class OfflineData(Rows, Protocol):
    """Rows that are there before the run, for a method that samples nothing.

    Attributes:
        unit: what is counted of them as a method's budget, by its name in metrics, summaries and tables ("pairs").
        counted: the same in words ("labelled pairs").
        responses: those that an actor evaluates for each row.
    """

    unit: ClassVar[str]
    counted: ClassVar[str]
    responses: ClassVar[int]


@runtime_checkable
class TextTask(Protocol):
    """The base of a text environment, single or batched: its actions are the tokens of a response to a prompt."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The Hugging Face tokenizer of prompts and actions."""
        ...

    @property
    def max_prompt_length(self) -> int:
        """Columns of an observation that belong to the prompt; the response begins after them."""
        ...

    @property
    def max_response_length(self) -> int:
        """Columns of an observation that belong to the response."""
        ...


@runtime_checkable
class ResponseTask(TextTask, Protocol):
    """A text vector environment that takes whole responses at once; see `textsafe_gym.envs.vector`.

    Attributes:
        max_episode_steps: a limit that cuts episodes, under which there are no whole responses; None for no limit.
    """

    max_episode_steps: int | None

    def play(self, actions: "np.ndarray", lengths: "np.ndarray") -> Any:
        """What `step` would have paid for (num_envs, max_response_length) tokens of given lengths."""
        ...


@runtime_checkable
class PromptTask(TextTask, Protocol):
    """A text environment with its own models, prompts to judge a policy on, and demonstrations."""

    @property
    def cost_limit(self) -> float:
        """The limit on the mean episode cost."""
        ...

    @property
    def evaluation_prompts(self) -> Sequence[Any]:
        """The prompts to judge a policy on; each has `text` and `group`."""
        ...

    @property
    def gold_judge(self) -> Judge | None:
        """True scores by name, where they are known."""
        ...

    @property
    def demonstrations(self) -> Sequence[tuple[str, str]]:
        """Supervised pairs (prompt, response); empty if there are none."""
        ...

    @property
    def score_models(self) -> Mapping[str, str | Path]:
        """Where the "reward" and "cost" models lie, for critics to begin as."""
        ...

    @property
    def default_policy(self) -> "str | Path | tuple[PreTrainedModel, Tokenizer] | None":
        """A policy that fits the tokenizer, if there is one: its folder, or a model and its tokenizer."""
        ...


@runtime_checkable
class CostTask(Protocol):
    """An environment that knows the names of all costs that its `info["costs"]` may have."""

    @property
    def cost_names(self) -> Sequence[str]:
        """The names; empty if there is one cost without a name."""
        ...


@runtime_checkable
class PreferenceTask(Protocol):
    """An environment that simulates labelled pairs."""

    def preferences(self, count: int, seed: int) -> Sequence[Any]:
        """Pairs of responses with simulated labels, by reward or helpfulness; a `ConfigError` where there are none.

        Each has `prompt`, `better`, `worse` and `probability`; see `textsafe_gym.data.readers.Preference`.
        """
        ...


@runtime_checkable
class Enumerable(Protocol):
    """An environment whose every response can be listed, so that a policy is judged without sampling."""

    def enumerate(self) -> Sequence[object]:
        """A row for every response that an episode can end with."""
        ...

    def evaluate(self, model: Any) -> Any:
        """A policy's exact reward, cost and KL, as a named tuple."""
        ...
