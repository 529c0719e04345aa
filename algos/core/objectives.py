"""Shaped rewards, advantages and losses: pure functions of (B, T) tensors, B episodes of at most T steps.

Sources: "Safe RLHF" (Dai et al., arXiv 2310.12773) and its official implementation, to whose numbers these functions
are tested; GAE is Schulman et al., arXiv 1506.02438; the clipped losses are PPO's, arXiv 1707.06347.
Entries outside a mask may hold anything finite or not; no result and no gradient depends on them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from textsafe_gym.types import Evaluation, Rollout

# From the policy's present view of a minibatch, and the index (b,) of its episodes, to the loss and what to report.
Losses = Callable[[Evaluation, Rollout, Tensor], tuple[Tensor, dict[str, Tensor]]]


class ClipConfig(BaseModel):
    """PPO's clip."""

    clip_range_ratio: float = Field(0.2, gt=0, description="PPO's clip on the ratio of new to old probability")


class CriticConfig(BaseModel):
    """Advantages from critics, and how critics learn; the defaults are the official Safe RLHF script's."""

    gamma: float = Field(1.0, ge=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    clip_range_value: float = Field(5.0, gt=0, description="how far a value may move from the old one in an update")
    value_coefficient: float = Field(1.0, ge=0, description="weight of the critics' losses beside the actor's")


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


def shaped_rewards(rollout: Rollout, kl_coefficient: float, clip: float) -> Tensor:
    """(B, T): the rollout's rewards less `kl_coefficient` times the KL, by `shape_with_kl`."""
    return shape_with_kl(rollout.rewards, rollout.log_probs, rollout.reference_log_probs, -kl_coefficient, clip)


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
    return masked_mean(clipped_ratio_term(log_probs, old_log_probs, -advantages, mask, clip), mask)


def clipped_ratio_term(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """(B, T): max(ρ·A, clip(ρ, 1 ± `clip`)·A) inside the mask, else 0; arguments as in `clipped_surrogate_loss`."""
    # Masked before exp: an overflow in the padding would turn the gradient of the whole batch to NaN.
    ratios = (log_probs - old_log_probs).masked_fill(~mask, 0.0).exp()
    return torch.maximum(ratios * advantages, ratios.clamp(1.0 - clip, 1.0 + clip) * advantages).masked_fill(~mask, 0.0)


def response_surrogate_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """`clipped_surrogate_loss` of whole episodes: ρ is the product over an episode's steps.

    Args:
        log_probs: (B, T), as for that.
        old_log_probs: (B, T), as for that.
        advantages: (B,), one an episode.
        mask: (B, T) bool.
        clip: half-width of the trusted interval of ratios.
    """
    new, old = ((x.masked_fill(~mask, 0.0)).sum(1, keepdim=True) for x in (log_probs, old_log_probs))
    return clipped_surrogate_loss(new, old, advantages[:, None], torch.ones_like(new, dtype=torch.bool), clip)


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


@dataclass(frozen=True)
class Estimates:
    """Advantages of both signals, and what their critics learn; each (B, T), without gradient, 0 outside the mask."""

    reward: Tensor
    reward_returns: Tensor
    cost: Tensor
    cost_returns: Tensor


def estimate(rollout: Rollout, rewards: Tensor, costs: Tensor, config: CriticConfig) -> Estimates:
    """`gae` of shaped rewards and costs (B, T) with the rollout's own values; discount and λ are the config's."""
    reward, reward_returns = gae(
        rewards, rollout.reward_values, rollout.mask, config.gamma, config.gae_lambda, rollout.final_reward_values
    )
    cost, cost_returns = gae(
        costs, rollout.cost_values, rollout.mask, config.gamma, config.gae_lambda, rollout.final_cost_values
    )
    return Estimates(reward, reward_returns, cost, cost_returns)


def critic_losses(
    new: Evaluation, batch: Rollout, index: Tensor, estimates: Estimates, config: CriticConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Both critics' `clipped_value_loss` on a minibatch of b episodes.

    Args:
        new: the policy's present view of the minibatch; carries the gradient.
        batch: the minibatch, with the values at collection.
        index: (b,) int64, its episodes among those of `estimates`.
        estimates: of the whole rollout.
        config: clip and weight.

    Returns:
        Their weighted sum, a scalar, and each for itself, to report.
    """
    clip = config.clip_range_value
    reward = clipped_value_loss(
        new.reward_values, batch.reward_values, estimates.reward_returns[index], batch.mask, clip
    )
    cost = clipped_value_loss(new.cost_values, batch.cost_values, estimates.cost_returns[index], batch.mask, clip)
    return config.value_coefficient * (reward + cost), {"reward_critic_loss": reward, "cost_critic_loss": cost}


def clipped_losses(advantages: Tensor, estimates: Estimates, clip: float, config: CriticConfig) -> Losses:
    """PPO's losses on a minibatch: the clipped surrogate of the advantages, and both critics'.

    Args:
        advantages: (B, T), of the whole rollout.
        estimates: of the whole rollout, for the critics.
        clip: half-width of the trusted interval of ratios.
        config: of the critics.

    Returns:
        What `Optimizer.descend` takes.
    """

    def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        actor = clipped_surrogate_loss(new.log_probs, batch.log_probs, advantages[index], batch.mask, clip)
        critics, parts = critic_losses(new, batch, index, estimates, config)
        return actor + critics, {"actor_loss": actor, **parts}

    return losses


def mix_advantages(reward: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """The Lagrangian's advantage (A_R - λ·A_C) / (1 + λ), whose scale does not grow with λ.

    Args:
        reward: A_R, of any shape.
        cost: A_C, of the same.
        multiplier: λ >= 0.
    """
    return (reward - multiplier * cost) / (1.0 + multiplier)


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
    """(B,): each episode's return (B,) less the mean of its group."""
    sizes, sums = _group_sums(returns, groups)
    return returns - sums / sizes


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
