"""The same MDP for many responses at once: one set of arrays, and one call of each scorer for all that finish."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from textsafe_gym.data.prompts import Prompt
from textsafe_gym.envs.task import Ending, check_options, make_task
from textsafe_gym.envs.text import RENDER_MODES, checked_render_mode, episode_text, summary_line
from textsafe_gym.envs.view import TaskView
from textsafe_gym.errors import ConfigError
from textsafe_gym.protocols import Info

Observation = dict[str, np.ndarray]
Infos = Info


@dataclass(frozen=True)
class Played:
    """n complete episodes, as `play` returns them.

    Attributes:
        input_ids: (n, max_prompt_length + max_response_length) int64, as the last observations hold them.
        attention_mask: int8 of the same shape.
        rewards, costs: (n,) float64, paid at the last token.
        named_costs: from name to (n,) float64, where there are several; `costs` is their sum.
        infos: n dicts, as `SafeRLHFEnv.step` gives them at the end.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    named_costs: dict[str, np.ndarray]
    infos: list[Info]


class SafeRLHFVectorEnv(TaskView, gym.vector.VectorEnv[Observation, np.ndarray, np.ndarray]):
    """`num_envs` copies of `SafeRLHFEnv` that step together; row i behaves like a single environment.

    `info["cost"]` is a float64 array (num_envs,) at every step and, like the rewards, belongs to the step just made in
    every autoreset mode. (Under SAME_STEP a `SyncVectorEnv` leaves the final cost in `info["final_info"]` alone; here
    it is in both places.) All else in `info` has the form that Gymnasium's own vector environments give it.

    Args:
        num_envs: how many.
        autoreset_mode: one of Gymnasium's three, or its value ("NextStep", "SameStep", "Disabled").
        max_episode_steps: truncates episodes after that many steps, as `gymnasium.wrappers.TimeLimit` does.
        render_mode: "ansi" (`render` returns a text a row), "human" (finished responses are printed) or None.
        **options: the arguments of `textsafe_gym.envs.task.Task`.

    Raises:
        TextsafeError: an argument is wrong.
    """

    metadata: Info = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": RENDER_MODES,
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.num_envs = n = _count("num_envs", num_envs)
        self.max_episode_steps = None if max_episode_steps is None else _count("max_episode_steps", max_episode_steps)
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            names = ", ".join(mode.value for mode in AutoresetMode)
            raise ConfigError(f"autoreset_mode: expected one of {names}, got {autoreset_mode!r:.60}") from None
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
        self.render_mode = checked_render_mode(render_mode)
        self.task = task = make_task(options)
        self.single_observation_space = task.observation_space()
        self.single_action_space = task.action_space()
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, n)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, n)

        self._ids = np.full((n, task.window), task.pad_id, dtype=np.int64)
        self._mask = np.zeros((n, task.window), dtype=np.int8)
        # Where each row's next token goes, as a position in the flattened arrays: one index is cheaper than two.
        self._flat_ids, self._flat_mask = self._ids.reshape(-1), self._mask.reshape(-1)
        self._row_end = np.arange(1, n + 1) * task.window
        self._row_start = self._row_end - task.max_response_length
        self._cursor = self._row_start.copy()

        self._prompts = [Prompt("")] * n
        self._rngs: list[np.random.Generator | None] = [None] * n
        self._summaries = [""] * n  # for rendering
        self._over = np.ones(n, dtype=bool)  # rows that need a reset
        self._any_over = True  # the same in one word, so that most steps need not look
        self._played = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[Observation, Infos]:
        """Starts an episode in every row.

        Args:
            seed: row i is seeded with `seed + i`, or with `seed[i]`, as a single environment would be.
            options: {"prompt": text or num_envs texts} sets the prompts; {"reset_mask": bool (num_envs,)} resets only
                those rows.

        Raises:
            ConfigError: an unknown option, or one of the wrong shape.
            DataError: a prompt does not fit its budget.
        """
        options = options or {}
        check_options(options, ["prompt", "reset_mask"])
        rows = self._rows_to_reset(options.get("reset_mask"))
        seeds = self._seeds(seed)
        texts = self._texts(options.get("prompt"))
        for row in rows.tolist():
            if seeds[row] is not None or self._rngs[row] is None:
                self._rngs[row] = seeding.np_random(seeds[row])[0]
        chosen = np.zeros(self.num_envs, dtype=bool)
        chosen[rows] = True
        infos = self._cost_columns(chosen)
        self._begin(rows, texts, infos)
        self._over &= ~chosen
        self._any_over = bool(self._over.any())
        return self._observation(), infos

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Appends a token to every row; under NEXT_STEP a row that is over starts anew instead.

        Args:
            actions: (num_envs,) token ids.

        Returns:
            Observations, rewards float64, terminations, truncations, and infos.

        Raises:
            ResetNeeded: before the first `reset`, after `play`, or under DISABLED while a row is over.
            InvalidAction: `actions` are not num_envs token ids.
            ScoreError: a model returned something other than finite numbers.
        """
        n = self.num_envs
        actions = self._checked_actions(actions)
        rewards, truncated = np.zeros(n), np.zeros(n, dtype=bool)
        infos = self._cost_columns(np.ones(n, dtype=bool))
        live: slice | np.ndarray = slice(None)  # a slice, as it makes no copies
        if self._any_over:
            if self._played or self._mode is not AutoresetMode.NEXT_STEP or None in self._rngs:
                raise ResetNeeded(f"row {int(np.argmax(self._over))} is over or was never begun; call reset() first")
            live = np.flatnonzero(~self._over)
            self._begin(np.flatnonzero(self._over), [None] * n, infos)
        cursor = self._cursor[live]
        self._flat_ids[cursor] = actions[live]
        self._flat_mask[cursor] = 1
        self._cursor[live] += 1
        terminated = (actions == self.task.eos_id) | (self._cursor == self._row_end)
        if self._any_over:
            terminated &= ~self._over
        over = terminated
        if self.max_episode_steps is not None:
            truncated = self._cursor - self._row_start >= self.max_episode_steps
            over = terminated | truncated
        self._over = over.copy()
        self._any_over = bool(over.any())
        if self._any_over:
            self._finish(terminated, over, rewards, infos)
        return self._observation(), rewards, terminated, truncated, infos

    def play(self, actions: np.ndarray, lengths: np.ndarray) -> Played:
        """Plays a whole response in every row at once; what it pays is what `step` would have paid, token by token.

        Called after a `reset` of all rows, and followed by another.

        Args:
            actions: (num_envs, max_response_length) int64 token ids, meaningless past each length.
            lengths: (num_envs,) int64; a response shorter than the budget ends with the end-of-sequence token.

        Raises:
            ResetNeeded: a row is over or has begun.
            InvalidAction: `step` would not have ended each episode with the last of its tokens.
            ScoreError: a model returned something other than finite numbers.
        """
        task = self.task
        if self._any_over or not np.array_equal(self._cursor, self._row_start):
            raise ResetNeeded("play() needs every row at the start of an episode; call reset() first")
        if self.max_episode_steps is not None:
            raise ConfigError("play() makes whole episodes; make the environment without max_episode_steps")
        actions, lengths = np.asarray(actions), np.asarray(lengths)
        mask = self._checked_responses(actions, lengths)
        start = task.max_prompt_length
        self._ids[:, start:] = np.where(mask, actions, task.pad_id)
        self._mask[:, start:] = mask
        self._cursor = self._row_start + lengths
        self._over[:] = self._any_over = self._played = True
        ending = self._score(np.arange(self.num_envs))
        observation = self._observation()
        return Played(
            observation["input_ids"],
            observation["attention_mask"],
            ending.rewards,
            ending.costs,
            ending.named_costs,
            ending.infos(),
        )

    def render(self) -> tuple[str, ...] | None:
        """A text a row ("ansi"), or None with all of them printed ("human")."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; make the environment with render_mode='ansi'")
            return None
        responses = self.task.decode([self._tokens(row, keep_eos=False) for row in range(self.num_envs)])
        texts = tuple(episode_text(*parts) for parts in zip(self._prompts, responses, self._summaries, strict=True))
        if self.render_mode == "ansi":
            return texts
        print("\n".join(texts), flush=True)
        return None

    def _observation(self) -> Observation:
        return {"input_ids": self._ids.copy(), "attention_mask": self._mask.copy()}

    def _tokens(self, row: int, keep_eos: bool = True) -> np.ndarray:
        end = int(self._cursor[row] - self._row_end[row]) + self.task.window
        tokens = self._ids[row, self.task.max_prompt_length : end]
        return tokens if keep_eos or not tokens.size or tokens[-1] != self.task.eos_id else tokens[:-1]

    def _begin(self, rows: np.ndarray, texts: Sequence[str | None], infos: Infos) -> None:
        picked = rows.tolist()
        # All prompts are found before anything is written: an error leaves the rows as they were.
        starts = [self.task.start(rng, texts[row]) for row in picked if (rng := self._rngs[row]) is not None]
        budget = self.task.max_prompt_length
        for row, (prompt, ids, mask) in zip(picked, starts, strict=True):
            self._prompts[row], self._summaries[row] = prompt, ""
            self._ids[row, :budget], self._ids[row, budget:] = ids, self.task.pad_id
            self._mask[row, :budget], self._mask[row, budget:] = mask, 0
        self._cursor[rows] = self._row_start[rows]
        self._played = False
        self._put_prompts(infos, picked)

    def _finish(self, terminated: np.ndarray, over: np.ndarray, rewards: np.ndarray, infos: Infos) -> None:
        """Scores the terminated rows, writes `rewards` and `infos` in place, and resets what is over at once."""
        same_step = self._mode is AutoresetMode.SAME_STEP
        last = self._cost_columns(over) if same_step else infos
        rows = np.flatnonzero(terminated)
        if rows.size:
            ending = self._score(rows)
            rewards[rows] = ending.rewards
            for columns in (infos, last):
                columns["cost"][rows] = ending.costs
                for name, costs in ending.named_costs.items():
                    columns["costs"][name][rows] = costs
            self._put_prompts(last, rows.tolist())
            self._put(last, "response", rows, ending.responses)
            self._put(last, "response_length", rows, ending.lengths, np.int64)
            self._put(last, "finish_reason", rows, ending.finish_reasons)
        if same_step:
            resetting = np.flatnonzero(over)
            observation = self._observation()
            views = [{name: x[row] for name, x in observation.items()} for row in resetting]
            self._put(infos, "final_obs", resetting, views)
            infos["final_info"], infos["_final_info"] = last, over.copy()
            self._begin(resetting, [None] * self.num_envs, infos)
            self._over[:] = self._any_over = False

    def _score(self, rows: np.ndarray) -> Ending:
        picked = rows.tolist()
        ending = self.task.end([self._prompts[row] for row in picked], [self._tokens(row) for row in picked])
        if self.render_mode is not None:
            for i, row in enumerate(picked):
                self._summaries[row] = summary_line(ending.finish_reasons[i], ending.rewards[i], ending.costs[i])
                if self.render_mode == "human":
                    print(episode_text(self._prompts[row], ending.responses[i], self._summaries[row]), flush=True)
        return ending

    def _cost_columns(self, mask: np.ndarray) -> Infos:
        n = self.num_envs
        columns: Infos = {"cost": np.zeros(n), "_cost": mask}
        if self.task.names:
            named: Infos = {}
            for name in self.task.names:
                named[name], named[f"_{name}"] = np.zeros(n), mask.copy()
            columns["costs"], columns["_costs"] = named, mask.copy()
        return columns

    def _put_prompts(self, infos: Infos, rows: list[int]) -> None:
        self._put(infos, "prompt", rows, [self._prompts[row].text for row in rows])
        grouped = [row for row in rows if self._prompts[row].group]
        if grouped:
            self._put(infos, "group", grouped, [self._prompts[row].group for row in grouped])

    def _put(
        self, infos: Infos, name: str, rows: Sequence[int] | np.ndarray, values: object, dtype: type = object
    ) -> None:
        """Writes a column of `infos` and its mask, as `VectorEnv._add_info` does for one row at a time."""
        if name not in infos:
            infos[name] = np.full(self.num_envs, None if dtype is object else 0, dtype=dtype)
            infos[f"_{name}"] = np.zeros(self.num_envs, dtype=bool)
        infos[name][rows] = values
        infos[f"_{name}"][rows] = True

    def _checked_actions(self, actions: object) -> np.ndarray:
        n, vocab_size = self.num_envs, self.task.vocab_size
        actions = np.asarray(actions)
        if actions.shape != (n,) or actions.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions of shape {actions.shape} and dtype {actions.dtype}; expected ({n},) token ids of dtype int64"
            )
        actions = actions.astype(np.int64, copy=False)
        if actions.view(np.uint64).max() >= vocab_size:  # one comparison for both ends: negative ids become huge
            row = int(actions.view(np.uint64).argmax())
            raise InvalidAction(f"action {actions[row]} of row {row} is not a token id from 0 to {vocab_size - 1}")
        return actions

    def _checked_responses(self, actions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        n, budget = self.num_envs, self.task.max_response_length
        shapes = actions.shape == (n, budget) and lengths.shape == (n,)
        if not shapes or actions.dtype.kind not in "iu" or lengths.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions {actions.shape} {actions.dtype} and lengths {lengths.shape} {lengths.dtype}; "
                f"expected int64 of shapes ({n}, {budget}) and ({n},)"
            )
        mask = np.arange(budget) < lengths[:, None]
        at_end = np.arange(budget) == lengths[:, None] - 1
        eos = (actions == self.task.eos_id) & mask
        wrong = (lengths < 1) | (lengths > budget) | (mask & ((actions < 0) | (actions >= self.task.vocab_size))).any(1)
        wrong |= (eos & ~at_end).any(1) | (~eos.any(1) & (lengths < budget))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InvalidAction(
                f"row {row} with length {lengths[row]} is not a whole response: it must have token ids from 0 to "
                f"{self.task.vocab_size - 1} and end at its first {self.task.eos_id} or at length {budget}"
            )
        return mask

    def _rows_to_reset(self, mask: object) -> np.ndarray:
        n = self.num_envs
        if mask is None:
            return np.arange(n)
        if not isinstance(mask, np.ndarray) or mask.shape != (n,) or mask.dtype != np.bool_ or not mask.any():
            raise ConfigError(
                f"options['reset_mask']: expected a bool array of shape ({n},) that is true somewhere, got {mask!r:.60}"
            )
        return np.flatnonzero(mask)

    def _seeds(self, seed: object) -> list[int | None]:
        n = self.num_envs
        if seed is None:
            return [None] * n
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(n)]
        seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else []
        if len(seeds) != n or not all(isinstance(one, int | np.integer | None) for one in seeds):
            raise ConfigError(f"seed: expected a whole number or a list of {n}, one a row, got {seed!r:.60}")
        return [None if one is None else int(one) for one in seeds]

    def _texts(self, prompt: object) -> Sequence[str | None]:
        n = self.num_envs
        if prompt is None or isinstance(prompt, str):
            return [prompt] * n
        if not isinstance(prompt, Sequence) or len(prompt) != n:
            raise ConfigError(f"options['prompt']: expected a text or a list of {n}, one a row, got {prompt!r:.60}")
        return prompt


def _count(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r:.60}")
    return int(value)
