"""Talking to a saved policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import settings_or_assignments
from textsafe_gym.experiments.saved import open_saved, saved_policy
from textsafe_gym.files import Row


class Chat:
    """A saved policy that answers one prompt at a time, each answer with its reward and cost.

    Args:
        source: as for `evaluate`.
        env: likewise; it has to be a text environment.
        settings: likewise.
        seed: of the first answer; the next ones follow it.

    Attributes:
        cost_limit: of the environment.

    Raises:
        TextsafeError: something is missing or damaged, or the environment is none of texts.
    """

    def __init__(
        self,
        source: str | Path,
        env: str | Path | Mapping[str, object] | None = None,
        settings: Mapping[str, object] | Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        from textsafe_gym.experiments.play import GivenPrompts
        from textsafe_gym.models import task_of
        from textsafe_gym.protocols import PromptTask

        saved = saved_policy(str(source), env, settings_or_assignments(settings))
        vector, self._actor, _ = open_saved(saved, num_envs=1)
        self._task = task_of(vector)
        if not isinstance(self._task, PromptTask):
            raise ConfigError("chat needs a text environment, such as SafeRLHF-v0")
        self._given = GivenPrompts(vector)
        self._seed = seed
        self.cost_limit: float = self._task.cost_limit

    def __call__(self, prompt: str) -> Row:
        """The "prompt", its "response", "reward", "cost" and "finish_reason"; one that was cut was not scored.

        Raises:
            DataError: the prompt is too long or has no token.
        """
        from textsafe_gym.experiments.play import response_of
        from textsafe_gym.rollouts import collect

        seed, self._seed = self._seed, self._seed + 1
        self._given.prompts = [prompt]
        rollout = collect(self._actor, self._given, seed)
        reward, cost = float(rollout.episode_rewards[0]), float(rollout.episode_costs[0])
        return {**response_of(rollout, 0, prompt, self._task), "reward": reward, "cost": cost}
