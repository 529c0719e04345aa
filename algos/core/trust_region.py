"""Steps inside a trust region: natural gradients by conjugate gradients, and a line search on the KL.

Source: Schulman et al., "Trust Region Policy Optimization", arXiv 1502.05477, appendix C.

Fisher-vector products are finite differences of the KL's gradient: F·v ≈ ∇KL(π_old‖π_{θ + εv}) / ε, as that gradient is
zero at θ itself. A step of that needs one forward and one backward pass, no second derivative (which fused attention
kernels lack), no graph that is kept from one product to the next, and works in chunks. A Gauss-Newton product would
need the Jacobian's product J·v by finite differences just the same, and a graph of all episodes kept for J's transpose.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from algos.core.optim import Optimizer
from algos.core.settings import TrustRegionConfig
from textsafe_gym.errors import RunError
from textsafe_gym.protocols import Actor
from textsafe_gym.types import Rollout

# Length of the finite difference, relative to that of the parameters.
_DIFFERENCE = 1e-4


@contextmanager
def trust_region(
    actor: Actor, rollout: Rollout, config: TrustRegionConfig, generator: torch.Generator, optimizer: Optimizer
) -> Iterator["TrustRegion"]:
    """The region around the policy that played a rollout; a step that is taken in the block stays unless it fails.

    A policy of less than float32 is float32 in the block, its frozen weights too: the difference below, a step and its
    KL are all smaller than the rounding of a bfloat16 number. What it steps from, and to, are the optimiser's float32
    copies. Its log-probs are made anew, as those of the rollout have that rounding in them.

    Args:
        actor: as it played the rollout.
        rollout: whole episodes.
        config: sizes.
        generator: chooses the episodes that the Fisher matrix is measured on.
        optimizer: of the actor.
    """
    at_once = optimizer.config.at_once
    with _in_float32(actor, optimizer.engine.copies) as widened:
        if widened:
            rollout = replace(rollout, log_probs=_log_probs(actor, rollout, at_once))
        region = TrustRegion(actor, rollout, config, generator, at_once)
        try:
            yield region
        except BaseException:
            region.move(None)
            raise


@contextmanager
def _in_float32(actor: Actor, copies: Mapping[nn.Parameter, Tensor]) -> Iterator[bool]:
    """Widens all narrower weights in the block, those that have a copy to that copy; afterwards that is what the
    parameter has become, and the parameter its rounding. Yields whether there was any."""
    narrow = {x: x.data for x in actor.parameters() if x.dtype in (torch.bfloat16, torch.float16)}
    try:
        for parameter, data in narrow.items():
            parameter.data = copies[parameter].clone() if parameter in copies else data.float()
        yield bool(narrow)
    finally:
        for parameter, data in narrow.items():
            if parameter in copies and parameter.dtype == torch.float32:
                copies[parameter].copy_(parameter.data)
                data.copy_(parameter.data)
            parameter.data = data


@torch.no_grad()
def _log_probs(actor: Actor, rollout: Rollout, at_once: int) -> Tensor:
    """(B, T) of the rollout's actions, as the actor is now."""
    parts = [rollout[index] for index in torch.arange(len(rollout)).split(at_once)]
    return torch.cat([actor.evaluate(part.observations, part.actions, part.mask).log_probs for part in parts])


class TrustRegion:
    """An actor's parameters θ as one vector, around the policy that played a rollout.

    Args:
        actor: as it played the rollout.
        rollout: whole episodes.
        config: sizes.
        generator: chooses the episodes that the Fisher matrix is measured on.
        at_once: episodes in one pass of the actor; matters for memory alone.
    """

    def __init__(
        self, actor: Actor, rollout: Rollout, config: TrustRegionConfig, generator: torch.Generator, at_once: int
    ) -> None:
        self.actor = actor
        self.config = config
        self.rollout = rollout
        self.parameters = actor.trained_parameters()
        self.start = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        self.chunks = list(torch.arange(len(rollout)).split(at_once))
        self.sample = torch.randperm(len(rollout), generator=generator)[: config.fisher_episodes].split(at_once)
        with torch.no_grad():
            self.old = [self._distributions(index) for index in self.chunks]
            self.old_sample = [self._distributions(index) for index in self.sample]

    def gradients(self, *advantages: Tensor) -> list[Tensor]:
        """(P,) each: of the `surrogates` at the policy that played."""
        totals = [torch.zeros_like(self.start) for _ in advantages]
        for index in self.chunks:
            for total, surrogate in zip(totals, self._surrogates(index, advantages), strict=True):
                total += self._gradient(surrogate, retain_graph=True)
        return totals

    @torch.no_grad()
    def surrogates(self, *advantages: Tensor) -> list[float]:
        """For each (B, T) of advantages the mean over episodes of Σ_t (ρ_t - 1)·A_t with ρ = π(a|s) / π_old(a|s): to
        first order, by how much the present policy's mean return is above the old one's."""
        parts = [self._surrogates(index, advantages) for index in self.chunks]
        return [math.fsum(part.item() for part in column) for column in zip(*parts, strict=True)]

    @torch.no_grad()
    def divergence(self) -> float:
        """KL(old‖present) in nats, the mean over all steps of all episodes."""
        return (
            math.fsum(self._divergence(*pair).item() for pair in zip(self.chunks, self.old, strict=True)) / self._steps
        )

    def fisher(self, vector: Tensor) -> Tensor:
        """(P,): the damped Fisher matrix at the old policy times `vector` (P,)."""
        length = vector.norm().item()
        if length == 0:
            return vector.clone()
        step = _DIFFERENCE * max(1.0, self.start.norm().item()) / length
        steps = sum(len(old) for old in self.old_sample)
        self.move(step * vector)
        gradient = torch.zeros_like(vector)
        for pair in zip(self.sample, self.old_sample, strict=True):
            gradient += self._gradient(self._divergence(*pair) / steps)
        self.move(None)
        return gradient / step + self.config.damping * vector

    def solve(self, vector: Tensor) -> Tensor:
        """(P,): F⁻¹·`vector` by conjugate gradients."""
        return conjugate_gradient(self.fisher, vector, self.config.conjugate_gradient_steps)

    def search(self, step: Tensor, acceptable: Callable[[], bool]) -> float:
        """Moves along `step` (P,), as far as the KL stays within its bound and `acceptable` holds there.

        Returns:
            The fraction of the step that was taken; 0 if the policy had to stay where it was.

        Raises:
            RunError: the step is not finite; nothing was moved.
        """
        if not torch.isfinite(step).all():
            raise RunError("the trust region's step is not finite; look at rewards and costs, or raise damping")
        fraction = 1.0
        for _ in range(self.config.backtracks + 1):
            self.move(fraction * step)
            if self.divergence() <= self.config.max_kl and acceptable():
                return fraction
            fraction *= self.config.backtrack_factor
        self.move(None)
        return 0.0

    @torch.no_grad()
    def move(self, step: Tensor | None) -> None:
        """Sets θ to where it started plus `step` (P,); none: to exactly where it started."""
        target = self.start if step is None else self.start + step
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, target.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    @property
    def _steps(self) -> int:
        return int(self.rollout.mask.sum())

    def _distributions(self, index: Tensor) -> Tensor:
        part = self.rollout[index]
        return self.actor.distributions(part.observations, part.actions, part.mask)

    def _divergence(self, index: Tensor, old: Tensor) -> Tensor:
        return self.actor.divergence(old, self._distributions(index)).sum()

    def _surrogates(self, index: Tensor, advantages: Sequence[Tensor]) -> list[Tensor]:
        part = self.rollout[index]
        new = self.actor.evaluate(part.observations, part.actions, part.mask).log_probs
        ratios = (new - part.log_probs).masked_fill(~part.mask, 0.0).exp()
        return [((ratios - 1) * own[index]).sum() / len(self.rollout) for own in advantages]

    def _gradient(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        gradients = torch.autograd.grad(
            loss, self.parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.reshape(-1) for gradient in gradients])


@torch.no_grad()
def by_episode(actor: Actor, rollout: Rollout, at_once: int) -> list[Tensor]:
    """For each of B episodes, `at_once` in a pass, the parameters of the present policy's distributions, (steps, D)."""
    found: list[Tensor] = []
    for index in torch.arange(len(rollout)).split(at_once):
        part = rollout[index]
        together = actor.distributions(part.observations, part.actions, part.mask)
        found += together.split(part.lengths.tolist())
    return found


def divergences(actor: Actor, batch: Rollout, others: list[Tensor]) -> Tensor:
    """(B, T), with gradients, 0 outside the mask: each step's KL(present‖other) in nats.

    Args:
        actor: the present one.
        batch: B episodes.
        others: the other policy's distributions, as from `by_episode`.
    """
    present = actor.distributions(batch.observations, batch.actions, batch.mask)
    apart = actor.divergence(present, torch.cat(others))
    return apart.new_zeros(batch.mask.shape).masked_scatter(batch.mask, apart)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], vector: Tensor, steps: int, tolerance: float = 1e-6
) -> Tensor:
    """X with `product`(x) ≈ `vector`, for a symmetric positive definite product.

    It ends early at a direction whose curvature is not positive, which only rounding, or too little damping, can bring.

    Args:
        product: from (P,) to (P,).
        vector: (P,).
        steps: at most.
        tolerance: on the residual's norm relative to the vector's, at which to stop.
    """
    x, residual = torch.zeros_like(vector), vector.clone()
    direction, squared = vector.clone(), vector.dot(vector)
    enough = tolerance**2 * squared
    for _ in range(steps):
        if squared <= enough:
            break
        image = product(direction)
        curvature = direction.dot(image)
        if not curvature > 0:
            break
        length = squared / curvature
        x += length * direction
        residual -= length * image
        before, squared = squared, residual.dot(residual)
        direction = residual + squared / before * direction
    return x


def inner(x: Tensor, y: Tensor) -> float:
    """The inner product of two vectors (P,), added up in float64: differences of such products decide on steps."""
    return x.double().dot(y.double()).item()


def radius(square: float, max_kl: float, of: str) -> float:
    """√(2δ / `square`), the factor that brings a vector F⁻¹v to the border of the trust region; 0 for v = 0.

    Args:
        square: vᵀF⁻¹v.
        max_kl: δ, in nats.
        of: v, for the message.

    Raises:
        RunError: `square` is negative or not finite, so that F, as measured, is not positive definite.
    """
    if not 0 <= square < math.inf:
        raise RunError(
            f"the Fisher matrix is not positive definite along the gradient of the {of}: its product is {square:.3g}; "
            "raise damping or fisher_episodes"
        )
    return math.sqrt(2 * max_kl / square) if square else 0.0
