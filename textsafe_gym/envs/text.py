"""Text generation as a constrained MDP, one response at a time."""

import operator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded

from textsafe_gym.data.prompts import Prompt
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.envs.task import check_options, make_task, prompt_info
from textsafe_gym.envs.view import TaskView
from textsafe_gym.errors import ConfigError
from textsafe_gym.protocols import Info

RENDER_MODES = ["ansi", "human"]


class SafeRLHFEnv(TaskView, gym.Env):
    """An episode is a response to a prompt, an action its next token.

    The observation holds the prompt, padded on the left to `max_prompt_length`, and to the right of it the response so
    far: `input_ids` int64 and `attention_mask` int8, both of shape (max_prompt_length + max_response_length,). The
    episode terminates at the end-of-sequence token or when the response's budget is used up. Only then is the response
    scored: the reward is the reward model's, `info["cost"]` the cost model's, and both are 0.0 before.

    Args:
        render_mode: "ansi" (`render` returns the texts), "human" (the episode is printed as it goes) or None.
        **options: the arguments of `textsafe_gym.envs.task.Task`.

    Raises:
        TextsafeError: an argument is wrong.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 30}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        self.task = make_task(options)
        self.render_mode = checked_render_mode(render_mode)
        self.observation_space = self.task.observation_space()
        self.action_space = self.task.action_space()
        # gym.make sets the same; without it an environment made directly could not be made again from its spec.
        # A subclass is not what that would make.
        if type(self) is SafeRLHFEnv:
            entry_point, vector_entry_point = ENVIRONMENTS["SafeRLHF-v0"]
            kwargs = {"render_mode": render_mode, **options}
            self.spec = EnvSpec("SafeRLHF-v0", entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs)
        self._ids = np.full(self.task.window, self.task.pad_id, dtype=np.int64)
        self._mask = np.zeros(self.task.window, dtype=np.int8)
        self._prompt = Prompt("")
        self._end = self.task.max_prompt_length  # where the next token goes
        self._running = False
        self._summary = ""
        self._printed = 0  # characters of the response that "human" has shown

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, np.ndarray], Info]:
        """Starts an episode.

        Args:
            seed: seeds the draw of this and later prompts.
            options: {"prompt": text} sets the prompt.

        Returns:
            The observation, and `info` with the prompt and a cost of 0.0.

        Raises:
            ConfigError: an unknown option.
            DataError: the prompt does not fit its budget.
        """
        super().reset(seed=seed)
        options = options or {}
        check_options(options, ["prompt"])
        task = self.task
        self._prompt, ids, mask = task.start(self.np_random, options.get("prompt"))
        self._end = task.max_prompt_length
        self._ids[: self._end], self._ids[self._end :] = ids, task.pad_id
        self._mask[: self._end], self._mask[self._end :] = mask, 0
        self._running, self._summary, self._printed = True, "", 0
        if self.render_mode == "human":
            print(f"prompt: {self._prompt.text}\nresponse: ", end="", flush=True)
        return self._observation(), {**prompt_info(self._prompt), **self._no_cost()}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, Info]:
        """Appends a token.

        Returns:
            Observation, reward, terminated, False, and `info` with "cost" and, if they are named, "costs"; at the end
            also with "prompt", "response", "response_length", "finish_reason" and the prompt's "group" if it has one.

        Raises:
            ResetNeeded: there is no running episode.
            InvalidAction: `action` is not a token id of the vocabulary.
            ScoreError: a model returned something other than a finite number.
        """
        task = self.task
        if not self._running:
            raise ResetNeeded("the episode is over or was never begun; call reset() before step()")
        try:
            token = operator.index(action)
        except TypeError:
            token = -1
        if not 0 <= token < task.vocab_size:
            raise InvalidAction(f"action {action!r:.60} is not a token id from 0 to {task.vocab_size - 1}")
        self._ids[self._end], self._mask[self._end] = token, 1
        self._end += 1
        terminated = token == task.eos_id or self._end == task.window
        reward, info = 0.0, self._no_cost()
        if terminated:
            self._running = False
            ending = task.end([self._prompt], [self._ids[task.max_prompt_length : self._end]])
            reward, info = float(ending.rewards[0]), ending.infos()[0]
            self._summary = summary_line(info["finish_reason"], reward, info["cost"])
        if self.render_mode == "human":
            self._print_new()
        return self._observation(), reward, terminated, False, info

    def render(self) -> str | None:
        """The prompt and the response so far as text ("ansi"), or printed ("human")."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; make the environment with render_mode='ansi'")
            return None
        text = episode_text(self._prompt, self._response(), self._summary)
        if self.render_mode == "ansi":
            return text
        print(text, flush=True)
        return None

    def _observation(self) -> dict[str, np.ndarray]:
        return {"input_ids": self._ids.copy(), "attention_mask": self._mask.copy()}

    def _no_cost(self) -> Info:
        names = self.task.names
        return {"cost": 0.0, "costs": dict.fromkeys(names, 0.0)} if names else {"cost": 0.0}

    def _response(self) -> str:
        tokens = self._ids[self.task.max_prompt_length : self._end]
        if tokens.size and tokens[-1] == self.task.eos_id:
            tokens = tokens[:-1]
        return self.task.decode([tokens])[0]

    def _print_new(self) -> None:
        response = self._response()
        print(response[self._printed :], end=f"\n{self._summary}\n" if self._summary else "", flush=True)
        self._printed = len(response)


def episode_text(prompt: Prompt, response: str, summary: str) -> str:
    """A rendered episode; `summary` is "" while it runs."""
    return f"prompt: {prompt.text}\nresponse: {response}\n{summary}".rstrip("\n")


def summary_line(finish_reason: str, reward: float, cost: float) -> str:
    """The last line of a rendered episode."""
    return f"[{finish_reason}] reward {reward:+.3f}, cost {cost:+.3f}"


def checked_render_mode(render_mode: str | None) -> str | None:
    """The mode itself.

    Raises:
        ConfigError: there is no such mode.
    """
    if render_mode not in (None, *RENDER_MODES):
        raise ConfigError(f"render_mode: expected one of {', '.join(RENDER_MODES)} or None, got {render_mode!r:.60}")
    return render_mode
