"""Shaped rewards, advantages and losses: pure functions of (B, T) tensors, B episodes of at most T steps.

Sources: "Safe RLHF" (Dai et al., arXiv 2310.12773) and its official implementation, to whose numbers these functions
are tested; GAE is Schulman et al., arXiv 1506.02438; the clipped losses are PPO's, arXiv 1707.06347.
Entries outside a mask may hold anything finite or not; no result and no gradient depends on them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from algos.core.settings import ActorConfig, ClipConfig, CriticConfig
from textsafe_gym.errors import ConfigError
from textsafe_gym.types import Evaluation, Rollout

RolloutLosses = Callable[[Evaluation, Rollout, Tensor], tuple[Tensor, dict[str, Tensor]]]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over episodes of each episode's mean over its steps, so that a long episode weighs no more than a short one.

    Args:
        x: (B, T) float.
        mask: (B, T) bool, at least one true entry a row.

    Returns:
        A scalar.
    """
    mask = mask.to(x.device)  # as in `episode_sums`
    return (x.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)).mean()


def shape_with_kl(signal: Tensor, log_ratios: Tensor, coefficient: float, clip: float) -> Tensor:
    """`signal` plus `coefficient` times the k1 estimate of each step's KL to the reference, clamped to ±`clip`.

    A reward is shaped with a negative coefficient and a cost with a positive one: both then pull to the reference.

    Args:
        signal: (B, T), the reward or cost that the environment paid at each step.
        log_ratios: (B, T), log π_old(a_t|s_t) - log π_ref(a_t|s_t), as `Rollout.log_ratios`.
        coefficient: weight of the KL, signed.
        clip: bound on the magnitude of each step's sum, > 0.

    Returns:
        (B, T).
    """
    return (signal + coefficient * log_ratios).clamp(-clip, clip)


def shaped_rewards(rollout: Rollout, kl_coefficient: float, clip: float) -> Tensor:
    """(B, T): the rollout's rewards less `kl_coefficient` times the KL, by `shape_with_kl`."""
    return shape_with_kl(rollout.rewards, rollout.log_ratios, -kl_coefficient, clip)


def gae(
    signal: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float, final_values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates of a reward or a cost, and the returns that its critic learns.

    δ_t = r_t + γ·V(s_{t+1}) - V(s_t);  A_t = δ_t + γ·λ·A_{t+1};  G_t = A_t + V(s_t).

    The step after t is the row's next one inside the mask, however many columns lie between.

    Args:
        signal: (B, T), shaped rewards or costs.
        values: (B, T), V(s_t) at collection.
        mask: (B, T) bool.
        gamma: discount, in [0, 1].
        gae_lambda: λ above, in [0, 1].
        final_values: (B,), V of the state after the last step where a limit from outside cut the episode, 0 where the
            MDP ended it; none stands for zeros.

    Returns:
        advantages, returns: (B, T) each, without gradient, 0 outside the mask.
    """
    signal = signal.detach().masked_fill(~mask, 0.0)
    values = values.detach().masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    next_values = torch.zeros_like(running) if final_values is None else final_values.detach()
    for t in range(values.shape[1] - 1, -1, -1):
        step = mask[:, t]
        stepped = signal[:, t] + gamma * next_values - values[:, t] + gamma * gae_lambda * running
        running, next_values = torch.where(step, stepped, running), torch.where(step, values[:, t], next_values)
        advantages[:, t] = stepped.masked_fill(~step, 0.0)
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
    """Advantages of both signals, and what their critics learn; each (B, T), without gradient, 0 outside the mask.

    Attributes:
        metrics: the explained variance of each critic's values at collection.
    """

    reward: Tensor
    reward_returns: Tensor
    cost: Tensor
    cost_returns: Tensor
    metrics: dict[str, float]


def estimate(rollout: Rollout, rewards: Tensor, costs: Tensor, config: CriticConfig) -> Estimates:
    """`gae` of shaped rewards and costs (B, T) with the rollout's own values; discount and λ are the config's."""
    reward, reward_returns, reward_metrics = estimate_one(rollout, rewards, "reward", config)
    cost, cost_returns, cost_metrics = estimate_one(rollout, costs, "cost", config)
    return Estimates(reward, reward_returns, cost, cost_returns, {**reward_metrics, **cost_metrics})


def estimate_one(
    rollout: Rollout, signal: Tensor, kind: str, config: CriticConfig
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """`gae` of one shaped signal (B, T) with the values of its critic, "reward" or "cost".

    Returns:
        advantages (B, T), returns (B, T), and the metric `KIND_explained_variance`.
    """
    found = {"reward": rollout.reward_values, "cost": rollout.cost_values}[kind]
    finals = {"reward": rollout.final_reward_values, "cost": rollout.final_cost_values}[kind]
    if found is None:
        raise ConfigError(f"the rollout has no {kind}_values; collect it with that critic")
    advantages, returns = gae(signal, found, rollout.mask, config.gamma, config.gae_lambda, finals)
    return advantages, returns, {f"{kind}_explained_variance": explained_variance(found, returns, rollout.mask)}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var[G - V] / Var[G] over all steps: 1 for a perfect critic, 0 for a constant one, below 0 for a worse one.

    NaN where the returns do not vary.
    """
    missed, spread = (returns - values)[mask].double(), returns[mask].double()
    return float("nan") if len(spread) < 2 or spread.var() == 0 else 1 - (missed.var() / spread.var()).item()


def critic_losses(
    new: Evaluation, batch: Rollout, index: Tensor, estimates: Estimates, config: CriticConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Both critics' `clipped_value_loss` on a minibatch of b episodes.

    Args:
        new: the agent's present view of the minibatch; carries the gradient.
        batch: the minibatch, with the values at collection.
        index: (b,) int64, its episodes among those of `estimates`.
        estimates: of the whole rollout.
        config: clip and weight.

    Returns:
        Their weighted sum, a scalar, and each for itself, to report.
    """
    reward = critic_loss(new.reward_values, batch.reward_values, estimates.reward_returns[index], batch.mask, config)
    cost = critic_loss(new.cost_values, batch.cost_values, estimates.cost_returns[index], batch.mask, config)
    return config.value_coefficient * (reward + cost), {"reward_critic_loss": reward, "cost_critic_loss": cost}


def critic_loss(
    values: Tensor | None, old_values: Tensor | None, returns: Tensor, mask: Tensor, config: CriticConfig
) -> Tensor:
    """`clipped_value_loss` of a critic that has to be there."""
    if values is None or old_values is None:
        raise ConfigError("the rollout was collected without this critic's values")
    return clipped_value_loss(values, old_values, returns, mask, config.clip_range_value)


def actor_loss(
    new: Evaluation, batch: Rollout, advantages: Tensor, config: ClipConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's `clipped_surrogate_loss` on a minibatch, less the entropy where it has a weight.

    Args:
        new: the agent's present view of the minibatch; carries the gradient.
        batch: the minibatch.
        advantages: (b, T), of its episodes.
        config: the clip and the entropy's weight.

    Returns:
        The loss; and to report, `actor_loss` without the entropy and `clip_fraction`, the share of steps whose ratio
        lies outside the clip.
    """
    clip = config.clip_range_ratio
    surrogate = clipped_surrogate_loss(new.log_probs, batch.log_probs, advantages, batch.mask, clip)
    reports = {
        "actor_loss": surrogate,
        "clip_fraction": clip_fraction(new.log_probs, batch.log_probs, batch.mask, clip),
    }
    return with_entropy(surrogate, new, batch.mask, config), reports


def with_entropy(loss: Tensor, new: Evaluation, mask: Tensor, config: ActorConfig) -> Tensor:
    """A loss less `entropy_coefficient` times the mean entropy of a step."""
    if config.entropy_coefficient == 0:
        return loss
    return loss - config.entropy_coefficient * masked_mean(new.entropy, mask)


@torch.no_grad()
def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip: float) -> Tensor:
    """A scalar: the mean over episodes of the share of steps whose ratio is farther than `clip` from 1."""
    ratios = (log_probs - old_log_probs).masked_fill(~mask, 0.0).exp()
    return masked_mean(((ratios - 1).abs() > clip).float(), mask)


@torch.no_grad()
def approximate_kl(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """A scalar in nats: the mean over episodes and steps of (ρ - 1) - log ρ, an estimate of KL(old‖new) that is never
    negative (Schulman, "Approximating KL Divergence", 2020)."""
    logs = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    return masked_mean(logs.expm1() - logs, mask)


def clipped_losses(advantages: Tensor, estimates: Estimates, clip: ClipConfig, critics: CriticConfig) -> RolloutLosses:
    """PPO's losses on a minibatch: the clipped surrogate of the advantages, and both critics'.

    Args:
        advantages: (B, T), of the whole rollout.
        estimates: of the whole rollout, for the critics.
        clip: of the actor.
        critics: of the critics.

    Returns:
        What `Optimizer.train` takes.
    """

    def losses(new: Evaluation, batch: Rollout, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        actor, reports = actor_loss(new, batch, advantages[index], clip)
        critic, parts = critic_losses(new, batch, index, estimates, critics)
        return actor + critic, {**reports, **parts}

    return losses


def mix_advantages(reward: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """The Lagrangian's advantage (A_R - λ·A_C) / (1 + λ), whose scale does not grow with λ.

    Args:
        reward: A_R, of any shape.
        cost: A_C, of the same.
        multiplier: λ >= 0.
    """
    return (reward - multiplier * cost) / (1.0 + multiplier)
