import math

import pytest
import torch

from algos.core.groups import group_normalised, leave_one_out, others_mean, response_loss
from algos.core.objectives import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate_loss,
    clipped_value_loss,
    critic_losses,
    estimate,
    explained_variance,
    gae,
    masked_mean,
    mix_advantages,
    shape_with_kl,
    with_entropy,
)
from algos.core.optim import minibatches, schedule
from algos.core.settings import ClipConfig, CriticConfig, TrainingConfig
from tests.helpers.rounding import rounding
from textsafe_gym.types import Evaluation, Rollout

MASK = torch.tensor([[True, True, True], [True, False, False]])
NAN = float("nan")


def test_masked_mean_weighs_episodes_equally() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0], [5.0, NAN, math.inf]])
    assert masked_mean(x, MASK).item() == 4.0  # (9/3 + 5/1) / 2; a mean over steps would be 14/4


def test_kl_lowers_the_reward_and_raises_the_cost() -> None:
    old, reference, paid = torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.tensor([[0.5]])
    assert shape_with_kl(paid, old - reference, -0.1, 50.0).item() == pytest.approx(0.3)
    assert shape_with_kl(paid, old - reference, 0.1, 50.0).item() == pytest.approx(0.7)
    assert shape_with_kl(paid, old - reference, 0.1, 0.6).item() == pytest.approx(0.6)  # clamped after the KL
    assert shape_with_kl(paid, old - reference, -1.0, 0.6).item() == pytest.approx(-0.6)


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, NAN]])
    values = torch.tensor([[0.5, 1.0, 1.5], [2.0, NAN, NAN]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, gae_lambda=0.8)
    # From the end: δ2 = 3 - 1.5; δ1 = 2 + 0.9·1.5 - 1; δ0 = 1 + 0.9·1 - 0.5; each A = δ + 0.72·A'.
    a2, a1 = 1.5, 2.35 + 0.72 * 1.5
    a0 = 1.4 + 0.72 * a1
    expected = torch.tensor([[a0, a1, a2], [2.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 0.0]]))


def test_gae_bootstraps_only_where_an_episode_was_cut() -> None:
    rewards, values = torch.ones(2, 3), torch.zeros(2, 3)
    final = torch.tensor([10.0, 20.0])
    advantages, _ = gae(rewards, values, MASK, 0.5, 1.0, final)
    torch.testing.assert_close(advantages, torch.tensor([[1 + 0.5 + 0.25 + 1.25, 1 + 0.5 + 2.5, 6.0], [11.0, 0, 0]]))


def test_with_both_factors_one_the_return_is_the_sum_of_what_follows() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3), torch.randn(2, 3)
    _, returns = gae(rewards, values, MASK, 1.0, 1.0)
    torch.testing.assert_close(returns[0], rewards[0].flip(0).cumsum(0).flip(0))
    torch.testing.assert_close(returns[1], torch.tensor([rewards[1, 0], 0, 0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [(1.5, 1.0, -1.2, False), (1.5, -1.0, 1.5, True), (0.5, 1.0, -0.5, True), (0.5, -1.0, 0.8, False)],
)
def test_the_surrogate_is_pessimistic(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    value = clipped_surrogate_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-advantage * ratio if moves else 0.0)


def test_padding_reaches_neither_losses_nor_gradients() -> None:
    new = torch.tensor([[0.0, 0.1, 0.2], [0.3, 1000.0, -1000.0]], requires_grad=True)
    old = torch.tensor([[0.0, 0.0, 0.0], [0.0, -1000.0, 1000.0]])
    advantages, returns = torch.ones(2, 3), torch.ones(2, 3)
    loss = clipped_surrogate_loss(new, old, advantages, MASK, 0.2) + clipped_value_loss(new, old, returns, MASK, 5.0)
    loss.backward()
    assert new.grad is not None
    assert torch.isfinite(new.grad).all()
    assert (new.grad[~MASK] == 0).all()


def test_value_loss_takes_the_worse_of_clipped_and_free() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    one = torch.ones(1, 1)
    assert clipped_value_loss(3 * one, 0 * one, 3 * one, mask, 1.0).item() == 2.0  # clipped to 1: ½·(1 - 3)²
    assert clipped_value_loss(3 * one, 0 * one, 0 * one, mask, 1.0).item() == 4.5  # free: ½·3²


def test_a_costly_action_loses_advantage_and_the_scale_is_bounded() -> None:
    reward, cost = torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0])
    assert mix_advantages(reward, cost, 0.0).tolist() == [1.0, 1.0]
    assert mix_advantages(reward, cost, 1.0).tolist() == [-0.5, 1.5]
    torch.testing.assert_close(mix_advantages(reward, cost, 1e9), -cost)


def test_schedule() -> None:
    config = TrainingConfig(warmup_ratio=0.2)
    factors = [schedule(i, 10, config) for i in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors == sorted(factors[:2]) + sorted(factors[2:], reverse=True)
    assert factors[9] > 0
    assert schedule(9, 10, config.model_copy(update={"learning_rate_schedule": "constant"})) == 1.0


def test_minibatches_cover_each_epoch_once() -> None:
    config = TrainingConfig(epochs=2, minibatch_size=4)
    parts = list(minibatches(10, config.epochs, config.minibatch_size, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [4, 3, 3] * 2
    for epoch in (parts[:3], parts[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert torch.cat(parts[:3]).tolist() != torch.cat(parts[3:]).tolist()


def test_group_baselines_by_hand() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 7.0])
    groups = torch.tensor([0, 0, 0, 1, 1])
    assert others_mean(returns, groups).tolist() == [4.0, 3.5, 1.5, 7.0, 5.0]
    assert leave_one_out(returns, groups).tolist() == [-3.0, -1.5, 4.5, -2.0, 2.0]
    spread = [math.sqrt(7.0)] * 3 + [math.sqrt(2.0)] * 2  # of 1, 2, 6 about 3 and of 5, 7 about 6
    expected = [d / (s + 1e-6) for d, s in zip([-2, -1, 3, -1, 1], spread, strict=True)]
    assert group_normalised(returns, groups).tolist() == pytest.approx(expected, rel=rounding(terms=5))
    # Of equal numbers the mean may be another, by rounding, which their deviation would blow up.
    for size in (4, 8, 16):
        for value in torch.rand(50, generator=torch.Generator().manual_seed(0)):
            assert not group_normalised(value.expand(size).clone(), torch.zeros(size, dtype=torch.int64)).any()


def response(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(2, 3)
    batch = Rollout({}, zeros.long(), MASK, old, zeros, zeros)
    return response_loss(Evaluation(new, zeros), batch, torch.tensor([2.0, -1.0]), ClipConfig())[0]


def test_a_whole_response_has_one_ratio() -> None:
    new = torch.tensor([[0.1, 0.2, 0.3], [math.log(0.5), NAN, NAN]], requires_grad=True)
    old = torch.tensor([[0.0, 0.1, 0.2], [0.0, NAN, NAN]])
    loss = response(new, old)
    loss.backward()
    assert loss.item() == pytest.approx(-(2.0 * 1.2 - 0.8) / 2)  # e^0.3 is above 1.2, and 0.5 below 0.8
    assert new.grad is not None
    assert new.grad.abs().sum().item() == 0.0
    small = torch.tensor([[0.01, 0.02, 0.03], [0.0, NAN, NAN]], requires_grad=True)
    response(small, torch.zeros(2, 3)).backward()
    assert small.grad is not None
    assert small.grad[0].tolist() == pytest.approx([-math.exp(0.06)] * 3)
    assert small.grad[1].tolist() == pytest.approx([0.5, 0.0, 0.0])


def test_gae_steps_over_gaps() -> None:
    """Columns that the actor did not say are not steps: the same numbers as without them, in their own columns."""
    mask = torch.tensor([[True, False, False, True, True, False]])
    signal = torch.tensor([[1.0, NAN, NAN, 2.0, -1.0, NAN]])
    values = torch.tensor([[0.5, NAN, 9.0, 0.25, 2.0, NAN]])
    final = torch.tensor([3.0])
    dense = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(signal, values, mask, 0.9, 0.8, final)
    expected = gae(signal[mask][None], values[mask][None], dense, 0.9, 0.8, final)
    assert torch.equal(advantages[mask][None], expected[0])
    assert torch.equal(returns[mask][None], expected[1])
    assert advantages[~mask].abs().sum() == 0


def test_what_ppos_users_look_for() -> None:
    old = torch.tensor([[-1.0, -2.0, -0.5], [-0.25, NAN, NAN]])
    new = old + torch.tensor([[0.3, 0.1, -0.3], [0.1, NAN, NAN]])
    assert clip_fraction(new, old, MASK, 0.2).item() == pytest.approx((2 / 3 + 0) / 2)
    steps = [math.exp(x) - 1 - x for x in (0.3, 0.1, -0.3)]
    error = rounding(terms=1, scale=math.exp(0.3) - 1)  # the slope where it is steepest
    assert approximate_kl(new, old, MASK).item() == pytest.approx((sum(steps) / 3 + math.exp(0.1) - 1.1) / 2, abs=error)
    assert approximate_kl(old, old, MASK).item() == 0.0
    returns = torch.tensor([[1.0, 2.0, 3.0], [6.0, NAN, NAN]])
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(torch.full_like(returns, 7.0), returns, MASK) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(1 - 4)
    assert math.isnan(explained_variance(returns, torch.ones(2, 3), MASK))
    loss = torch.tensor(1.0)
    entropy = Evaluation(old, torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, NAN]]))
    assert with_entropy(loss, entropy, MASK, ClipConfig()) is loss
    assert with_entropy(loss, entropy, MASK, ClipConfig(entropy_coefficient=0.1)).item() == pytest.approx(1 - 0.1 * 3)


def test_each_critic_has_its_own_values_ends_and_returns() -> None:
    """Eight numbers of which no two are alike, so that none can stand for another."""
    one = torch.ones(1, 1)
    batch = Rollout(
        observations={},
        actions=one.long(),
        mask=one.bool(),
        log_probs=0 * one,
        rewards=0 * one,
        costs=0 * one,
        reward_values=2 * one,
        cost_values=3 * one,
        final_reward_values=torch.tensor([50.0]),
        final_cost_values=torch.tensor([70.0]),
    )
    config = CriticConfig(gamma=1.0, gae_lambda=1.0, clip_range_value=100.0, value_coefficient=0.1)
    estimates = estimate(batch, 11 * one, 17 * one, config)
    assert (estimates.reward.item(), estimates.reward_returns.item()) == (11 + 50 - 2, 11 + 50)
    assert (estimates.cost.item(), estimates.cost_returns.item()) == (17 + 70 - 3, 17 + 70)
    new = Evaluation(0 * one, 0 * one, reward_values=5 * one, cost_values=7 * one)
    loss, parts = critic_losses(new, batch, torch.tensor([0]), estimates, config)
    expected = 0.5 * (5 - 61) ** 2, 0.5 * (7 - 87) ** 2
    assert (parts["reward_critic_loss"].item(), parts["cost_critic_loss"].item()) == expected
    assert loss.item() == pytest.approx(0.1 * sum(expected))


def test_advantages_and_returns_carry_no_gradient() -> None:
    signal, values, final = (torch.ones(*shape, requires_grad=True) for shape in ((2, 3), (2, 3), (2,)))
    assert not any(x.requires_grad for x in gae(signal, values, MASK, 0.9, 0.9, final))
