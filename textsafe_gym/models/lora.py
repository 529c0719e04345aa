"""Low-rank weights (LoRA: Hu et al., arXiv 2106.09685) by name on one model, whose own weights stay as they are.

Policy, reference, reward and cost model can thereby be one set of weights: the reference is the model with no LoRA.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from textsafe_gym.errors import ModelError
from textsafe_gym.extras import require
from textsafe_gym.files import Row, read_json, write_json
from textsafe_gym.models.files import LORA_CONFIG, check_source, find_file, load_pretrained, load_tokenizer, one_line
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"  # PEFT's name
_SETTINGS = "textsafe.json"  # what a whole model keeps in its config.json; PEFT wants none in a LoRA's folder
_PREFIX = "base_model.model."  # that PEFT puts before every name
_loaded: "WeakValueDictionary[tuple[str, str, str], PreTrainedModel]" = WeakValueDictionary()


def is_lora(source: str | Path) -> bool:
    """Whether a folder or hub id holds a LoRA in PEFT's format instead of a whole model."""
    return find_file(source, LORA_CONFIG) is not None


def base_of(source: str | Path, what: str) -> str:
    """The folder or hub id of the model that a LoRA is for.

    Raises:
        ModelError: the LoRA's config is damaged or names no model.
    """
    path = find_file(source, LORA_CONFIG)
    if path is None:
        raise ModelError(f"{what} '{source}' has no {LORA_CONFIG}")
    base = read_json(path, ModelError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{LORA_CONFIG} of {what} '{source}' names no base model; set its base_model_name_or_path")
    return base


def _file(source: str | Path, name: str) -> Path:
    path = find_file(source, name)
    if path is None:
        raise FileNotFoundError(f"there is no {name}")
    return path


def place_of(source: str | Path) -> str:
    """One name for a model however it is written: a folder's full path, or a hub id."""
    return str(Path(source).resolve()) if Path(source).is_dir() else str(source)


def settings_of(source: str | Path) -> Row:
    """What `save_lora` was given to keep; empty for a LoRA from elsewhere.

    Raises:
        ModelError: the file is damaged.
    """
    path = find_file(source, _SETTINGS)
    return {} if path is None else read_json(path, ModelError)


def shared_base(source: str | Path, what: str, device: str, dtype: str) -> "PreTrainedModel":
    """A frozen causal LM for LoRAs, loaded once in a process for as long as somebody holds it.

    Raises:
        ModelError: as `load_pretrained`.
    """
    key = (place_of(source), str(device), dtype)
    model = _loaded.get(key)
    if model is None:
        model = load_causal_lm(source, what, device, dtype).requires_grad_(False)
        _loaded[key] = model
    return model


def load_causal_lm(source: str | Path, what: str, device: str, dtype: str) -> "PreTrainedModel":
    """`load_pretrained`, for LoRAs as well: one is loaded with its base model and merged into it.

    Raises:
        ModelError: either is missing or damaged, or the LoRA's folder holds tensors that are of no LoRA.
    """
    from transformers import AutoModelForCausalLM

    if not is_lora(source):
        return load_pretrained(AutoModelForCausalLM, source, what, device, dtype)
    model = load_causal_lm(base_of(source, what), what, device, dtype)
    others = add_saved(model, "merged", source, what)
    if others:
        raise ModelError(
            f"{what} '{source}' holds {len(others)} tensors besides a LoRA, first '{next(iter(others))}'; "
            "merge it into its base model and give the whole model"
        )
    merge(model, "merged")
    model.name_or_path = str(source)
    return model


def add_new(
    model: "PreTrainedModel", name: str, rank: int, alpha: int, modules: str | list[str] = "all-linear"
) -> None:
    """Adds a LoRA whose products are 0, at rest.

    Args:
        model: a Hugging Face model, changed in place.
        name: the LoRA's.
        rank: of the low-rank products.
        alpha: their weight is alpha / rank.
        modules: names of the layers to adapt; "all-linear" are all but the output embedding.

    Raises:
        ModelError: the rank is not positive, or the model has no such layers.
    """
    require("train")
    from peft import LoraConfig

    if rank < 1 or alpha <= 0:
        raise ModelError(f"lora_rank has to be a whole number above 0 and lora_alpha above 0, not {rank} and {alpha}")
    base = place_of(check_source(model.name_or_path, "base model")) if model.name_or_path else None
    _inject(model, name, LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, base_model_name_or_path=base))


def add_empty(model: "PreTrainedModel", name: str, source: str | Path, what: str) -> None:
    """Adds a LoRA of the shape of a saved one, at rest, whose products are 0.

    Raises:
        ModelError: its config is damaged, or of another architecture.
    """
    require("train")
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(str(_file(source, LORA_CONFIG).parent))
    except Exception as error:  # JSON and PEFT have types of their own
        raise ModelError(f"cannot load {what} '{source}': {one_line(error)}") from error
    config.modules_to_save, config.inference_mode = None, False
    _inject(model, name, config)


def add_saved(model: "PreTrainedModel", name: str, source: str | Path, what: str) -> dict[str, Tensor]:
    """Adds a LoRA as it was saved, at rest.

    Returns:
        Tensors of the file that belong to no low-rank product, such as a score model's head.

    Raises:
        ModelError: it is damaged, or of another architecture.
    """
    tensors = _tensors_of(source, what)
    add_empty(model, name, source, what)
    return _fill(model, name, tensors, source, what)


def load_saved(model: "PreTrainedModel", name: str, source: str | Path, what: str) -> None:
    """Puts the products of a saved LoRA into one of the same shape.

    Raises:
        ModelError: it is missing or damaged, or of another shape.
    """
    _fill(model, name, _tensors_of(source, what), source, what)


def _tensors_of(source: str | Path, what: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(_file(source, WEIGHTS))
    except Exception as error:  # safetensors has types of its own
        raise ModelError(f"cannot load {what} '{source}': {one_line(error)}") from error
    return {key.removeprefix(_PREFIX): x for key, x in tensors.items()}


def _fill(
    model: "PreTrainedModel", name: str, tensors: dict[str, Tensor], source: str | Path, what: str
) -> dict[str, Tensor]:
    """Sets a LoRA's products; returns the tensors that belong to none."""
    from peft import set_peft_model_state_dict

    low_rank = {key: x for key, x in tensors.items() if ".lora_" in key}
    try:
        report: Any = set_peft_model_state_dict(model, low_rank, adapter_name=name)
    except RuntimeError as error:
        raise ModelError(f"{what} '{source}' does not fit its base model: {one_line(error)}") from error
    missing = [key for key in report.missing_keys if f".{name}." in key]
    if missing or report.unexpected_keys:
        odd = [*missing, *report.unexpected_keys]
        raise ModelError(f"{what} '{source}' does not fit its base model: {len(odd)} names differ, first '{odd[0]}'")
    return {key: x for key, x in tensors.items() if key not in low_rank}


def tokenizer_of(source: str | Path, what: str) -> Tokenizer:
    """The tokenizer next to a model or a LoRA; a LoRA without one has its base model's.

    Raises:
        ModelError: as `load_tokenizer`.
    """
    if is_lora(source) and not any(find_file(source, f"tokenizer{end}") for end in (".json", "_config.json")):
        return tokenizer_of(base_of(source, what), what)
    return load_tokenizer(source, what)


def save_lora(
    model: "PreTrainedModel",
    name: str,
    directory: Path,
    task: str,
    settings: Mapping[str, object],
    more: dict[str, Tensor] | None = None,
) -> None:
    """Writes a LoRA in PEFT's format into an existing folder.

    Args:
        model: what holds it.
        name: the LoRA's.
        directory: the folder.
        task: PEFT's task type, "CAUSAL_LM" or "SEQ_CLS".
        settings: JSON values to keep next to it, for `settings_of`.
        more: further tensors by name, such as a score model's head.

    Raises:
        ModelError: the base model has no folder or hub id to refer to.
    """
    from peft import get_peft_model_state_dict

    config: Any = model.peft_config[name]
    if not config.base_model_name_or_path:
        raise ModelError("a LoRA is saved without its base model, which therefore has to lie in a folder or hub id")
    tensors = {**get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False), **(more or {})}
    config.task_type, config.inference_mode = task, True
    config.modules_to_save = sorted({key.split(".")[0] for key in more}) if more else None
    config.save_pretrained(directory)
    config.inference_mode = False
    save_file({_PREFIX + key: x.detach().cpu().contiguous() for key, x in tensors.items()}, directory / WEIGHTS)
    write_json(directory / _SETTINGS, settings)


def train(model: "PreTrainedModel", name: str) -> None:
    """Lets a LoRA act from now on and makes it all that is trainable of a model."""
    model.requires_grad_(False)
    for layer in _layers(model):
        layer.set_adapter([name])


@contextmanager
def acting_as(model: "PreTrainedModel", name: str | None) -> Iterator[None]:
    """Lets one LoRA act in the block, frozen unless it acts already, or none; afterwards those that did before."""
    layers = _layers(model)
    if all(layer.active_adapters == [name] and not layer.disable_adapters for layer in layers):
        yield
        return
    learning = [x for x in model.parameters() if x.requires_grad]
    before = [(list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    for layer in layers:
        if name is None:
            layer.enable_adapters(False)
        else:
            layer.enable_adapters(True)
            layer.set_adapter([name], inference_mode=True)
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        # PEFT lets all that acts learn, and what is at rest not.
        model.requires_grad_(False)
        for x in learning:
            x.requires_grad_(True)


def names_of(model: "PreTrainedModel") -> set[str]:
    """Names of the LoRAs that a model holds."""
    return set(getattr(model, "peft_config", {}))


@torch.no_grad()
def merge(model: "PreTrainedModel", name: str) -> None:
    """Adds a LoRA's products to the weights and takes its layers out; they must hold no other."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(adapter_names=[name])
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config


def _inject(model: "PreTrainedModel", name: str, config: "PeftConfig") -> None:
    """Adds the layers of a LoRA in float32, frozen and at rest; those that act and learn go on doing so."""
    from peft import inject_adapter_in_model

    acting = {layer: list(layer.active_adapters) for layer in _layers(model)}
    learning = {x for x in model.parameters() if x.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-2's layers are transposed, which PEFT sees for itself and says
            inject_adapter_in_model(config, model, name)
    except ValueError as error:
        raise ModelError(f"cannot add a LoRA to {type(model).__name__}: {one_line(error)}") from error
    layer: Any  # peft's class of them all has no types for the products
    for layer in _layers(model):
        layer.set_adapter(acting.get(layer, []))
        for part in (layer.lora_A, layer.lora_B):
            if name in part:
                part[name].float()
    for x in model.parameters():
        x.requires_grad_(x in learning)


def _layers(model: "PreTrainedModel") -> "list[BaseTunerLayer]":
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
