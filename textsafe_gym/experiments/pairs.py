"""The labelled pairs that `--data` names, for algorithms that learn from preferences."""

from typing import TYPE_CHECKING

from textsafe_gym.data.readers import Preference, read_preferences
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import SIMULATED, RunSpec
from textsafe_gym.protocols import PreferenceTask, PromptTask

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.protocols import Actor
    from textsafe_gym.types import Preferences


def preferences(spec: RunSpec, env: "gym.vector.VectorEnv", actor: "Actor", few: bool = False) -> "Preferences | None":
    """A run's pairs in the actor's form, with the log-probs of its reference; None where it learns from rollouts.

    Args:
        spec: the run.
        env: a text environment; its budgets hold for the pairs too.
        actor: as it is before training.
        few: two of them, to see whether all goes together; files are read whole, and with them their faults found.

    Raises:
        TextsafeError: there are none, or a file is wrong.
    """
    from textsafe_gym.models.causal_lm import CausalLMActor

    if not spec.data:
        return None
    task = env.unwrapped
    if not isinstance(task, PromptTask) or not isinstance(actor, CausalLMActor):
        raise ConfigError(f"{spec.algorithm} learns from pairs of texts; {spec.env['id']} has no text environment's")
    rows = [row for source in spec.data for row in _read(source, task, spec.seed, few)]
    reference = actor.reference()
    return actor.preferences(rows[:2] if few else rows, task.max_prompt_length, task.max_response_length, reference)


def _read(source: str, task: PromptTask, seed: int, few: bool) -> list[Preference]:
    name, _, count = source.partition(":")
    if name != SIMULATED:
        return read_preferences(source)
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"--data {source}: expected {SIMULATED}:N, N pairs")
    if not isinstance(task, PreferenceTask):
        raise ConfigError(f"--data {source}: this environment simulates no preferences; give --data FILE")
    try:
        return list(task.preferences(2 if few else int(count), seed))
    except ConfigError as error:
        raise ConfigError(f"--data {source}: {error}; give --data FILE") from None
