"""Training one policy in many processes with DeepSpeed's ZeRO (Rajbhandari et al., arXiv 1910.02054).

Every process plays its share of an iteration's episodes; these are gathered, so that advantages, cost window and
multiplier come out the same in each; of every minibatch each process evaluates its part, and DeepSpeed averages the
gradients and steps. What is done here beyond that: clipping by parameter group, freezing of groups, checkpoints that do
not depend on the number of processes or the stage, and errors that name the process that is lost.

Some of DeepSpeed's private parts are used, which is why its version is bounded in pyproject.toml.
"""

import atexit
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td

from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.files import Row
from textsafe_gym.parallel.deepspeed_config import GATHER, choose_accelerator
from textsafe_gym.parallel.process_group import Thing
from textsafe_gym.parallel.zero_engine import Streamed, ZeroEngine
from textsafe_gym.protocols import Actor
from textsafe_gym.types import Agent

_MOMENTS = ("exp_avg", "exp_avg_sq")
_ROLL_CALL = 10.0  # seconds to answer after an exchange has failed


def start(config: Row, timeout: float = 600.0) -> "DeepSpeedProcesses":
    """Joins the processes that torchrun or deepspeed has started; a process started by neither is alone.

    Args:
        config: of DeepSpeed, as `read_config` gives it.
        timeout: seconds after which a process that does not come to a barrier or an exchange is taken for lost; has to
            be above the largest difference of the times that processes take for a rollout.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    gpu = torch.cuda.is_available()
    choose_accelerator()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    try:
        import deepspeed
        from deepspeed.utils import groups, logger
    except ImportError:
        raise ConfigError("DeepSpeed is not installed; pip install 'textsafe-gym[deepspeed]'") from None
    from torch.distributed.distributed_c10d import _set_pg_timeout

    logger.setLevel(logging.ERROR)
    # An extension that takes two minutes to compile and speeds up exchanges between processes on one CPU alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend, patience = "nccl" if gpu else "gloo", timedelta(seconds=timeout)
    if not td.is_initialized():
        td.init_process_group(backend, timeout=patience)
        if not gpu:
            # gloo's threads may let go of the last exchange's tensors only when the interpreter is gone, which aborts a
            # process that has done its work.
            atexit.register(_leave)
    deepspeed.init_distributed(backend, verbose=False, timeout=patience)
    # DeepSpeed trains on a clone of the group of all, which it makes with torch's default of 30 minutes.
    _set_pg_timeout(patience, groups._clone_world_group())
    return DeepSpeedProcesses(config, timeout)


class DeepSpeedProcesses:
    """A `ProcessGroup` of processes that `torchrun` or `deepspeed` started, over torch.distributed."""

    def __init__(self, config: Row, timeout: float) -> None:
        self.rank, self.world_size = td.get_rank(), td.get_world_size()
        self.config = config
        self.streams_layers = not config.get("textsafe", {}).get(GATHER, True)
        self.timeout = timeout
        # Through the store, which still answers when an exchange hangs, and names the missing in every process.
        self._store = td.PrefixStore("textsafe", td.distributed_c10d._get_default_store())
        self._barriers = 0

    def check(self, actor: Actor) -> None:
        """Refuses an actor of which more than layers would be whole, or whose passes differ, where layers are gathered.

        Raises:
            ConfigError: see above.
        """
        if not self.streams_layers:
            return
        if not isinstance(actor, Streamed) or not actor.lora:
            raise ConfigError(
                f"{GATHER} = false needs a language model whose reference is not a second model; set policy.lora_rank"
            )
        if len(actor.model.peft_config) > 1:
            raise ConfigError(
                f"{GATHER} = false needs score models with weights of their own, not LoRAs of the policy's base "
                "model, which would make other passes in each process; give whole models"
            )

    def engine(self, agent: Agent, rates: Mapping[str, float], weight_decay: float) -> "ZeroEngine":
        """Steps an agent's parameter groups; its weights are DeepSpeed's from now on."""
        return ZeroEngine(agent, rates, weight_decay, self)

    def all_gather(self, mine: Thing) -> list[Thing]:
        """What every process has, by rank."""
        found: list[Any] = [None] * self.world_size
        td.all_gather_object(found, mine)
        return found

    def all_reduce(self, row: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name; all have the same names."""
        sums = torch.tensor(list(row.values()), dtype=torch.float64, device=_device())
        td.all_reduce(sums)
        return dict(zip(row, sums.tolist(), strict=True))

    def barrier(self, where: str) -> None:
        """Waits for the others.

        Raises:
            RunError: one has not come in time.
        """
        self._barriers += 1
        self._answer(f"barrier/{self._barriers}", where, self.timeout)

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Calls the roll when an exchange fails in the block, for an error that names who is lost.

        Raises:
            RunError: see above.
        """
        try:
            yield
        except RunError:
            raise
        except RuntimeError as error:
            if re.search(r"gloo|nccl|connection|timed out|peer|socket", str(error), re.IGNORECASE):
                self._answer(f"roll/{self._barriers}", f"the roll call after an exchange failed in {where}", _ROLL_CALL)
            raise

    @contextmanager
    def together(self, where: str) -> Iterator[None]:
        """Fails in every process where it fails in one.

        Raises:
            RunError: in the others; it names the process and repeats its error.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        messages = self.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RunError(f"{where} failed in process {rank}: {message}")

    def _answer(self, call: str, where: str, seconds: float) -> None:
        keys = [f"{call}/{rank}" for rank in range(self.world_size)]
        self._store.set(keys[self.rank], where)
        try:
            self._store.wait(keys, timedelta(seconds=seconds))
        except (RuntimeError, td.DistError):
            try:
                missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            except (RuntimeError, td.DistError):
                missing = [0]  # which holds the store
            if missing:
                names = ", ".join(map(str, missing))
                raise RunError(
                    f"process {names} did not come to {where} within {seconds:g} s; --resume continues "
                    "from the last checkpoint"
                ) from None


def _leave() -> None:
    if td.is_initialized():
        td.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
