"""Settings that all algorithms share, minibatches, and the optimiser: schedule, clipping, refusal of NaN."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from textsafe_gym.errors import RunError
from textsafe_gym.types import Policy


class TrainingConfig(BaseModel):
    """Budget, batches and optimiser; the defaults are the official Safe RLHF script's, on its eight devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="all randomness of a run follows from it")
    episodes: int = Field(
        4096, gt=0, description="episodes in all, rounded up to whole iterations; the learning rate spans them"
    )
    episodes_per_iteration: int = Field(128, gt=0, description="episodes collected before each update")
    epochs: int = Field(1, gt=0, description="passes over an iteration's episodes")
    minibatch_size: int = Field(128, gt=0, description="episodes in one optimiser step, at most")
    learning_rate: float = Field(1e-5, ge=0, description="AdamW's, for the actor")
    critic_learning_rate: float = Field(5e-6, ge=0, description="AdamW's, for critics, be they models or heads")
    learning_rate_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the iterations in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm of each parameter group is clipped to it")
    cost_limit: float | None = Field(None, description="largest allowed mean episode cost; none: the environment's own")


def minibatches(count: int, config: TrainingConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Int64 indices of each minibatch: `config.epochs` random orders of `count` episodes, each cut near-equally."""
    for _ in range(config.epochs):
        yield from torch.randperm(count, generator=generator).tensor_split(math.ceil(count / config.minibatch_size))


def schedule(iteration: int, iterations: int, config: TrainingConfig) -> float:
    """Factor on the rates in `iteration` (from 0) of `iterations`: linear warm-up, then cosine to 0 or constant."""
    warmup = math.ceil(config.warmup_ratio * iterations)
    if iteration < warmup:
        return (iteration + 1) / warmup
    if config.learning_rate_schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min((iteration - warmup) / max(iterations - warmup, 1), 1.0)))


class Optimizer:
    """AdamW over a policy's parameter groups, with per-group clipping; refuses to step on anything not finite.

    Args:
        policy: its groups "actor", "reward_critic", "cost_critic" are those of `Policy.parameter_groups`.
        config: rates, decay, clipping.
        iterations: over how many the schedule runs.
    """

    def __init__(self, policy: Policy, config: TrainingConfig, iterations: int) -> None:
        self.config = config
        self.iterations = iterations
        groups = [
            {
                "params": parameters,
                "name": name,
                "rate": config.learning_rate if name == "actor" else config.critic_learning_rate,
            }
            for name, parameters in policy.parameter_groups().items()
        ]
        self.adam = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )

    def begin(self, iteration: int) -> float:
        """Sets the learning rates of `iteration` (from 0); returns the actor's."""
        factor = schedule(iteration, self.iterations, self.config)
        for group in self.adam.param_groups:
            group["lr"] = factor * group["rate"]
        return factor * self.config.learning_rate

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`.

        Raises:
            RunError: the loss or a gradient is not finite; no parameter has been changed by this step.
        """
        advice = "no parameter was changed by this step; look at rewards and costs, or lower learning_rate"
        if not torch.isfinite(loss):
            raise RunError(f"the loss is {loss.item()}; {advice}")
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.adam.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm, foreach=True)
            if not torch.isfinite(norm):
                raise RunError(f"the gradient of '{group['name']}' has norm {norm.item()}; {advice}")
        self.adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's tensors, flat: "optimizer.PARAMETER_NUMBER.NAME"."""
        state = self.adam.state_dict()["state"]
        return {f"optimizer.{number}.{key}": x for number, entry in state.items() for key, x in entry.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; other keys are ignored."""
        entries: dict[int, dict[str, Tensor]] = {}
        for name, x in state.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                entries.setdefault(int(number), {})[key] = x
        self.adam.load_state_dict({"state": entries, "param_groups": self.adam.state_dict()["param_groups"]})
