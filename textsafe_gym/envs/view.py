"""The public attributes that the single and the vector environment have in common."""

from pathlib import Path
from typing import TYPE_CHECKING

from textsafe_gym.data.prompts import Prompt
from textsafe_gym.data.readers import Preference
from textsafe_gym.envs.task import Judge, Task
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TaskView:
    """Gives an environment the public attributes of its task."""

    task: Task

    @property
    def tokenizer(self) -> Tokenizer:
        """The Hugging Face tokenizer of prompts and actions."""
        return self.task.tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of actions."""
        return self.task.vocab_size

    @property
    def max_prompt_length(self) -> int:
        """The budget for prompts, in tokens."""
        return self.task.max_prompt_length

    @property
    def max_response_length(self) -> int:
        """The budget for responses, in tokens."""
        return self.task.max_response_length

    @property
    def cost_limit(self) -> float:
        """The limit on the mean episode cost."""
        return self.task.cost_limit

    @property
    def cost_names(self) -> list[str]:
        """The names of the costs; empty if there is one without a name."""
        return self.task.names

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that `reset` draws from."""
        return self.task.prompts

    @property
    def evaluation_prompts(self) -> list[Prompt]:
        """The prompts to judge a policy on."""
        return self.task.evaluation_prompts

    @property
    def gold_judge(self) -> Judge | None:
        """True scores by name, where they are known."""
        return self.task.gold_judge

    @property
    def demonstrations(self) -> list[tuple[str, str]]:
        """Supervised pairs (prompt, response); empty if there are none."""
        return self.task.demonstrations

    def preferences(self, count: int, seed: int) -> list[Preference]:
        """Pairs of responses with simulated labels; see `Task.preferences`."""
        return self.task.preferences(count, seed)

    @property
    def score_models(self) -> dict[str, str | Path]:
        """Where the "reward" and "cost" models lie, for critics to begin as; models given as objects are left out."""
        return self.task.score_models

    @property
    def default_policy(self) -> "Path | tuple[PreTrainedModel, Tokenizer] | None":
        """A policy that fits the tokenizer, if there is one: its folder, or a model and its tokenizer."""
        return self.task.default_policy
