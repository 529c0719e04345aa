"""What `--data` names, for algorithms that learn from preferences or demonstrations that are there already."""

from collections.abc import Sequence
from typing import Any

from textsafe_gym.data.readers import read_demonstrations, read_preferences
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.spec import SIMULATED, RunSpec
from textsafe_gym.protocols import PreferenceTask, PromptTask


def load_data(spec: RunSpec, env: Any, actor: Any, few: bool = False) -> Any:
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
    task = env.unwrapped
    if not isinstance(task, PromptTask) or not isinstance(actor, CausalLMActor):
        raise ConfigError(f"{spec.algorithm} learns from pairs of texts; {spec.env['id']} has no text environment's")
    kind = algos.definition(spec.algorithm).source
    rows = [row for source in spec.data for row in _read(source, kind, task, spec.seed, few)]
    rows, budgets = rows[:2] if few else rows, (task.max_prompt_length, task.max_response_length)
    if kind == "demonstrations":
        return actor.demonstrations(rows, *budgets)
    return actor.preferences(rows, *budgets, actor.reference())


def data_note(specs: Sequence[RunSpec]) -> str:
    """One line about what those of the runs learn from that sample nothing; empty where all sample."""
    names = list(dict.fromkeys(spec.algorithm for spec in specs if spec.data))
    if not names:
        return ""
    sources = next(spec.data for spec in specs if spec.data)
    own = any(source.partition(":")[0] == SIMULATED for source in sources)
    simulated = " (pairs that the environment labels itself; --data FILE for others)" if own else ""
    verbs = ("samples", "it learns") if len(names) == 1 else ("sample", "they learn")
    return f"note: {', '.join(names)} {verbs[0]} no responses; {verbs[1]} from {', '.join(sources)}{simulated}"


def _read(source: str, kind: str, task: PromptTask, seed: int, few: bool) -> list[Any]:
    name, _, count = source.partition(":")
    if name != SIMULATED:
        return read_demonstrations(source) if kind == "demonstrations" else list(read_preferences(source))
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"--data {source}: expected {SIMULATED}:N, N pairs")
    if kind == "demonstrations" or not isinstance(task, PreferenceTask):
        raise ConfigError(f"--data {source}: this environment simulates no {kind}; give --data FILE")
    try:
        return list(task.preferences(2 if few else int(count), seed))
    except ConfigError as error:
        raise ConfigError(f"--data {source}: {error}; give --data FILE") from None
