"""What `--data` names, for algorithms that learn from preferences or demonstrations that are there already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textsafe_gym.data.readers import read_demonstrations, read_preferences
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import SIMULATED, RunSpec
from textsafe_gym.models import task_of
from textsafe_gym.protocols import PreferenceTask, PromptTask

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.data.readers import Preference
    from textsafe_gym.protocols import Actor
    from textsafe_gym.types import Demonstrations, Preferences


def load_data(
    spec: RunSpec, env: "gym.vector.VectorEnv", actor: "Actor", few: bool = False
) -> "Preferences | Demonstrations | None":
    """A run's data in the actor's form, of preferences with its reference's log-probs; None where it samples.

    Args:
        spec: the run.
        env: a text environment; its budgets hold for the data too.
        actor: as it is before training.
        few: two rows, to see whether all goes together; files are read whole, and with them their faults found.

    Raises:
        TextsafeError: there is none, or a file is wrong.
    """
    import algos
    from textsafe_gym.models.causal_lm import CausalLMActor

    if not spec.data:
        return None
    task, what = task_of(env), f"{spec.algorithm} learns from texts, but {spec.env['id']}"
    if not isinstance(task, PromptTask):
        raise ConfigError(f"{what} is not a text environment")
    if not isinstance(actor, CausalLMActor):
        raise ConfigError(f"{what} was given a {type(actor).__name__} for a policy, not a language model")
    budgets, first = (task.max_prompt_length, task.max_response_length), slice(2 if few else None)
    if algos.definition(spec.algorithm).source == "demonstrations":
        shown = [row for source in spec.data for row in _demonstrations(source)]
        return actor.demonstrations(shown[first], *budgets)
    labelled = [pair for source in spec.data for pair in _preferences(source, task, spec.seed, few)]
    return actor.preferences(labelled[first], *budgets, actor.reference())


def data_note(specs: Sequence[RunSpec]) -> str:
    """One line about what those of the runs learn from that sample nothing; empty where all sample."""
    names = list(dict.fromkeys(spec.algorithm for spec in specs if spec.data))
    if not names:
        return ""
    sources = next(spec.data for spec in specs if spec.data)
    own = any(source.partition(":")[0] == SIMULATED for source in sources)
    simulated = " (pairs that the environment labels itself; --data FILE for others)" if own else ""
    verbs = ("samples", "it learns") if len(names) == 1 else ("sample", "they learn")
    return f"note: {', '.join(names)} {verbs[0]} nothing; {verbs[1]} from {', '.join(sources)}{simulated}"


def _demonstrations(source: str) -> list[tuple[str, str]]:
    if source.partition(":")[0] == SIMULATED:
        raise ConfigError(f"--data {source}: no environment simulates demonstrations; give --data FILE")
    return read_demonstrations(source)


def _preferences(source: str, task: PromptTask, seed: int, few: bool) -> "Sequence[Preference]":
    name, _, count = source.partition(":")
    if name != SIMULATED:
        return read_preferences(source)
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"--data {source}: expected {SIMULATED}:N, N pairs")
    if not isinstance(task, PreferenceTask):
        raise ConfigError(f"--data {source}: this environment simulates no preferences; give --data FILE")
    try:
        return task.preferences(2 if few else int(count), seed)
    except ConfigError as error:
        raise ConfigError(f"--data {source}: {error}; give --data FILE") from None
