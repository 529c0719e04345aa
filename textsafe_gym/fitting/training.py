"""The plain training loop that all fits share: AdamW, cosine schedule with warm-up, batches of like length."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from textsafe_gym.errors import ConfigError

WARM_UP = 0.03
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
_WINDOW = 32  # batches that are sorted by length together: little padding, and still a fresh mix every epoch


def length_batches(
    lengths: Sequence[int], kinds: Sequence[object], minibatch_size: int, generator: np.random.Generator
) -> list[list[int]]:
    """One epoch's batches, in random order, each of rows of one kind and of like length.

    Args:
        lengths: tokens in each row.
        kinds: what each row is; rows of different kinds have different losses.
        minibatch_size: rows a batch.
        generator: decides the order.
    """
    batches = []
    for kind in dict.fromkeys(kinds):
        rows = generator.permutation([i for i, other in enumerate(kinds) if other == kind]).tolist()
        for start in range(0, len(rows), minibatch_size * _WINDOW):
            window = sorted(rows[start : start + minibatch_size * _WINDOW], key=lambda i: lengths[i])
            batches += [window[i : i + minibatch_size] for i in range(0, len(window), minibatch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def train(
    module: nn.Module,
    loss_of: Callable[[list[int]], Tensor],
    lengths: Sequence[int],
    kinds: Sequence[object],
    *,
    epochs: int,
    learning_rate: float,
    minibatch_size: int,
    seed: int,
    title: str,
    progress: bool = True,
) -> list[float]:
    """Minimises a loss over rows.

    Args:
        module: its parameters are trained.
        loss_of: the loss of a batch, given as row numbers.
        lengths: see `length_batches`.
        kinds: see `length_batches`.
        epochs: passes over the rows.
        learning_rate: its peak; linear warm-up over the first 3 % of steps, cosine to zero, weight decay 0.1 on
            matrices (the official implementation's settings).
        minibatch_size: rows a step.
        seed: of the order of rows.
        title: shown next to the progress bar.
        progress: show one.

    Returns:
        Each epoch's mean loss.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    if epochs == 0:
        return []
    generator = np.random.default_rng(seed)
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    epoch_batches = [length_batches(lengths, kinds, minibatch_size, generator) for _ in range(epochs)]
    steps = sum(map(len, epoch_batches))
    warm_up = max(1, math.ceil(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    module.train()
    means = []
    with _bar(progress) as bar:
        task = bar.add_task(title, total=steps, loss=float("nan"))
        for batches in epoch_batches:
            total, rows = 0.0, 0
            for batch in batches:
                loss = loss_of(batch)
                value = loss.item()
                if not math.isfinite(value):
                    raise ConfigError(
                        f"{title}: the loss became {value}; choose a lower learning rate than {learning_rate:g}"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(decayed + others, CLIP_NORM)
                optimizer.step()
                schedule.step()
                total, rows = total + value * len(batch), rows + len(batch)
                bar.update(task, advance=1, loss=total / rows)
            means.append(total / rows)
    module.eval()
    return means


def chunks_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, for passes in which the order does not matter."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
