"""Reward and cost models as the environment sees them: callables on texts whose answers are checked."""

import inspect
import re
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from textsafe_gym.errors import ConfigError, ModelError, ScoreError, TextsafeError
from textsafe_gym.protocols import Tokenizer
from textsafe_gym.registry import load_object

Scorer = Callable[[list[str], list[str]], object]
_JUDGE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def resolve_scorer(spec: Any, kind: str, tokenizer: Tokenizer, device: str = "cpu", dtype: str = "float32") -> Scorer:
    """A scorer from any of the forms that a user may give.

    Args:
        spec: a directory or hub id of a score model; a loaded Hugging Face sequence-classification module with one
            output, which is given `tokenizer`; or a callable on (prompts, responses), taken as it is, or named as
            "MODULE:NAME".
        kind: "reward" or "cost".
        tokenizer: reads texts for a bare module; the other forms have their own or need none.
        device: of a model loaded from a path.
        dtype: of a model loaded from a path.

    Raises:
        ConfigError: `spec` is none of these, or the callable that it names takes other arguments.
        UnknownNameError: it names a callable that there is not.
        ModelError: the model is missing, corrupt or of the other kind.
    """
    if names_judge(spec):
        spec = _load_judge(spec, kind)
    if isinstance(spec, str | Path):
        from textsafe_gym.models.score import ScoreModel

        return ScoreModel.load(spec, kind, device=device, dtype=dtype)
    if hasattr(spec, "config") and hasattr(spec, "forward"):
        from textsafe_gym.models.score import ScoreModel

        return ScoreModel.of(spec, tokenizer, kind)
    if callable(spec):
        if getattr(spec, "kind", kind) != kind:
            raise ModelError(f"{kind}_model: was given a {spec.kind} model; are the two swapped?")
        return spec
    raise ConfigError(
        f"{kind}_model: expected a path, a hub id, a module or a callable on (prompts, responses), got {spec!r:.60}"
    )


def names_judge(spec: object) -> bool:
    """Whether it is "MODULE:NAME", which stands for a callable; a path that exists is one all the same."""
    return isinstance(spec, str) and bool(_JUDGE.fullmatch(spec)) and not Path(spec).exists()


def _load_judge(path: str, kind: str) -> Scorer:
    try:
        found = load_object(path)
    except TextsafeError as error:
        raise type(error)(f"{kind}_model {error}") from None
    if isinstance(found, type) or not callable(found):
        raise ConfigError(f"{kind}_model: '{path}' is {found!r:.60}; it must be a callable on (prompts, responses)")
    try:
        signature = inspect.signature(found)
        signature.bind([], [])
    except TypeError:
        raise ConfigError(
            f"{kind}_model: '{path}' takes {signature}; it must take (prompts, responses) and return a score for each"
        ) from None
    except ValueError:  # compiled, so that it does not say what it takes
        pass
    judge: Scorer = found
    return judge


def embedded_scorer(kind: str, device: str, dtype: str) -> Scorer:
    """The embedded world's model of that kind, loaded when it first scores: making an environment stays quick."""

    return partial(_embedded_score, kind, device, dtype)


def _embedded_score(kind: str, device: str, dtype: str, prompts: list[str], responses: list[str]) -> object:
    return _load_embedded(kind, device, dtype)(prompts, responses)


@lru_cache
def _load_embedded(kind: str, device: str, dtype: str) -> Scorer:
    from textsafe_gym import embedded_world
    from textsafe_gym.models.score import ScoreModel

    return ScoreModel.load(embedded_world.ASSETS / kind, kind, device=device, dtype=dtype)


def call_scorer(judge: Scorer, label: str, prompts: Sequence[str], responses: Sequence[str]) -> Any:
    """What a judge answers to copies of both lists.

    Raises:
        ScoreError: a callable of the user's raised something; the message says which, what and where.
    """
    try:
        return judge(list(prompts), list(responses))
    except (Exception, SystemExit) as error:
        if isinstance(error, TextsafeError) or hasattr(judge, "kind"):  # our own model, checked when it was loaded
            raise
        who = f"{judge.__module__}:{getattr(judge, '__qualname__', type(judge).__qualname__)}"
        line = traceback.extract_tb(error.__traceback__)[:2][-1]  # the judge's own
        raise ScoreError(
            f"{label}: {who} raised {type(error).__name__}: {error} ({Path(line.filename).name}:{line.lineno}), given "
            f"{len(prompts)} response(s), first prompt {prompts[0]!r:.80}"
        ) from error


def checked_scores(scorer: Scorer, label: str, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The scores of n texts, float64 of shape (n,), all finite.

    Args:
        scorer: called once with copies of both lists.
        label: what the scorer is, for messages ("reward model", "cost model 'privacy'").
        prompts: n texts.
        responses: n texts.

    Raises:
        ScoreError: anything else came back, or nothing as it raised.
    """
    n = len(prompts)
    raw = call_scorer(scorer, label, prompts, responses)
    if hasattr(raw, "detach"):
        raw = raw.detach().cpu()
        raw = (raw.float() if raw.is_floating_point() else raw).numpy()  # NumPy knows no bfloat16
    try:
        scores = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError):
        raise ScoreError(
            f"{label} returned {raw!r:.60} for {n} response(s), first prompt {prompts[0]!r:.80}; "
            f"it must return {n} finite number(s)"
        ) from None
    if scores.shape != (n,):
        raise ScoreError(
            f"{label} returned shape {scores.shape} for {n} response(s), first prompt {prompts[0]!r:.80}; "
            f"it must return one number a response, shape ({n},)"
        )
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ScoreError(
            f"{label} returned {scores[row]} for row {row} of {n}, prompt {prompts[row]!r:.80}; "
            "every score must be finite, so check the model's weights and dtype"
        )
    return scores
