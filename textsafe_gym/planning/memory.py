"""How much memory training a language model takes, from its `config.json` alone, before any weights are read.

Weights, gradients, optimiser and key-value cache are exact. Activations follow the count of Korthikanti et al. (arXiv
2205.05198, section 4.1): a layer keeps 34·h bytes for each token in 16 bits, and 5·a·s more for attention matrices, of
a heads over s tokens. Here attention is fused (arXiv 2205.14135) and keeps no matrices, there is no dropout, and MLPs
may be gated, so that a layer keeps, in numbers for each token,

    6·h + 4·q + 2·w        h: width of the residual stream, q: of all query heads, w: of the MLP's first matrices

(two norms: input, normalised, scaled; queries, keys and values repeated to their heads, attention's output; the MLP's
first outputs and, after the activation function, the second matrix's input), of which the norms' inputs and normalised
states, 4·h, are float32. With gradient checkpointing (arXiv 1604.06174) each layer keeps h, and one at a time all of
the above.

Not counted: the CUDA context and kernels' workspaces, the allocator's fragments, buffers, and what a trust region's
conjugate gradients keep, with a bfloat16 policy its weights in float32. Attention that is not fused ("eager") takes
more. A layer at work without gradients takes at most what it would keep.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from textsafe_gym.errors import ModelError

if TYPE_CHECKING:
    pass

PHASES = ("rollout", "scoring", "update")
"""When something takes memory: while responses are made, while they are judged, and in the update."""
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""


@dataclass(frozen=True)
class Size:
    """What a plan needs to know of one model; all but the last three are counts of numbers.

    Attributes:
        base: of its weights without LoRAs, the output embedding included where there is one.
        lora: of its LoRA, and of a head that belongs to it; these are float32.
        trained: of those, how many learn.
        read: widths of the layers that read what a LoRA reads, added up over all layers; 0 without a LoRA.
        layers: of the decoder.
        learning_layers: of them, those that keep activations.
        hidden: h, of the residual stream.
        queries: q, of all query heads of a layer.
        cached: of keys and values of one token in one layer.
        wide: w, of the MLP's first matrices, of both where it is gated.
        vocab: of the output embedding.
        second_gradient: of the input embedding's where it is the output embedding as well and learns.
        linear: whether logits are the output embedding's and nothing more.
        place: of the base weights that others may share, None if nobody may.
        what: for messages.
    """

    base: int
    lora: int
    trained: int
    read: int
    layers: int
    learning_layers: int
    hidden: int
    queries: int
    cached: int
    wide: int
    vocab: int
    second_gradient: int
    linear: bool
    place: str | None
    what: str

    def kept(self, width: int) -> int:
        """Bytes that one layer keeps for each token, `width` bytes a number; see the top of this file."""
        return 4 * self.hidden * 4 + (2 * self.hidden + 4 * self.queries + 2 * self.wide) * width

    @property
    def head(self) -> int:
        """Numbers of a critic that is a head on this model: h to 2·h to 1."""
        return self.hidden * 2 * self.hidden + 2 * self.hidden + 2 * self.hidden + 1


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Attributes:
        name: for the table.
        bytes: how much.
        device: where.
        phases: when, of `PHASES`.
        note: what it is made of.
    """

    name: str
    bytes: int
    device: str
    phases: tuple[str, ...] = PHASES
    note: str = ""


@dataclass(frozen=True)
class Batch:
    """How much is done at once.

    Attributes:
        rows: episodes that are collected together.
        group_size: of them, those that share a prompt.
        at_once: episodes in one pass of the update.
        prompt: tokens of a prompt, at most.
        response: tokens of a response, at most.
    """

    rows: int
    group_size: int
    at_once: int
    prompt: int
    response: int


def policy_size(source: str | Path, lora_rank: int | None = None, last_layers: int | None = None) -> Size:
    """The policy of a folder or hub id; arguments as in `CausalLMActor`.

    Raises:
        ModelError: the config is missing, corrupt or of an unknown architecture, or an argument does not fit.
    """
    from transformers import AutoModelForCausalLM

    from textsafe_gym.models import lora
    from textsafe_gym.models.files import without_weights
    from textsafe_gym.models.layers import train_last

    root = _root(source, "policy")
    model = without_weights(AutoModelForCausalLM, root, "policy")
    base = _count(model.parameters())
    if lora_rank is not None:
        with _on_meta():
            lora.add_new(model, "policy", lora_rank, 1)
        lora.train(model, "policy")
    elif last_layers is not None:
        train_last(model, last_layers)
    return _size(model, base, 0, lora.place_of(source) if lora_rank is not None else None, "policy")


def score_size(source: str | Path, what: str) -> Size:
    """The score model of a folder or hub id; its `trained` is what a separate critic would learn.

    Raises:
        ModelError: the config is missing, corrupt or of an unknown architecture.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from textsafe_gym.models import lora
    from textsafe_gym.models.files import without_weights

    if not lora.is_lora(source):
        model = without_weights(AutoModelForSequenceClassification, source, what, num_labels=1)
        return _size(model, _count(model.parameters()), 0, None, what)
    below = lora.base_of(source, what)
    model = without_weights(AutoModelForCausalLM, _root(below, what), what)
    base = _count(model.parameters())
    with _on_meta():
        lora.add_empty(model, "scores", source, what)
    head = model.get_output_embeddings().weight.shape[1]
    return _size(model, base, head, lora.place_of(below), what)


def plan(
    policy: Size,
    scores: Sequence[Size],
    batch: Batch,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    score_dtype: str = "float32",
    score_device: str = "cpu",
    critics: Sequence[Size | None] = (),
    gradient_checkpointing: bool = False,
) -> list[Part]:
    """What a run keeps in memory, and when.

    Args:
        policy: see `policy_size`.
        scores: of the environment's reward and cost models, see `score_size`.
        batch: how much is done at once.
        dtype: of the policy's weights.
        device: of the policy.
        score_dtype: of the score models' weights.
        score_device: of the score models.
        critics: for each that the algorithm makes, the score model that it begins as; None for a head on the policy.
        gradient_checkpointing: of policy and critics.
    """
    width, score_width = WIDTHS[dtype], WIDTHS[score_dtype]
    parts = [Part("weights: policy", policy.base * width + policy.lora * 4, device, note=_weights_note(policy))]
    if policy.lora:
        parts.append(Part("weights: reference", 0, device, note="the policy without its LoRA"))
    else:
        parts.append(Part("weights: reference", policy.trained * width, device, note="a copy of what is trained"))
    models, separate, heads = of_critics(policy, critics)
    if critics:
        note = f"{len(critics)} {'of their own' if models else 'on the policy'}"
        parts.append(Part("weights: critics", separate * width + heads * 4, device, note=note))
    held = {(policy.place, device, dtype)}
    for size in scores:
        key = (size.place, score_device, score_dtype)
        shared = size.place is not None and key in held
        held.add(key)
        number = size.lora * 4 + (0 if shared else size.base * score_width)
        note = "a LoRA on weights that are there already" if shared else _weights_note(size)
        parts.append(Part(f"weights: {size.what}", number, score_device, note=note))
    low = separate + (0 if policy.lora else policy.trained)
    high = (policy.trained if policy.lora else 0) + heads
    return [
        *parts,
        *_learning(low, high, dtype, device),
        *_passes(policy, models, batch, width, device, gradient_checkpointing),
        *_work(policy, scores, batch, width, device, score_width, score_device),
    ]


def of_critics(policy: Size, critics: Sequence[Size | None]) -> tuple[list[Size], int, int]:
    """Of critics as `plan` takes them: those that are models of their own, their numbers, and the heads' numbers."""
    models = [size for size in critics if size is not None]
    separate = sum(size.base + 1 for size in models)  # a classifier's head has no bias, a critic's has
    return models, separate, (len(critics) - len(models)) * policy.head


def _learning(low: int, high: int, dtype: str, device: str) -> list[Part]:
    """What AdamW and the backward pass keep of `low` numbers in the policy's own precision and `high` in float32."""
    moments = Part("optimiser: two moments", 8 * (low + high), device, note="float32")
    width = WIDTHS[dtype]
    if width == 4:
        return [moments, Part("gradients", 4 * (low + high), device, ("update",), "float32")]
    note = f"{dtype}, and their sum in float32"
    return [
        moments,
        Part("optimiser: float32 copies", 4 * low, device, note=f"of what is trained in {dtype}"),
        Part("gradients", (4 + width) * low + 4 * high, device, ("update",), note),
    ]


def _passes(
    policy: Size, critics: Sequence[Size], batch: Batch, width: int, device: str, gradient_checkpointing: bool
) -> list[Part]:
    """What a rollout and the passes of an update keep for as long as they last."""
    length = batch.prompt + batch.response
    cache = policy.layers * policy.cached * width * batch.rows * length
    draws = batch.rows * policy.vocab * (width + 3 * 4)
    tokens, models = batch.at_once * length, [policy, *critics]
    amount = sum(activations(size, tokens, width, gradient_checkpointing) for size in models)
    if gradient_checkpointing:  # at a time one layer of one model has all its activations
        one_layer = [tokens * size.kept(width) for size in models]
        amount -= sum(one_layer) - max(one_layer)
    note = f"of {batch.at_once} episodes" + (", layers' inputs alone" if gradient_checkpointing else "")
    block = logits_block(policy, batch.at_once * batch.response, width)
    parts = [
        Part("key-value cache", cache, device, ("rollout",), f"of {batch.rows} episodes"),
        Part("logits and their softmax", draws, device, ("rollout",), f"of {batch.rows} rows"),
        Part("activations", amount, device, ("update",), note),
        Part("logits, by blocks", block, device, ("scoring", "update")),
    ]
    if policy.second_gradient:
        note = "the embedding is the output embedding too"
        parts.append(Part("a second gradient", policy.second_gradient * width, device, ("update",), note))
    return parts


def _work(
    policy: Size, scores: Sequence[Size], batch: Batch, width: int, device: str, score_width: int, score_device: str
) -> list[Part]:
    """One layer of the largest model that a phase runs on a device; the models of a phase run one after another."""
    length = batch.prompt + batch.response
    work = {
        ("rollout", device): batch.rows // batch.group_size * batch.prompt * policy.kept(width),
        ("scoring", device): _tokens_at_once(length, device) * policy.kept(width),
        ("update", device): batch.at_once * length * policy.kept(width),
    }
    for size in scores:
        number = _tokens_at_once(length, score_device) * size.kept(score_width)
        place = ("scoring", score_device)
        work[place] = max(work.get(place, 0), number)
    return [Part("one layer at work", number, place, (phase,)) for (phase, place), number in work.items()]


def activations(size: Size, tokens: int, width: int, gradient_checkpointing: bool) -> int:
    """Bytes that a pass with gradients over so many tokens keeps for the way back, `width` bytes a number."""
    if gradient_checkpointing:
        return tokens * (size.layers * size.hidden * width + size.kept(width))
    # A LoRA reads float32 copies of what lower precision holds.
    copies = 4 * size.read if size.lora and width < 4 else 0
    return tokens * (size.learning_layers * size.kept(width) + copies)


def logits_block(size: Size, states: int, width: int) -> int:
    """Bytes that log-probs of so many states take, which come without a table of all logits where that is possible."""
    from textsafe_gym.models.likelihood import rows_of_block, table_is_kept

    if not size.linear:
        return states * size.vocab * (width + 3 * 4)
    kept = states * size.vocab * 4 if table_is_kept(states, size.vocab) else 0
    return kept + min(states, rows_of_block(size.vocab)) * size.vocab * (width + 3 * 4)


def peak(parts: Sequence[Part], device: str) -> tuple[str, int]:
    """The phase that takes most on a device, and how many bytes that is."""
    bytes_by_phase = {
        phase: sum(x.bytes for x in parts if x.device == device and phase in x.phases) for phase in PHASES
    }
    phase = max(bytes_by_phase, key=lambda name: bytes_by_phase[name])
    return phase, bytes_by_phase[phase]


def capacity(device: str) -> int:
    """Bytes of memory that a device has for this process: a GPU's, or the machine's within its control group's limit.

    Raises:
        ModelError: there is no such device.
    """
    import psutil
    import torch

    if device.startswith("cuda"):
        try:
            return torch.cuda.get_device_properties(device).total_memory
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"device {device}: {' '.join(str(error).split())[:200]}") from None
    machine: int = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    given = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return machine if given == "max" else min(machine, int(given))


def _size(model: Any, base: int, head: int, place: str | None, what: str) -> Size:
    """Counts a model on the meta device, with a LoRA on it or without."""
    from textsafe_gym.models.layers import decoder_layers

    config, layers = model.config, decoder_layers(model)
    hidden = config.hidden_size
    heads = config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or hidden // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    inner = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    mlp = next((x for x in inner if x), 4 * hidden)
    low_rank = [(name, x) for name, x in model.named_parameters() if ".lora_" in name]
    outputs = [_output(x) for name, x in layers[0].named_modules() if ".lora_" not in name]
    output = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    tied = output is not None and output.weight is embedding and embedding.requires_grad
    return Size(
        base=base,
        lora=sum(x.numel() for _, x in low_rank) + head,
        trained=_count(x for x in model.parameters() if x.requires_grad),
        read=sum(x.shape[-1] for name, x in low_rank if ".lora_A" in name),
        layers=len(layers),
        learning_layers=sum(any(x.requires_grad for x in layer.parameters()) for layer in layers),
        hidden=hidden,
        queries=heads * dimension,
        cached=2 * groups * dimension,
        wide=sum(x for x in outputs if x in (mlp, 2 * mlp) and x != hidden) or mlp,
        vocab=embedding.shape[0],
        second_gradient=embedding.numel() if tied else 0,
        linear=getattr(config, "final_logit_softcapping", None) is None and not hasattr(config, "logit_scale"),
        place=place,
        what=what,
    )


def _output(module: Any) -> int:
    """How wide the output of a linear layer is; 0 for all other modules, what adapts a layer among them."""
    if type(module).__name__ == "Conv1D":  # GPT-2's
        return int(module.nf)
    is_linear = type(module).__name__ == "Linear" and not hasattr(module, "base_layer")
    return int(module.out_features) if is_linear else 0


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(x.numel() for x in parameters)


def _on_meta() -> AbstractContextManager[object]:
    import torch

    return torch.device("meta")


def _root(source: str | Path, what: str) -> str | Path:
    """The whole model at the bottom of a LoRA, of a LoRA of a LoRA, and so on."""
    from textsafe_gym.models import lora

    return _root(lora.base_of(source, what), what) if lora.is_lora(source) else source


def _weights_note(size: Size) -> str:
    total = size.base + size.lora
    return f"{total / 1e6:.1f} M" + (f", {size.trained / 1e6:.1f} M trained" if size.what == "policy" else "")


def _tokens_at_once(length: int, device: str) -> int:
    import torch

    from textsafe_gym.models.encoding import rows_at_once

    return rows_at_once(length, torch.device(device)) * length
