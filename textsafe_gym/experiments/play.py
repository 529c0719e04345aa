"""Plays a policy on evaluation prompts and records every response."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from textsafe_gym.envs.infos import InfoReader, info_row
from textsafe_gym.envs.scorers import call_scorer
from textsafe_gym.errors import ConfigError, ScoreError
from textsafe_gym.evaluation.records import CUT
from textsafe_gym.files import Row
from textsafe_gym.models import task_of
from textsafe_gym.parallel.process_group import ProcessGroup
from textsafe_gym.protocols import Actor, Info, Judge, PromptTask, Reference, TextTask
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Rollout, episode_sums

if TYPE_CHECKING:
    from textsafe_gym.data.prompts import Prompt

# Episodes for environments that have no evaluation prompts of their own.
EPISODES = 128
# Sets the seeds of evaluation apart from those of training, which are SeedSequence([seed, iteration]).
_EVALUATION = 1_000_003


class _WithPrompt(gym.Wrapper):
    def __init__(self, env: gym.Env, prompt: str) -> None:
        super().__init__(env)
        self.prompt = prompt

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[object, Info]:
        return self.env.reset(seed=seed, options={**(options or {}), "prompt": self.prompt})


class GivenPrompts(gym.vector.VectorWrapper):
    """A vector environment whose next reset takes the prompts in `prompts` instead of drawing them."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        super().__init__(env)
        self.prompts: list[str] = []

    def reset(self, *, seed: Any = None, options: Info | None = None) -> tuple[object, Info]:
        """Resets each row to its prompt of `prompts`; other options are passed on.

        Raises:
            ConfigError: a row's `info` has another prompt. One that the given is a part of, as of a template, will do.
        """
        observation, info = self._reset(seed, options)
        for i, given in enumerate(self.prompts):
            found = info_row(info, i).get("prompt")
            if isinstance(found, str) and given not in found:
                call = f"reset(options={{'prompt': {given!r:.60}}})"
                raise ConfigError(
                    f"{InfoReader(self.env).name}: {call} began with {found!r:.60}; pass options on to the text "
                    "environment"
                )
        return observation, info

    def _reset(self, seed: Any, options: Info | None) -> tuple[object, Info]:
        base = self.env.unwrapped
        if not isinstance(base, gym.vector.SyncVectorEnv):
            return self.env.reset(seed=seed, options={**(options or {}), "prompt": self.prompts})
        # Gymnasium's own hands all of its sub-environments the same options, so that each is given its own here.
        plain = base.envs
        base.envs = [_WithPrompt(one, prompt) for one, prompt in zip(plain, self.prompts, strict=True)]
        try:
            return self.env.reset(seed=seed, options=options)
        finally:
            base.envs = plain


def evaluate_policy(
    actor: Actor,
    env: gym.vector.VectorEnv,
    seed: int,
    identity: Row,
    reference: Reference | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: ProcessGroup | None = None,
    sample: int = 0,
) -> list[Row]:
    """One response to each evaluation prompt, in order (or `EPISODES` episodes where the environment has none).

    A response that a limit on steps cut is in its row as far as it went, with what it paid; the gold judge is not asked
    about it.

    Args:
        actor: is played as it is; it samples at its own temperature.
        env: fixes the batch size; a text environment's `evaluation_prompts` and `gold_judge` are used.
        seed: of the run; the same seed means the same random draws for every policy.
        identity: what every row says about its run: algorithm, label, seed.
        reference: what the rows' `kl` is measured to; without it they have none.
        on_batch: called with the episodes played so far and in all.
        processes: processes that share the work; each gets all rows.
        sample: which answer to each prompt, from 0; each has draws of its own.

    Raises:
        ConfigError: the environment does not take the prompts that it is given.
        ScoreError: a gold judge returned something other than finite numbers, or raised.
    """
    task = task_of(env)
    prompts: Sequence[Prompt] = task.evaluation_prompts if isinstance(task, PromptTask) else ()
    total = len(prompts) if prompts else EPISODES
    wrapper = GivenPrompts(env) if prompts else None
    share = (processes.rank, processes.world_size) if processes else (0, 1)
    batches: list[list[Row]] = []
    for start in range(0, total, env.num_envs * share[1]):
        entropy = [seed, _EVALUATION, start, *([sample] if sample else [])]
        batch_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        first = start + share[0] * env.num_envs
        # The last batch is filled up from the front; the surplus responses are dropped.
        episodes = range(first, first + env.num_envs)
        if prompts and wrapper:
            wrapper.prompts = [prompts[i % total].text for i in episodes]
        rollout = collect(actor, wrapper or env, batch_seed, reference=reference, share=share)
        batches.append(
            _rows(rollout, [prompts[i] if prompts else None for i in episodes if i < total], task, identity, first)
        )
        if on_batch:
            on_batch(min(start + env.num_envs * share[1], total), total)
    found = processes.all_gather(batches) if processes else [batches]
    rows = [row for together in zip(*found, strict=True) for part in together for row in part]
    if isinstance(task, PromptTask) and task.gold_judge is not None:
        _add_gold(rows, task.gold_judge)
    return rows


def play_samples(
    samples: int,
    actor: Actor,
    env: gym.vector.VectorEnv,
    seed: int,
    identity: Row,
    reference: Reference | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: ProcessGroup | None = None,
) -> list[Row]:
    """So many times `evaluate_policy`; where that is several, each row has its number under "sample", from 0."""
    rows: list[Row] = []
    for sample in range(samples):

        def shown(done: int, total: int, before: int = sample) -> None:
            if on_batch:
                on_batch(before * total + done, samples * total)

        own = evaluate_policy(actor, env, seed, identity, reference, shown, processes, sample)
        rows += [{**row, "sample": sample} for row in own] if samples > 1 else own
    return rows


def response_of(rollout: Rollout, i: int, prompt: str | None, task: object) -> Row:
    """The "prompt" and "response" of a rollout's i-th episode, and its "finish_reason": "eos", "length", or "truncated"
    where a limit from outside cut the response, which no model has scored then; nothing where there are no texts.

    Args:
        rollout: of a text environment or another.
        i: the episode.
        prompt: that it was given, if any.
        task: the environment's base.
    """
    info = rollout.infos[i]
    if "response" in info or prompt is None or not isinstance(task, TextTask):
        return {name: info[name] for name in ("prompt", "response", "finish_reason") if name in info}
    # Whoever cuts an episode is outside of the text environment, which reports texts when a response ends by itself.
    tokens = rollout.actions[i, rollout.mask[i]].tolist()
    response = task.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return {"prompt": prompt, "response": response, "finish_reason": CUT}


def _rows(rollout: Rollout, prompts: "Sequence[Prompt | None]", task: object, identity: Row, start: int) -> list[Row]:
    rewards = rollout.episode_rewards.double().tolist()
    costs = rollout.episode_costs.double().tolist()
    kls = None if rollout.reference_log_probs is None else rollout.episode_kl.double().tolist()
    named = {name: episode_sums(x, rollout.mask).double().tolist() for name, x in rollout.named_costs.items()}
    rows = []
    for i, prompt in enumerate(prompts):
        row = {**identity, "episode": start + i, **response_of(rollout, i, prompt.text if prompt else None, task)}
        if prompt and prompt.group:
            row["group"] = prompt.group
        row |= {"reward": rewards[i], "cost": costs[i]}
        if named:
            row["costs"] = {name: x[i] for name, x in named.items()}
        row["response_length"] = int(rollout.lengths[i])
        if kls is not None:
            row["kl"] = kls[i]
        rows.append(row)
    return rows


def _add_gold(rows: list[Row], judge: Judge) -> None:
    rows = [row for row in rows if row.get("finish_reason") != CUT]
    if not rows:
        return
    scores = call_scorer(judge, "gold judge", [row["prompt"] for row in rows], [row["response"] for row in rows])
    for name, values in scores.items():
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(rows),) or not np.isfinite(array).all():
            raise ScoreError(f"the gold judge's '{name}' must be {len(rows)} finite numbers, got shape {array.shape}")
        for row, value in zip(rows, array.tolist(), strict=True):
            row[f"gold_{name}"] = value
