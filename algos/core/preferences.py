"""What methods on labelled pairs share: the loss of a margin, in expectation over the label."""

from collections.abc import Callable

from torch import Tensor

from algos.core.optim import Losses
from textsafe_gym.offline.preferences import Preferences
from textsafe_gym.types import Evaluation, episode_sums


def preference_losses(loss: Callable[[Tensor], Tensor], kl_coefficient: float) -> Losses[Preferences]:
    """The mean over pairs of p·ℓ(m) + (1 - p)·ℓ(-m), with p the probability that the first response is preferred.

    The margin m is β·log(π/π_ref) of the first response less that of the second. All such methods differ in ℓ alone:
    Tang et al., arXiv 2402.05749.

    Args:
        loss: ℓ, from margins (N,) to losses (N,).
        kl_coefficient: β.

    Returns:
        For `Optimizer.train`. It reports `actor_loss`; `chosen_reward` and `rejected_reward`, the implicit rewards
        β·log(π/π_ref); `margin`, the first less the second; and `preference_accuracy`, the share of pairs whose more
        probable response has the larger one.
    """

    def losses(new: Evaluation, batch: Preferences, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs = episode_sums(new.log_probs, batch.inputs[2]).unflatten(0, (2, len(batch)))
        chosen, rejected = kl_coefficient * (log_probs - batch.reference_log_probs.to(log_probs))
        margin, p = chosen - rejected, batch.probability.to(log_probs)
        mean = (p * loss(margin) + (1 - p) * loss(-margin)).mean()
        reports = {
            "actor_loss": mean,
            "chosen_reward": chosen.mean(),
            "rejected_reward": rejected.mean(),
            "margin": margin.mean(),
            "preference_accuracy": (margin * (p - 0.5) > 0).float().mean(),
        }
        return mean, reports

    return losses
