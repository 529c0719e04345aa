"""Statistics in blocks against the plain computation and against finite differences."""

import pytest
import torch

from tests.helpers.models_doubles import make_lm
from textsafe_gym.models import likelihood
from textsafe_gym.models.likelihood import LinearStatistics, has_linear_head, statistics


def problem(bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 4, dtype=dtype), torch.randn(7, 4, dtype=dtype)
    return hidden, weight, torch.randn(7, dtype=dtype) if bias else None, torch.randint(0, 6, (40,))


@pytest.fixture(autouse=True, params=["kept", "made again"])
def _small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_BLOCK", 16 * 6)  # 40 rows in three blocks, the last one short
    monkeypatch.setattr(likelihood, "_KEPT", 40 * 6 if request.param == "kept" else 40 * 6 - 1)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(bias: bool) -> None:
    hidden, weight, offset, actions = problem(bias)
    inputs = tuple(x.requires_grad_() for x in (hidden, weight, offset) if x is not None)

    def outputs(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return LinearStatistics.apply(given[0], given[1], given[2] if bias else None, actions, 0.7, 6)

    assert torch.autograd.gradcheck(outputs, inputs)
    for index in (0, 1):  # either output alone
        assert torch.autograd.gradcheck(lambda *given, i=index: outputs(*given)[i], inputs)


def test_values_are_the_plain_ones_and_frozen_parts_get_no_gradient() -> None:
    hidden, weight, bias, actions = problem(dtype=torch.float32)
    hidden.requires_grad_()
    log_probs, entropy = LinearStatistics.apply(hidden, weight, bias, actions, 0.7, 6)
    plain = statistics((hidden @ weight.T + bias)[:, :6] / 0.7, actions)
    torch.testing.assert_close((log_probs, entropy), plain)
    p = torch.softmax((hidden @ weight.T + bias)[:, :6] / 0.7, -1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1))
    (log_probs.sum() + entropy.sum()).backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize(("kind", "more"), [("llama", {}), ("gpt2", {}), ("gemma2", {"final_logit_softcapping": 30.0})])
def test_a_cap_on_logits_is_noticed(kind: str, more: dict[str, float]) -> None:
    assert has_linear_head(make_lm(kind, **more)) == (kind != "gemma2")
