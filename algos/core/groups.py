"""Advantages without critics, from the returns of several episodes that began alike, and the loss on whole episodes."""

import torch
from torch import Tensor

from algos.core.objectives import clip_fraction, clipped_surrogate_loss, with_entropy
from algos.core.settings import ClipConfig
from textsafe_gym.types import Evaluation, Rollout, episode_sums


def others_mean(returns: Tensor, groups: Tensor) -> Tensor:
    """(B,): for each episode, the mean of `returns` (B,) over the others of its group."""
    sizes, sums = _group_sums(returns, groups)
    return (sums - returns) / (sizes - 1)


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """Each episode's return less the mean of the others in its group (RLOO: Ahmadian et al., arXiv 2402.14740).

    Args:
        returns: (B,), one an episode.
        groups: (B,) int64, at least two episodes in each.

    Returns:
        (B,), without bias as an advantage, since no episode is in its own baseline.
    """
    return returns - others_mean(returns, groups)


def group_centred(returns: Tensor, groups: Tensor) -> Tensor:
    """(B,): each episode's return (B,) less the mean of its group; exactly 0 where all of a group are the same."""
    # The mean of equal numbers may differ from them by rounding, which a division by their deviation would blow up.
    least = returns.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, returns, "amin", include_self=False)
    above = returns - least[groups]
    sizes, sums = _group_sums(above, groups)
    return above - sums / sizes


def group_normalised(returns: Tensor, groups: Tensor) -> Tensor:
    """Each episode's return in standard deviations from its group's mean (GRPO: Shao et al., arXiv 2402.03300).

    Args:
        returns: (B,), one an episode.
        groups: (B,) int64, at least two episodes in each.

    Returns:
        (B,); 0 in a group whose returns are all the same.
    """
    centred = group_centred(returns, groups)
    sizes, squares = _group_sums(centred.square(), groups)
    return centred / ((squares / (sizes - 1)).sqrt() + 1e-6)


def _group_sums(x: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """For each episode (B,): the size of its group, and the group's sum of `x`."""
    count = int(groups.max()) + 1
    sums = x.new_zeros(count).index_add_(0, groups, x)
    sizes = torch.bincount(groups, minlength=count).to(x)
    return sizes[groups], sums[groups]


def response_loss(
    new: Evaluation, batch: Rollout, advantages: Tensor, config: ClipConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """`algos.core.objectives.actor_loss` where a whole episode is one action, whose ratio is the product of its steps'.

    Args:
        new: the agent's present view of the minibatch; carries the gradient.
        batch: the minibatch, of b episodes.
        advantages: (b,), one an episode.
        config: the clip and the entropy's weight.
    """
    clip = config.clip_range_ratio
    now, old = (episode_sums(x, batch.mask)[:, None] for x in (new.log_probs, batch.log_probs))
    one = torch.ones_like(now, dtype=torch.bool)
    surrogate = clipped_surrogate_loss(now, old, advantages[:, None], one, clip)
    reports = {"actor_loss": surrogate, "clip_fraction": clip_fraction(now, old, one, clip)}
    return with_entropy(surrogate, new, batch.mask, config), reports
