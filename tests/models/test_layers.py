"""The norm that takes the place of transformers' own."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.helpers.models_doubles import make_lm
from tests.helpers.rounding import TINY
from textsafe_gym.models.layers import FusedRMSNorm, fuse_norms


def norms(size: int, dtype: torch.dtype) -> tuple[LlamaRMSNorm, FusedRMSNorm]:
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(size, eps=1e-3).to(dtype)
    ours = FusedRMSNorm((size,), eps=1e-3, dtype=dtype)
    with torch.no_grad():
        theirs.weight.normal_()
        ours.weight.copy_(theirs.weight)
    return theirs, ours


@pytest.mark.parametrize("shape", [(3, 5, 16), (15, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_and_its_gradients_are_transformers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    # Two units in the last place of the largest number on either side: a sum of 16 and a handful of products round.
    units = 4 * torch.finfo(dtype).eps
    x = torch.randn(shape).to(dtype)
    slope = torch.randn(shape).to(dtype)
    found = []
    for norm in norms(16, dtype):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(slope)
        found.append((y, leaf.grad, norm.weight.grad))
        with torch.no_grad():
            torch.testing.assert_close(norm(leaf), y, atol=units * float(y.detach().abs().max()), rtol=0)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=units * float(theirs.detach().abs().max()), rtol=0)


def test_first_and_second_derivatives_are_finite_differences() -> None:
    norm = norms(4, torch.float64)[1]
    x, weight = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), norm.weight

    def apply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(apply, (x, weight))
    assert torch.autograd.gradgradcheck(apply, (x, weight))


def test_frozen_weight_has_no_gradient() -> None:
    norm = norms(4, torch.float32)[1].requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None


def test_all_norms_of_a_model_are_replaced() -> None:
    model = make_lm()
    before = sum(isinstance(x, LlamaRMSNorm) for x in model.modules())
    ids = torch.arange(3, 9)[None]
    wanted = model(ids).logits
    fuse_norms(model)
    assert before > 0
    assert not any(isinstance(x, LlamaRMSNorm) for x in model.modules())
    assert sum(isinstance(x, FusedRMSNorm) for x in model.modules()) == before
    torch.testing.assert_close(model(ids).logits, wanted, atol=TINY, rtol=0)
