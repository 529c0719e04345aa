"""What all algorithms share of stepping an agent: minibatches and their parts, the schedule, AdamW, PTX."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from algos.core.objectives import approximate_kl, masked_mean
from algos.core.settings import CriticConfig, StepConfig
from textsafe_gym.protocols import OfflineData, Rows, State
from textsafe_gym.types import Evaluation, Rollout

if TYPE_CHECKING:
    from algos.core.loop import Setup

CRITICS = ("reward_critic", "cost_critic")

Batch = TypeVar("Batch", bound=Rows)
Losses = Callable[[Evaluation, Batch, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From an agent's view of a minibatch, the minibatch and the index (b,) of its rows to the loss and what to report."""


def minibatches(count: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Int64 indices of each minibatch: `epochs` random orders of `count` rows, each cut evenly to at most `size`."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).tensor_split(math.ceil(count / size))


def schedule(iteration: int, iterations: int, config: StepConfig) -> float:
    """Factor on the rates in `iteration` (from 0) of `iterations`: linear warm-up, then cosine to 0 or constant."""
    warmup = math.ceil(config.warmup_ratio * iterations)
    if iteration < warmup:
        return (iteration + 1) / warmup
    if config.learning_rate_schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min((iteration - warmup) / max(iterations - warmup, 1), 1.0)))


class Optimizer:
    """Steps an agent down losses, minibatch by minibatch, at scheduled rates.

    Args:
        setup: agent, rates, minibatches, schedule and demonstrations.
        parts: how often an iteration calls `train`.
    """

    def __init__(self, setup: "Setup", parts: int = 1) -> None:
        config = setup.config
        self.config = config
        self.iterations = parts * setup.iterations
        self.demonstrations = setup.demonstrations if setup.demonstrations and config.ptx_coefficient > 0 else None
        self.iteration = 0
        self.processes = setup.processes
        groups = setup.agent.parameter_groups()
        critics = config.critic_learning_rate if isinstance(config, CriticConfig) else config.learning_rate
        rates = {name: critics if name in CRITICS else config.learning_rate for name in groups}
        self.engine = setup.processes.engine(setup.agent, rates, config.weight_decay)

    def train(
        self,
        batch: Batch,
        losses: Losses[Batch],
        generator: torch.Generator,
        only: Collection[str] = (),
        is_mean: bool = True,
        target_kl: float | None = None,
    ) -> dict[str, float]:
        """An iteration's steps: for each minibatch one down the loss, then one on demonstrations.

        Args:
            batch: what the minibatches are taken from: a rollout, or data that were there already.
            losses: called with the agent's view of each minibatch, or of each of its parts.
            generator: draws the minibatches and the demonstrations.
            only: parameter groups to train on the loss, where not all.
            is_mean: the loss is a mean over episodes, so that those of a minibatch's parts add up to it. One that is
                not costs a minibatch in parts a second forward pass.
            target_kl: no further step is made once the approximate KL to the policy that played exceeds 1.5 times it.

        Returns:
            Means over the minibatches of what `losses` reports, of `entropy`, `approximate_kl`, `ptx_loss` and each
            group's `GROUP_grad_norm` before clipping; the `learning_rate`; with `target_kl`, the `steps` made. The
            minibatch that `target_kl` ends them at counts, but for what its step would have reported.

        Raises:
            RunError: a loss or gradient is not finite.
        """
        factor = schedule(self.iteration, self.iterations, self.config)
        for group in self.engine.param_groups:
            group["lr"] = factor * group["rate"]
        self.engine.zero_grad()  # of a step that was refused
        rows: list[dict[str, float]] = []
        steps = 0
        epochs = self.config.epochs if isinstance(batch, Rollout) else 1  # other sources repeat their rows themselves
        for index in minibatches(len(batch), epochs, self.config.minibatch_size, generator):
            at_once = len(index) <= self.config.at_once and self.processes.world_size == 1
            accumulate = self._accumulate if is_mean or at_once else self._accumulate_coupled
            with self.engine.training(only):
                row = accumulate(batch, losses, index)
                rows.append(row)
                if len(rows) > 1 and target_kl is not None and row["approximate_kl"] > 1.5 * target_kl:
                    self.engine.zero_grad()
                    break
                row |= {f"{name}_grad_norm": norm for name, norm in self.engine.step(self.config.max_grad_norm).items()}
            if self.demonstrations is not None:
                row["ptx_loss"] = self._imitate(self.demonstrations, len(index), generator)
            steps += 1
        self.iteration += 1
        found = {name: [row[name] for row in rows if name in row] for name in rows[0]}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        made = {} if target_kl is None else {"steps": float(steps)}
        return {**means, **made, "learning_rate": factor * self.config.learning_rate}

    def state_dict(self) -> State:
        """The engine's tensors and the number of iterations done."""
        return {**self.engine.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: State) -> None:
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

    def _accumulate(self, batch: Batch, losses: Losses[Batch], index: Tensor) -> dict[str, float]:
        """Adds up the gradient of the loss on the minibatch `index`; returns what it reports."""
        row: dict[str, float] = {}
        parts = self._parts(batch.lengths.cpu(), index)
        for number, (part, weight) in enumerate(parts):
            own = batch[part]
            new = self.engine.evaluate(*own.inputs, number == len(parts) - 1)
            loss, reports = losses(new, own, part)
            self.engine.backward(loss * weight)
            for name, value in {**reports, **_of_the_actor(new, own)}.items():
                row[name] = row.get(name, 0.0) + weight * value.item()
        return self.processes.all_reduce(row)

    def _accumulate_coupled(self, batch: Batch, losses: Losses[Batch], index: Tensor) -> dict[str, float]:
        """`_accumulate` for a loss that couples the rows of a minibatch.

        All of it is evaluated first, the loss is differentiated by what the agent said of each step, and a second
        pass carries that to the parameters.
        """
        minibatch = batch[index]
        with torch.no_grad():
            seen = [self._view(batch[part], True) for part in index.split(self.config.at_once)]
        leaves = {name: torch.cat([view[name] for view in seen]).requires_grad_() for name in seen[0]}
        loss, reports = losses(Evaluation(**leaves), minibatch, index)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        parts = self._parts(batch.lengths.cpu(), index)
        for number, (part, weight) in enumerate(parts):
            rows = (part[:, None] == index).int().argmax(1)
            again = self._view(batch[part], number == len(parts) - 1).values()
            carried = torch.stack([(x * slope[rows]).sum() for x, slope in zip(again, slopes, strict=True)])
            self.engine.backward(carried.sum() * float(weight > 0))
        detached = Evaluation(**{name: x.detach() for name, x in leaves.items()})
        return {name: value.item() for name, value in {**reports, **_of_the_actor(detached, minibatch)}.items()}

    def _view(self, batch: Rows, last: bool) -> dict[str, Tensor]:
        observations, actions, mask = batch.inputs
        new = self.engine.evaluate(observations, actions, mask, last)
        return {name: x for name, x in vars(new).items() if x is not None}

    def _imitate(self, demonstrations: OfflineData, count: int, generator: torch.Generator) -> float:
        index = torch.randint(len(demonstrations), (count,), generator=generator)
        total = 0.0
        parts = self._parts(demonstrations.lengths.cpu(), index)
        with self.engine.training(("actor",)):
            for number, (part, weight) in enumerate(parts):
                shown = demonstrations[part]
                spoken = self.engine.evaluate(*shown.inputs, number == len(parts) - 1)
                loss = -masked_mean(spoken.log_probs, shown.inputs[2])
                self.engine.backward(weight * self.config.ptx_coefficient * loss)
                total += weight * loss.item()
            self.engine.step(self.config.max_grad_norm)
        return self.processes.all_reduce({"loss": total})["loss"]


def _of_the_actor(new: Evaluation, batch: Rows) -> dict[str, Tensor]:
    entropy = {"entropy": masked_mean(new.entropy.detach(), batch.inputs[2])}
    if not isinstance(batch, Rollout):
        return entropy
    return {**entropy, "approximate_kl": approximate_kl(new.log_probs, batch.log_probs, batch.mask)}
