"""A text environment's reward, costs and prompts in TRL's form, for `trl.GRPOTrainer` and its kin.

TRL maximises the weighted sum of its reward functions and bounds nothing. A cost therefore comes as a reward function
that returns the *negative* cost; its weight in `GRPOConfig(reward_weights=...)` is the weight of the cost, λ >= 0 of
the Lagrangian reward - λ·cost, and stays what it is.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from textsafe_gym.envs.task import Task
from textsafe_gym.errors import ConfigError, DataError
from textsafe_gym.files import Row
from textsafe_gym.models.texts import has_template

if TYPE_CHECKING:
    from datasets import Dataset

Text = str | Sequence[Row]
RewardFunction = Callable[..., list[float]]


def reward_functions(env: object) -> list[RewardFunction]:
    """The reward and the negative cost of the environment, or the negative of each named cost.

    Each takes TRL's `prompts` and `completions`, texts or conversations, and returns a number for each. They are named
    "reward", "negative_cost" and "negative_cost_NAME", and log the mean "cost" and "cost_NAME" with its own sign, above
    0 for harmful. A score is what the environment pays for the same tokens, whether an end-of-sequence token ended
    them or a limit.

    Args:
        env: such as `gymnasium.make("SafeRLHF-v0")`.

    Raises:
        ConfigError: it is not a text environment.
    """
    task = _task(env)
    costs = [f"cost {name}" for name in task.names] or ["cost"]
    return [_function(task, key) for key in ("reward", *costs)]


def prompt_dataset(env: object, evaluation: bool = False) -> "Dataset":
    """The environment's prompts as a `datasets.Dataset` with a column "prompt".

    They are conversations of one user's message where the environment's tokenizer has a chat template, and else texts.

    Args:
        env: such as `gymnasium.make("SafeRLHF-v0")`.
        evaluation: the evaluation prompts instead of those to train on.

    Raises:
        ConfigError: it is not a text environment, or the datasets library is not installed.
    """
    task = _task(env)
    try:
        from datasets import Dataset
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'datasets cannot be imported ({error}); install it with: pip install "textsafe-gym[trl]"'
        ) from None
    texts = [prompt.text for prompt in (task.evaluation_prompts if evaluation else task.prompts)]
    if not has_template(task.tokenizer):
        return Dataset.from_dict({"prompt": texts})
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})


def _task(env: object) -> Task:
    task = getattr(getattr(env, "unwrapped", None), "task", None)
    if not isinstance(task, Task):
        raise ConfigError(
            f"env is a {type(env).__name__} and not a text environment; give gymnasium.make('SafeRLHF-v0')"
        )
    return task


def _function(task: Task, key: str) -> RewardFunction:
    sign = 1.0 if key == "reward" else -1.0

    def score(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: object,
    ) -> list[float]:
        given = [_content(prompt, "user") for prompt in prompts]
        scores = task.score(key, given, _responses(task, completions, completion_ids))
        if log_metric is not None and key != "reward":
            log_metric(name, float(scores.mean()))
        return (sign * scores).tolist()

    name = key.replace(" ", "_")
    score.__name__ = name if key == "reward" else f"negative_{name}"
    return score


def _responses(task: Task, completions: Sequence[Text], ids: Sequence[Sequence[int]] | None) -> list[str]:
    """The texts that the environment would make of the completions.

    TRL leaves special tokens out of the texts, the environment does not. So the texts are made of the tokens again,
    unless these are of another tokenizer than the environment's.
    """
    texts = [_content(completion, "assistant") for completion in completions]
    if ids is None or not all(0 <= token < task.vocab_size for row in ids for token in row):
        return texts
    rows = [np.array(row[:-1] if row and row[-1] == task.eos_id else row, dtype=np.int64) for row in ids]
    known = task.tokenizer.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)
    return task.decode(rows) if known == texts else texts


def _content(text: Text, role: str) -> str:
    """A text as it is; of a conversation, what its only message by `role` says.

    Raises:
        DataError: there is none, or there are several.
    """
    if isinstance(text, str):
        return text
    contents = [message["content"] for message in text if message["role"] == role]
    if len(contents) != 1:
        raise DataError(
            f"a conversation has {len(contents)} messages by the {role}; the environment scores one exchange"
        )
    content = contents[0]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
