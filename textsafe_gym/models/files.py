"""Reading and writing model folders: nothing in a file is executed, faults are one line, a folder appears whole."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym import files
from textsafe_gym.errors import ModelError
from textsafe_gym.models.texts import end_with_turn
from textsafe_gym.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
LORA_CONFIG = "adapter_config.json"  # PEFT's name
_ALIGNMENT = 64  # bytes, of torch's allocator on CPUs


def one_line(error: BaseException) -> str:
    """The first sentence of an exception's message, for a message that has to stay on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """As `textsafe_gym.files.new_directory`, for a model.

    Raises:
        ModelError: the place cannot be written.
    """
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(files.new_directory(directory))
        except OSError as error:
            raise ModelError(f"cannot write a model to '{directory}': {one_line(error)}") from error
        yield scratch


def check_source(source: str | Path, what: str) -> str:
    """The source as transformers takes it: an existing model folder, or what can be a hub id.

    Args:
        source: a folder with a `config.json` or an `adapter_config.json`, or a hub id such as `gpt2` or `owner/name`.
        what: what it should be, for the message ("policy", "reward model").

    Raises:
        ModelError: it is neither.
    """
    path = Path(source)
    if str(source) and path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", LORA_CONFIG)):
            raise ModelError(f"{what} '{path}' has no config.json; give a model folder in Hugging Face format")
        return str(path)
    if path.exists() or isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise ModelError(f"{what} '{source}' is not a folder; give a model folder in Hugging Face format or a hub id")
    return source


def find_file(source: str | Path, name: str) -> Path | None:
    """A file of a model's folder, or of a hub id from the hub or the cache; None where there is none or no answer."""
    path = Path(source)
    if path.exists() or isinstance(source, Path) or not HUB_ID.fullmatch(source):
        return path / name if (path / name).is_file() else None
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return _fetch(source, name)
    except (HfHubHTTPError, HFValidationError, OSError):
        return None  # what is needed and missing is reported by those who need it


@lru_cache
def _fetch(hub_id: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name))
    except RemoteEntryNotFoundError:
        return None


def cannot_load(what: str, source: str | Path, error: BaseException) -> ModelError:
    """The error to raise where a library could not load something."""
    from huggingface_hub.constants import is_offline_mode

    if isinstance(error, OSError) and is_offline_mode() and not Path(source).exists():
        return ModelError(
            f"cannot load {what} '{source}': no such folder; HF_HUB_OFFLINE is set and it is not in the cache; unset it"
        )
    return ModelError(f"cannot load {what} '{source}': {one_line(error)}")


def load_pretrained(
    auto_class: Any,
    source: str | Path,
    what: str,
    device: str = "cpu",
    dtype: str = "float32",
    may_miss: Sequence[str] = (),
    **options: object,
) -> "PreTrainedModel":
    """Loads a model from safetensors by a transformers `Auto…` class, in eval mode and complete.

    Args:
        auto_class: for example `AutoModelForCausalLM`.
        source: a model folder or a hub id.
        what: what it should be, for messages.
        device: a torch device.
        dtype: a torch dtype's name.
        may_miss: prefixes of tensors that the files need not hold (a new head); they are initialised.
        **options: passed to `from_pretrained`.

    Raises:
        ModelError: the model is missing, corrupt, incomplete, not safetensors, or needs code of its own.
    """
    name = check_source(source, what)
    with quiet():
        try:
            model, report = auto_class.from_pretrained(
                name,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype,
                **options,
            )
            model = model.to(device)
        except Exception as error:
            # The reader and the file formats raise some ten unrelated types; all of them mean the same to a user.
            if isinstance(error, OSError) and "file named model.safetensors" in str(error):
                raise ModelError(
                    f"{what} '{source}' has no model.safetensors; a pytorch_model.bin may hold code and is not read: "
                    "convert it once by safetensors.torch.save_file(torch.load(OLD, weights_only=True), NEW)"
                ) from error
            raise cannot_load(what, source, error) from error
    missing = sorted(k for k in report["missing_keys"] if not k.startswith(tuple(may_miss)))
    odd = missing + sorted(str(k[0] if isinstance(k, tuple) else k) for k in report["mismatched_keys"])
    if odd:
        raise ModelError(f"{what} '{source}' lacks {len(odd)} tensors or has them in another shape, first '{odd[0]}'")
    return _aligned(model.eval())


def _aligned(model: "PreTrainedModel") -> "PreTrainedModel":
    """Copies the weights that lie at any place of a mapped file to where torch's allocator puts tensors.

    Kernels of some processors add in another order where the data begin at another place, so that the same weights,
    saved and loaded again, would differ in a score's last bit.
    """
    for x in (*model.parameters(), *model.buffers()):
        if x.device.type == "cpu" and x.data_ptr() % _ALIGNMENT:
            x.data = x.data.clone()
    return model


def load_config(source: str | Path, what: str) -> "PretrainedConfig":
    """Loads a model's config alone.

    Raises:
        ModelError: it is missing or corrupt.
    """
    from transformers import AutoConfig

    name = check_source(source, what)
    with quiet():
        try:
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:
            raise cannot_load(what, source, error) from error


def without_weights(auto_class: Any, source: str | Path, what: str, **options: object) -> "PreTrainedModel":
    """The model of a folder or hub id by its `config.json` alone, its tensors on torch's meta device, which holds none.

    Args:
        auto_class: for example `AutoModelForCausalLM`.
        source: a folder, of which no other file is read, or a hub id.
        what: what it should be, for messages.
        **options: changes to the config.

    Raises:
        ModelError: the config is missing or corrupt, or of an architecture that `auto_class` does not know.
    """
    import torch

    config = load_config(source, what)
    with quiet(), torch.device("meta"):
        try:
            for name, value in options.items():
                setattr(config, name, value)
            return auto_class.from_config(config, trust_remote_code=False)
        except Exception as error:
            raise ModelError(f"cannot plan for {what} '{source}': {one_line(error)}") from error


def load_tokenizer(source: str | Path, what: str) -> Tokenizer:
    """Loads the tokenizer that lies next to a model; its EOS becomes the token that ends a turn in its chat template.

    Raises:
        ModelError: it is missing or corrupt, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    name = check_source(source, what)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:
            raise cannot_load(f"the tokenizer of {what}", source, error) from error
    try:
        end_with_turn(tokenizer)
    except ModelError as error:
        raise ModelError(f"cannot use {what} '{source}': {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {what} '{source}' has no end-of-sequence token; set its eos_token")
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from printing reports and progress bars: what matters is raised as one line."""
    import torch
    from transformers.utils import logging as hf_logging

    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # or DeepSpeed, which transformers loads, says that it found none
    level, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()
