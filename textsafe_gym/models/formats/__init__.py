"""Score models as other projects save them: a format is one module of this folder, or registered in `FORMATS`."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from textsafe_gym.registry import Lazy, Registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from textsafe_gym.protocols import Tokenizer


class Format(Protocol):
    """How such a model is read; a module with these names is one.

    Attributes:
        ARCHITECTURES: the names under "architectures" in config.json by which it is known.
    """

    ARCHITECTURES: frozenset[str]

    def load(
        self, source: str | Path, config: "PretrainedConfig", what: str, device: str, dtype: str
    ) -> "tuple[PreTrainedModel, Tokenizer]":
        """The model, as a classifier of transformers with one score, and its tokenizer.

        Raises:
            ModelError: missing, corrupt, or without a single score.
        """
        ...

    def normaliser(self, config: "PretrainedConfig", kind: str) -> dict[str, object]:
        """`kind`, `mean` and `std`, as `ScoreModel` saves them.

        Raises:
            ModelError: malformed.
        """
        ...


FORMATS: Registry[Format] = Registry(
    "format of score models",
    [
        (path.stem, Lazy(f"textsafe_gym.models.formats.{path.stem}"), "")
        for path in sorted(Path(__file__).parent.glob("[!_]*.py"))
    ],
)


def format_of(config: "PretrainedConfig") -> Format | None:
    """The format of a model with this config; None for a classifier of transformers' own."""
    known = config.architectures or []
    return next((form for form in FORMATS.values() if not form.ARCHITECTURES.isdisjoint(known)), None)
