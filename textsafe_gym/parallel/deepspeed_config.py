"""DeepSpeed's config files, checked before anything begins."""

import logging
import os
from difflib import get_close_matches
from pathlib import Path

import torch

from textsafe_gym.config import Faults, Settings, read_json_settings, validate
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import Row
from textsafe_gym.registry import nearest

GATHER = "gather_for_generation"  # textsafe's own setting
# What textsafe decides, and a file may therefore not.
_OURS = {"optimizer", "scheduler", "gradient_clipping", "train_batch_size", "gradient_accumulation_steps"}
_OURS |= {"train_micro_batch_size_per_gpu", "zero_allow_untested_optimizer", "fp16", "torch_autocast", "data_types"}
# DeepSpeed passes over a name that it does not know, so that a slip in one of these would go unseen.
_SECTIONS = {"activation_checkpointing", "aio", "bf16", "checkpoint", "comms_logger", "communication_data_type"}
_SECTIONS |= {"compile", "csv_monitor", "dump_state", "flops_profiler", "gradient_predivide_factor", "hybrid_engine"}
_SECTIONS |= {"memory_breakdown", "prescale_gradients", "sparse_gradients", "steps_per_print", "tensorboard"}
_SECTIONS |= {"textsafe", "timers", "wall_clock_breakdown", "wandb", "zero_force_ds_cpu_optimizer"}
_SECTIONS |= {"zero_optimization"}


def read_config(path: str | Path) -> Row:
    """A DeepSpeed config file.

    Raises:
        ConfigError: it cannot be read, or sets what textsafe sets.
    """
    settings = read_json_settings(path)
    config = settings.values
    faults = Faults()
    for name in config:
        where = settings.where((name,))
        with faults:
            if name in _OURS:
                raise ConfigError(f"{where}: '{name}' is set by textsafe; remove it, and use --set instead")
            if name not in _SECTIONS and get_close_matches(name, _SECTIONS, cutoff=0.8):
                raise ConfigError(f"{where}: unknown key '{name}'; {nearest(name, list(_SECTIONS))}")
    with faults:
        _check_zero(settings.section("zero_optimization"))
    faults.check()
    stage = config.get("zero_optimization", {}).get("stage", 0)
    own = config.get("textsafe", {})
    if not isinstance(own, dict) or own.keys() - {GATHER} or not isinstance(own.get(GATHER, True), bool):
        raise ConfigError(f"--deepspeed {path}: textsafe has to be an object with {GATHER}, true or false; not {own}")
    if not own.get(GATHER, True) and stage != 3:
        raise ConfigError(f"--deepspeed {path}: textsafe.{GATHER} = false needs ZeRO stage 3, not {stage}")
    return config


def _check_zero(settings: Settings) -> None:
    """Holds zero_optimization to DeepSpeed's own declaration of it, where DeepSpeed is installed.

    Raises:
        ConfigError: names each fault with its line.
    """
    stage = settings.values.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        place = settings.where(("stage",))
        raise ConfigError(f"{place}: zero_optimization.stage has to be 0, 1, 2 or 3, not {stage!r}")
    choose_accelerator()
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
        from deepspeed.utils import logger
    except ImportError:
        return  # `start` will say so
    logger.setLevel(logging.ERROR)
    validate(DeepSpeedZeroConfig, settings, "zero_optimization")


def choose_accelerator() -> None:
    """Keeps DeepSpeed from looking for a GPU where torch sees none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
