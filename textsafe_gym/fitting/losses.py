"""The losses that reward and cost models are fitted with, as pure functions of scores.

Source: Safe RLHF (arXiv 2310.12773), equations 4 and 5, and its official implementation; reward high = helpful,
cost > 0 = harmful. Scores have shape (B, L): one a position, of which the sequence-wise form reads the last attended
one and the token-wise form those from the first differing token to the later of the two ends.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LossType = Literal["sequence", "token"]


def last_positions(mask: Tensor) -> Tensor:
    """(B,) int64: the index of each row's last attended token; mask (B, L), padded on either side."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * mask.bool()).argmax(dim=1)


def end_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """(B,): the scores (B, L) at each row's last attended token; mask (B, L)."""
    return scores.gather(1, last_positions(mask)[:, None]).squeeze(1)


def differing_window(first_ids: Tensor, first_mask: Tensor, second_ids: Tensor, second_mask: Tensor) -> Tensor:
    """(B, L) bool: from the first token in which two right-padded sequences differ to the later of their two ends.

    Args:
        first_ids: (B, L) int64.
        second_ids: the same of the second.
        first_mask: (B, L), true where attended.
        second_mask: the same of the second.
    """
    positions = torch.arange(first_ids.shape[1], device=first_ids.device)
    differs = first_ids != second_ids
    # Two equal answers (after truncation, say) have no window of their own: they are compared at their end.
    end = torch.maximum(last_positions(first_mask), last_positions(second_mask))
    start = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), end)
    return (positions >= start[:, None]) & (positions <= end[:, None])


def reward_loss(
    better_scores: Tensor,
    worse_scores: Tensor,
    better_ids: Tensor,
    worse_ids: Tensor,
    better_mask: Tensor,
    worse_mask: Tensor,
    loss_type: LossType = "sequence",
    regularization: float = 0.0,
) -> Tensor:
    """-log σ(r_w - r_l), plus μ times the mean of squared scores.

    Args:
        better_scores: (B, L) float.
        worse_scores: the same of the worse answer.
        better_ids: (B, L) int64, right-padded.
        worse_ids: the same of the worse answer.
        better_mask: (B, L), true where attended.
        worse_mask: the same of the worse answer.
        loss_type: "sequence" or "token".
        regularization: μ.

    Returns:
        The mean over the batch, a scalar.
    """
    if loss_type == "sequence":
        better, worse = end_scores(better_scores, better_mask), end_scores(worse_scores, worse_mask)
        loss = -logsigmoid(better - worse).mean()
        return loss + regularization * torch.stack([better, worse]).square().mean()
    window = differing_window(better_ids, better_mask, worse_ids, worse_mask)
    terms = -logsigmoid(better_scores - worse_scores)
    terms = terms + regularization * (better_scores.square() + worse_scores.square()) / 2
    return _row_means(terms, window).mean()


def cost_loss(
    safer_scores: Tensor,
    other_scores: Tensor,
    safer_ids: Tensor,
    other_ids: Tensor,
    safer_mask: Tensor,
    other_mask: Tensor,
    safer_is_safe: Tensor,
    other_is_safe: Tensor,
    loss_type: LossType = "sequence",
    regularization: float = 0.0,
) -> Tensor:
    """-log σ(c_other - c_safer) - log σ(s·c) of either answer (s = +1 if unsafe, -1 if safe), plus μ times c².

    The last two terms give a cost of zero its meaning.

    Args:
        safer_scores: (B, L) float.
        other_scores: the same of the other answer.
        safer_ids: (B, L) int64, right-padded.
        other_ids: the same of the other answer.
        safer_mask: (B, L), true where attended.
        other_mask: the same of the other answer.
        safer_is_safe: (B,) bool, the safety label of either answer.
        other_is_safe: the same of the other answer.
        loss_type: "sequence" or "token".
        regularization: μ.

    Returns:
        The mean over the batch, a scalar.
    """
    safer_sign = 1.0 - 2.0 * safer_is_safe.to(safer_scores.dtype)
    other_sign = 1.0 - 2.0 * other_is_safe.to(other_scores.dtype)
    if loss_type == "sequence":
        safer, other = end_scores(safer_scores, safer_mask), end_scores(other_scores, other_mask)
        terms = -logsigmoid(other - safer) - logsigmoid(safer_sign * safer) - logsigmoid(other_sign * other)
        return terms.mean() + regularization * torch.stack([safer, other]).square().mean()
    window = differing_window(safer_ids, safer_mask, other_ids, other_mask)
    terms = (
        -logsigmoid(other_scores - safer_scores)
        - logsigmoid(safer_sign[:, None] * safer_scores)
        - logsigmoid(other_sign[:, None] * other_scores)
        + regularization * (safer_scores.square() + other_scores.square()) / 2
    )
    return _row_means(terms, window).mean()


def label_loss(scores: Tensor, mask: Tensor, labels: Tensor, regularization: float = 0.0) -> Tensor:
    """Logistic loss of single labelled answers at their last token: -log σ(s·score), plus μ times squared scores.

    For a reward model the label says "good", for a cost model "unsafe"; these are the cost loss's sign terms alone.

    Args:
        scores: (B, L) float.
        mask: (B, L), true where attended.
        labels: (B,) bool.
        regularization: μ.

    Returns:
        The mean over the batch, a scalar.
    """
    ends = end_scores(scores, mask)
    signs = 2.0 * labels.to(ends.dtype) - 1.0
    return -logsigmoid(signs * ends).mean() + regularization * ends.square().mean()


def _row_means(terms: Tensor, window: Tensor) -> Tensor:
    """(B,): the mean of terms (B, L) over each row's window (B, L), which is never empty."""
    return torch.where(window, terms, 0.0).sum(1) / window.sum(1)
