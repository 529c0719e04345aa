"""What all algorithms share of stepping a policy: settings, minibatches and their parts, schedule, AdamW, PTX."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from algos.core.objectives import Losses, masked_mean
from textsafe_gym.parallel.process_group import ProcessGroup, SingleProcess
from textsafe_gym.types import Demonstrations, Evaluation, Policy, Rollout

CRITICS = ("reward_critic", "cost_critic")
OwnConfig = TypeVar("OwnConfig", bound="TrainingConfig")


class TrainingConfig(BaseModel):
    """Budget, batches, optimiser and KL; the defaults are the official Safe RLHF script's, on its eight devices."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**63, description="all randomness of a run follows from it")
    episodes: int = Field(
        4096, gt=0, description="episodes in all, rounded up to whole iterations; the learning rate spans them"
    )
    episodes_per_iteration: int = Field(128, gt=0, description="episodes collected before each update")
    group_size: int = Field(1, gt=0, description="episodes that begin in the same state, as answers to one prompt")
    epochs: int = Field(1, gt=0, description="passes over an iteration's episodes")
    minibatch_size: int = Field(128, gt=0, description="episodes in one optimiser step, at most")
    micro_batch_size: int | None = Field(
        None, gt=0, description="episodes in one pass of it, at most; gradients add up to the same step; none: all"
    )
    learning_rate: float = Field(1e-5, ge=0, description="AdamW's, for the actor")
    critic_learning_rate: float = Field(5e-6, ge=0, description="AdamW's, for critics, be they models or heads")
    learning_rate_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the iterations in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm of each parameter group is clipped to it")
    ptx_coefficient: float = Field(16.0, ge=0, description="weight of the cross-entropy on demonstrations, where given")
    kl_coefficient: float = Field(0.02, ge=0, description="weight of each step's KL, taken off the reward")
    clip_range_score: float = Field(50.0, gt=0, description="bound on each step's shaped reward and cost")
    cost_limit: float | None = Field(None, description="largest allowed mean episode cost; none: the environment's own")

    @property
    def at_once(self) -> int:
        """Episodes in one pass of the policy."""
        return min(self.micro_batch_size or self.minibatch_size, self.minibatch_size)

    @model_validator(mode="after")
    def _check_groups(self) -> "TrainingConfig":
        if self.episodes_per_iteration % self.group_size:
            raise ValueError(
                f"group_size = {self.group_size} does not divide episodes_per_iteration = {self.episodes_per_iteration}"
            )
        return self


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


@dataclass(frozen=True)
class Setup(Generic[OwnConfig]):
    """What every algorithm is made from.

    Attributes:
        policy: actor and two critics; an algorithm without critics leaves them as they are.
        config: settings.
        cost_limit: the largest allowed mean episode cost; none: there is no limit, which a constrained method refuses.
        iterations: how many updates are planned; the learning rate is scheduled over them.
        demonstrations: for the PTX term; without them there is none.
        processes: the processes that train together.
        env: what the policy plays in, for an algorithm that has to know its spaces.
    """

    policy: Policy
    config: OwnConfig
    cost_limit: float | None
    iterations: int
    demonstrations: Demonstrations | None = None
    processes: ProcessGroup = field(default_factory=SingleProcess)
    env: Any = None


class Optimizer:
    """Walks a policy down losses, minibatch by minibatch, at scheduled rates.

    Args:
        setup: policy, rates, minibatches, schedule and demonstrations.
        parts: how often an iteration calls `descend`.
    """

    def __init__(self, setup: Setup[Any], parts: int = 1) -> None:
        config = setup.config
        self.config = config
        self.iterations = parts * setup.iterations
        self.demonstrations = setup.demonstrations if config.ptx_coefficient > 0 else None
        self.iteration = 0
        self.processes = setup.processes
        rates = {"actor": config.learning_rate, **dict.fromkeys(CRITICS, config.critic_learning_rate)}
        self.engine = setup.processes.engine(setup.policy, rates, config.weight_decay)

    def descend(
        self,
        rollout: Rollout,
        losses: Losses,
        generator: torch.Generator,
        only: Collection[str] = (),
        is_mean: bool = True,
    ) -> dict[str, float]:
        """An iteration's steps: for each minibatch one down the loss, then one on demonstrations.

        Args:
            rollout: what the minibatches are taken from.
            losses: called with the policy's view of each minibatch, or of each of its parts.
            generator: draws the minibatches and the demonstrations.
            only: parameter groups to train on the loss, where not all.
            is_mean: the loss is a mean over episodes, so that those of a minibatch's parts add up to it. One that is
                not costs a minibatch in parts a second forward pass.

        Returns:
            Means over the minibatches of what `losses` reports, of `entropy` and `ptx_loss`, and the `learning_rate`.

        Raises:
            RunError: a loss or gradient is not finite.
        """
        factor = schedule(self.iteration, self.iterations, self.config)
        for group in self.engine.param_groups:
            group["lr"] = factor * group["rate"]
        self.engine.zero_grad()  # of a step that was refused
        rows: list[dict[str, float]] = []
        for index in minibatches(len(rollout), self.config, generator):
            at_once = len(index) <= self.config.at_once and self.processes.world_size == 1
            gather = self._gather if is_mean or at_once else self._gather_whole
            with self.engine.training(only):
                row = gather(rollout, losses, index)
                self.engine.step(self.config.max_grad_norm)
            if self.demonstrations is not None:
                row["ptx_loss"] = self._imitate(self.demonstrations, len(index), generator)
            rows.append(row)
        self.iteration += 1
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {**means, "learning_rate": factor * self.config.learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """The engine's tensors and the number of iterations done."""
        return {**self.engine.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.engine.load_state_dict({name: x for name, x in state.items() if name != "iteration"})
        self.iteration = state["iteration"]

    def _parts(self, lengths: Tensor, index: Tensor) -> list[tuple[Tensor, float]]:
        """What this process evaluates of a minibatch, as much as goes at once, and the weight of each in the mean.

        Parts are of episodes of like length, to pad little. Every process has equally many, if need be of weight 0.
        """
        mine = index.tensor_split(self.processes.world_size)[self.processes.rank]
        count = math.ceil(math.ceil(len(index) / self.processes.world_size) / self.config.at_once)
        if count > 1:
            mine = mine[lengths[mine].argsort(stable=True)]
        parts = mine.tensor_split(count)
        return [(part, len(part) / len(index)) if len(part) else (index[:1], 0.0) for part in parts]

    def _gather(self, rollout: Rollout, losses: Losses, index: Tensor) -> dict[str, float]:
        """Adds up the gradient of the loss on the minibatch `index`; returns what it reports."""
        row: dict[str, float] = {}
        parts = self._parts(rollout.lengths.cpu(), index)
        for number, (part, weight) in enumerate(parts):
            batch = rollout[part]
            new = self.engine.evaluate(batch.observations, batch.actions, batch.mask, number == len(parts) - 1)
            loss, reports = losses(new, batch, part)
            self.engine.backward(loss * weight)
            reports = {**reports, "entropy": masked_mean(new.entropy.detach(), batch.mask)}
            for name, value in reports.items():
                row[name] = row.get(name, 0.0) + weight * value.item()
        return self.processes.all_reduce(row)

    def _gather_whole(self, rollout: Rollout, losses: Losses, index: Tensor) -> dict[str, float]:
        """`_gather` for a loss that couples the episodes of a minibatch.

        All of it is evaluated first, the loss is differentiated by what the policy said of each step, and a second
        pass carries that to the parameters.
        """
        batch = rollout[index]
        with torch.no_grad():
            seen = [self._view(rollout[part], True) for part in index.split(self.config.at_once)]
        leaves = [torch.cat(column).requires_grad_() for column in zip(*seen, strict=True)]
        loss, reports = losses(Evaluation(*leaves), batch, index)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        parts = self._parts(rollout.lengths.cpu(), index)
        for number, (part, weight) in enumerate(parts):
            rows = (part[:, None] == index).int().argmax(1)
            again = self._view(rollout[part], number == len(parts) - 1)
            carried = torch.stack([(x * slope[rows]).sum() for x, slope in zip(again, slopes, strict=True)])
            self.engine.backward(carried.sum() * float(weight > 0))
        row = {name: value.item() for name, value in reports.items()}
        return {**row, "entropy": masked_mean(leaves[1].detach(), batch.mask).item()}

    def _view(self, batch: Rollout, last: bool) -> tuple[Tensor, ...]:
        new = self.engine.evaluate(batch.observations, batch.actions, batch.mask, last)
        return new.log_probs, new.entropy, new.reward_values, new.cost_values

    def _imitate(self, demonstrations: Demonstrations, count: int, generator: torch.Generator) -> float:
        index = torch.randint(len(demonstrations), (count,), generator=generator)
        total = 0.0
        parts = self._parts(demonstrations.mask.sum(1).cpu(), index)
        with self.engine.training(("actor",)):
            for number, (part, weight) in enumerate(parts):
                shown = demonstrations[part]
                spoken = self.engine.evaluate(shown.observations, shown.actions, shown.mask, number == len(parts) - 1)
                loss = -masked_mean(spoken.log_probs, shown.mask)
                self.engine.backward(weight * self.config.ptx_coefficient * loss)
                total += weight * loss.item()
            self.engine.step(self.config.max_grad_norm)
        return self.processes.all_reduce({"loss": total})["loss"]
