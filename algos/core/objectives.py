"""Shaped rewards, advantages and losses: pure functions of (B, T) tensors, B episodes of at most T steps.

Sources: "Safe RLHF" (Dai et al., arXiv 2310.12773) and its official implementation, to whose numbers these functions
are tested; GAE is Schulman et al., arXiv 1506.02438; the clipped losses are PPO's, arXiv 1707.06347.
Entries outside a mask may hold anything finite or not; no result and no gradient depends on them.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over episodes of each episode's mean over its steps, so that a long episode weighs no more than a short one.

    Args:
        x: (B, T) float.
        mask: (B, T) bool, at least one true entry a row.

    Returns:
        A scalar.
    """
    return (x.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)).mean()


def shape_with_kl(
    signal: Tensor, log_probs: Tensor, reference_log_probs: Tensor, coefficient: float, clip: float
) -> Tensor:
    """`signal` plus `coefficient` times the k1 estimate of each step's KL to the reference, clamped to ±`clip`.

    A reward is shaped with a negative coefficient and a cost with a positive one: both then pull to the reference.

    Args:
        signal: (B, T), the reward or cost that the environment paid at each step.
        log_probs: (B, T), log π_old(a_t|s_t) of the policy that acted.
        reference_log_probs: (B, T), log π_ref(a_t|s_t).
        coefficient: weight of the KL, signed.
        clip: bound on the magnitude of each step's sum, > 0.

    Returns:
        (B, T).
    """
    return (signal + coefficient * (log_probs - reference_log_probs)).clamp(-clip, clip)


def gae(
    signal: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float, final_values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates of a reward or a cost, and the returns that its critic learns.

    δ_t = r_t + γ·V(s_{t+1}) - V(s_t);  A_t = δ_t + γ·λ·A_{t+1};  G_t = A_t + V(s_t).

    Args:
        signal: (B, T), shaped rewards or costs.
        values: (B, T), V(s_t) at collection.
        mask: (B, T) bool.
        gamma: discount, in [0, 1].
        gae_lambda: λ above, in [0, 1].
        final_values: (B,), V of the state after the last step where a limit from outside cut the episode, 0 where the
            MDP ended it; none stands for zeros.

    Returns:
        advantages, returns: (B, T) each, without gradient, 0 after the end of an episode.
    """
    signal = signal.detach().masked_fill(~mask, 0.0)
    values = values.detach().masked_fill(~mask, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if final_values is not None:
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        next_values[torch.arange(len(mask), device=last.device), last] = final_values.detach()
    deltas = signal + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    return advantages, advantages + values


def clipped_surrogate_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """PPO's actor loss, -mean min(ρ·A, clip(ρ, 1 ± `clip`)·A) with ρ = π(a|s) / π_old(a|s).

    Args:
        log_probs: (B, T), under the policy being trained; carries the gradient.
        old_log_probs: (B, T), at collection.
        advantages: (B, T).
        mask: (B, T) bool.
        clip: half-width of the trusted interval of ratios.

    Returns:
        A scalar to minimise.
    """
    # Masked before exp: an overflow in the padding would turn the gradient of the whole batch to NaN.
    ratios = (log_probs - old_log_probs).masked_fill(~mask, 0.0).exp()
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(1.0 - clip, 1.0 + clip) * advantages)
    return -masked_mean(surrogate, mask)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """A critic's loss, ½·mean max((V - G)², (clip(V, V_old ± `clip`) - G)²).

    Args:
        values: (B, T), of the critic being trained; carries the gradient.
        old_values: (B, T), at collection.
        returns: (B, T), the targets G.
        mask: (B, T) bool.
        clip: how far a value may move from the old one before the move stops to pay.

    Returns:
        A scalar to minimise.
    """
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * masked_mean(torch.maximum((values - returns).square(), (clipped - returns).square()), mask)
