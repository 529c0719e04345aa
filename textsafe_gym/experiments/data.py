"""What `--data` names, for algorithms that learn from data that are there already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import SIMULATED, RunSpec
from textsafe_gym.models import task_of
from textsafe_gym.protocols import PromptTask, TextActor

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.offline import Kind
    from textsafe_gym.protocols import Actor, OfflineData


def load_data(spec: RunSpec, env: "gym.vector.VectorEnv", actor: "Actor", few: bool = False) -> "OfflineData | None":
    """A run's data in the actor's form, with its reference's log-probs; None where it samples.

    Args:
        spec: the run.
        env: a text environment; its budgets hold for the data too.
        actor: as it is before training.
        few: two rows, to see whether all goes together; files are read whole, and with them their faults found.

    Raises:
        TextsafeError: there is none, or a file is wrong.
    """
    import algos

    if not spec.data:
        return None
    task, what = task_of(env), f"{spec.algorithm} learns from texts, but {spec.env['id']}"
    if not isinstance(task, PromptTask):
        raise ConfigError(f"{what} is not a text environment")
    if not isinstance(actor, TextActor):
        raise ConfigError(f"{what} was given a {type(actor).__name__} for a policy, not a language model")
    kind = algos.definition(spec.algorithm).kind
    rows = [row for source in spec.data for row in _rows(kind, source, task, spec.seed, few)]
    budgets = task.max_prompt_length, task.max_response_length
    return kind.encode(rows[: 2 if few else None], actor, *budgets, actor.reference())


def data_note(specs: Sequence[RunSpec]) -> str:
    """One line about what those of the runs learn from that sample nothing; empty where all sample."""
    names = list(dict.fromkeys(spec.algorithm for spec in specs if spec.data))
    if not names:
        return ""
    sources = next(spec.data for spec in specs if spec.data)
    own = any(source.partition(":")[0] == SIMULATED for source in sources)
    simulated = " (which the environment labels itself; --data FILE for others)" if own else ""
    verbs = ("samples", "it learns") if len(names) == 1 else ("sample", "they learn")
    return f"note: {', '.join(names)} {verbs[0]} nothing; {verbs[1]} from {', '.join(sources)}{simulated}"


def _rows(kind: type["Kind"], source: str, task: PromptTask, seed: int, few: bool) -> "Sequence[Any]":
    name, _, count = source.partition(":")
    if name != SIMULATED:
        return kind.read(source)
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"--data {source}: expected {SIMULATED}:N, N {kind.counted}")
    try:
        return kind.simulated(task, 2 if few else int(count), seed)
    except ConfigError as error:
        raise ConfigError(f"--data {source}: {error}; give --data FILE") from None
