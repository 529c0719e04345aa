"""The decoder's layers, whatever the architecture calls them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textsafe_gym.errors import ModelError

Forward = Callable[..., object]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a Hugging Face decoder, from the first to the last.

    Raises:
        ModelError: it has no list of layers of one kind.
    """
    stacks = [list(stack) for stack in model.modules() if isinstance(stack, nn.ModuleList) and len(stack)]
    stacks = [stack for stack in stacks if len({type(layer) for layer in stack}) == 1]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no list of decoder layers")
    return max(stacks, key=lambda stack: sum(x.numel() for layer in stack for x in layer.parameters()))


class FusedRMSNorm(nn.RMSNorm):
    """torch's RMS norm, with a backward pass of few operations where no kernel does it (CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """Gives x / RMS(x) * weight, over the last axis."""
        exact = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)
        if exact and x.device.type == "cpu" and torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class _RMSNorm(torch.autograd.Function):
    """y = w·n with n = x/r, r² = mean(x²) + ε: ∂y/∂x takes a slope g to (g·w - n·mean(g·w·n)) / r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.epsilon = epsilon
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives, which have to see that it depends on x
            inverse = (x.square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt()
        normed = x * inverse
        slope = grads[0] * weight
        along = torch.linalg.vecdot(slope, normed).unsqueeze(-1) / x.shape[-1]
        by_weight = (grads[0] * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return torch.addcmul(slope, normed, along, value=-1) * inverse, by_weight, None


@torch.no_grad()
def fuse_norms(model: nn.Module) -> None:
    """Puts `FusedRMSNorm` in the place of transformers' norms, six operations each, wherever both agree on a trial."""
    for path, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None:
            continue
        fused = FusedRMSNorm(weight.shape, eps=epsilon, device="meta")
        fused.weight = weight
        trial = torch.randn(2, *weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        if torch.allclose(fused(trial), module(trial), atol=1e-5, rtol=torch.finfo(weight.dtype).eps * 4):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, fused)


def train_last(model: nn.Module, count: int) -> None:
    """Freezes all of a model but its last `count` layers.

    Raises:
        ModelError: it has fewer.
    """
    layers = decoder_layers(model)
    if not 1 <= count <= len(layers):
        raise ModelError(f"last_layers has to be from 1 to the model's {len(layers)} layers, not {count}")
    model.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)


def recompute_activations(model: nn.Module) -> None:
    """Makes each layer keep its input alone for the backward pass and compute the rest again (arXiv 1604.06174).

    Not by transformers' own switch, which works in training mode only, where dropout would be on as well.
    """
    for layer in decoder_layers(model):
        layer.forward = partial(_recomputed, layer.forward)


def compile_layers(model: nn.Module) -> None:
    """Compiles each layer for passes without a cache, when it is first run; generation stays as it is.

    The layers are compiled for all lengths and batch sizes at once, and as they are alike it costs as much as for one.
    """
    for layer in decoder_layers(model):
        layer.forward = partial(_compiled, torch.compile(layer.forward, dynamic=True), layer.forward)


def _compiled(compiled: Forward, plain: Forward, *args: object, **kwargs: object) -> object:
    return (plain if kwargs.get("past_key_values") is not None else compiled)(*args, **kwargs)


def _recomputed(forward: Forward, *args: object, **kwargs: Any) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
