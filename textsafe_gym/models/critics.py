"""Critics of a language model: heads on the actor's trunk, or models of their own that begin as score models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from textsafe_gym.errors import ModelError
from textsafe_gym.models.encoding import same_vocabulary, vocabulary_name
from textsafe_gym.models.layers import compile_layers, recompute_activations
from textsafe_gym.models.sampling import model_inputs
from textsafe_gym.models.score import Critic, ScoreModel

if TYPE_CHECKING:
    from textsafe_gym.models.causal_lm import CausalLMActor

BOTH = ("reward", "cost")


class LanguageCritics(Protocol):
    """What a `CausalLMActor` asks of `textsafe_gym.protocols.Critics`.

    Attributes:
        kinds: "reward", "cost" or both.
        read_states: whether `values` needs the actor's states alone, and no tokens.
    """

    kinds: tuple[str, ...]
    read_states: bool

    def values(self, hidden: Tensor, ids: Tensor, attention: Tensor, where: Tensor) -> dict[str, Tensor]:
        """By kind, values (N,) float32 at the N true positions of `where`.

        Args:
            hidden: (N, H), the actor's states there, before its output embedding.
            ids: (B, L), the tokens that the actor read.
            attention: (B, L), 1 on tokens.
            where: (B, L) bool.
        """
        ...


class _Critics(nn.Module):
    """One network a kind, under the names that a checkpoint has."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.kinds = tuple(networks)
        for kind, network in networks.items():
            self.add_module(f"{kind}_critic", network.requires_grad_(True))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All weights of each separate network; see `Critics.parameter_groups`."""
        return {f"{kind}_critic": list(self.network(kind).parameters()) for kind in self.kinds}

    def network(self, kind: str) -> nn.Module:
        """The critic of one kind."""
        return self.get_submodule(f"{kind}_critic")


class HeadCritics(_Critics):
    """Heads of two layers on the actor's trunk, whose values begin at zero.

    Args:
        actor: whose states they read; they move with its trunk.
        kinds: "reward", "cost" or both.
    """

    read_states = True

    def __init__(self, actor: "CausalLMActor", kinds: Sequence[str] = BOTH) -> None:
        size = actor.model.get_output_embeddings().weight.shape[1]
        super().__init__({kind: _value_head(size, actor.device) for kind in kinds})

    def values(self, hidden: Tensor, *tokens: Tensor) -> dict[str, Tensor]:
        """By kind, values (...) float32 of states (..., H)."""
        hidden = hidden.to(next(self.parameters()).dtype)  # float32, unless an engine stores them in less
        return {kind: self.network(kind)(hidden).squeeze(-1).float() for kind in self.kinds}


class SeparateCritics(_Critics):
    """Models of their own that begin as copies of score models (arXiv 2310.12773).

    Args:
        actor: whose tokens they read.
        sources: by kind, a score model, or where one lies; it must have the actor's vocabulary.

    Raises:
        ModelError: a source is missing, of another kind, or does not fit.
    """

    read_states = False

    def __init__(self, actor: "CausalLMActor", sources: dict[str, ScoreModel | str | Path | None]) -> None:
        super().__init__({kind: _separate(actor, source, kind) for kind, source in sources.items()})
        for kind in self.kinds:
            trunk: Any = self.network(kind).trunk
            if actor.compiled:
                compile_layers(trunk)
            if actor.gradient_checkpointing:
                recompute_activations(trunk)
        self.eval()

    def train(self, mode: bool = True) -> "SeparateCritics":
        """Always eval mode, as the actor: dropout would make values noisy."""
        return super().train(False)

    def values(self, hidden: Tensor, ids: Tensor, attention: Tensor, where: Tensor) -> dict[str, Tensor]:
        """Each network reads the tokens itself, `hidden` is not used; see `LanguageCritics.values`."""
        networks: dict[str, Any] = {kind: self.network(kind) for kind in self.kinds}
        return {kind: critic(where, **model_inputs(critic.trunk, ids, attention)) for kind, critic in networks.items()}


def _value_head(size: int, device: torch.device) -> nn.Sequential:
    """Two layers, as the trunk's last state is made for the next token and shows little else to a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden, value = nn.Linear(size, 2 * size), nn.Linear(2 * size, 1)
    nn.init.zeros_(value.weight)
    nn.init.zeros_(value.bias)
    return nn.Sequential(hidden, nn.Tanh(), value).to(device)


def _separate(actor: "CausalLMActor", source: ScoreModel | str | Path | None, kind: str) -> Critic:
    if source is None:
        raise ModelError(
            f"critics='separate' needs {kind}_critic: a score model or its folder to start from; "
            "the environment has no folder of one"
        )
    if not isinstance(source, ScoreModel):
        dtype = str(actor.model.dtype).removeprefix("torch.")
        source = ScoreModel.load(source, kind, str(actor.device), dtype)
    if source.kind != kind:
        raise ModelError(f"{kind}_critic is a {source.kind} model; are the two swapped?")
    if not same_vocabulary(actor.tokenizer, source.tokenizer):
        raise ModelError(
            f"the policy's tokenizer {vocabulary_name(actor.tokenizer)} and {kind}_critic's "
            f"{vocabulary_name(source.tokenizer)} differ, but a separate critic reads the policy's tokens; use "
            "critics='heads' or a model with that vocabulary"
        )
    return Critic(source).to(actor.device)
