"""Rollouts whose masks have gaps, and preferences: what is indexed, padded, joined and summed."""

from typing import Any

import pytest
import torch

from textsafe_gym.errors import ConfigError
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.offline.preferences import Preferences
from textsafe_gym.types import Rollout, episode_sums, group_numbers

MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)


def make(mask: torch.Tensor = MASK, prompt: int = 2, seed: int = 0, **more: Any) -> Any:
    """Numbers everywhere, in the gaps as well; `input_ids` as a language model has them, `observation` as an MLP."""
    rows, steps = mask.shape
    generator = torch.Generator().manual_seed(seed)

    def numbers() -> torch.Tensor:
        return torch.randn(rows, steps, generator=generator)

    observations = {
        "input_ids": torch.randint(1, 9, (rows, prompt + steps), generator=generator),
        "observation": torch.randn(rows, steps, 3, generator=generator),
    }
    actions = torch.randint(9, (rows, steps), generator=generator)
    return Rollout(observations, actions, mask, numbers(), numbers(), numbers(), **more)


def full(mask: torch.Tensor = MASK, seed: int = 0, **more: Any) -> Any:
    """With everything that is optional."""
    columns = torch.randn(4, *mask.shape, generator=torch.Generator().manual_seed(seed + 1))
    names = ("reference_log_probs", "reward_values", "cost_values")
    return make(
        mask,
        seed=seed,
        **dict(zip(names, columns, strict=False)),
        named_costs={"a": columns[3]},
        infos=[{"row": (seed, i)} for i in range(len(mask))],
        **more,
    )


def test_what_is_left_out_has_a_default() -> None:
    rollout = make()
    assert rollout.groups.tolist() == [0, 1, 2]
    assert rollout.groups.dtype == torch.int64
    assert list(rollout.infos) == [{}, {}, {}]
    rollout.infos[0]["own"] = 1
    assert rollout.infos[1] == {}
    assert rollout.named_costs == {}
    for name in ("reference_log_probs", "reward_values", "cost_values", "final_reward_values", "final_cost_values"):
        assert getattr(rollout, name) is None
    with pytest.raises(ConfigError, match="no reference_log_probs"):
        _ = rollout.log_ratios


def test_gaps_count_for_nothing() -> None:
    rollout = full()
    assert rollout.lengths.tolist() == [3, 2, 1]
    assert rollout.last_step.tolist() == [3, 4, 2]
    for x, sums in (
        (rollout.rewards, rollout.episode_rewards),
        (rollout.costs, rollout.episode_costs),
        (rollout.log_probs - rollout.reference_log_probs, rollout.episode_kl),
    ):
        expected = [sum(float(x[b, t]) for t in range(5) if MASK[b, t]) for b in range(3)]
        assert sums.tolist() == pytest.approx(expected)
    holes = rollout.rewards.masked_fill(~MASK, float("nan"))
    torch.testing.assert_close(episode_sums(holes, MASK), rollout.episode_rewards)
    torch.testing.assert_close(rollout.log_ratios, rollout.log_probs - rollout.reference_log_probs)
    assert [x is y for x, y in zip(rollout.inputs, (rollout.observations, rollout.actions, MASK), strict=True)]


def test_episodes_are_picked_whole() -> None:
    rollout = full(groups=torch.tensor([0, 0, 1]), final_reward_values=torch.tensor([1.0, 2.0, 3.0]))
    index = torch.tensor([2, 0, 2])
    part = rollout[index]
    assert len(part) == 3
    for name in ("actions", "mask", "log_probs", "rewards", "costs", "reference_log_probs", "reward_values", "groups"):
        assert torch.equal(getattr(part, name), getattr(rollout, name)[index])
    assert part.final_reward_values.tolist() == [3.0, 1.0, 3.0]
    assert part.final_cost_values is None
    assert [info["row"][1] for info in part.infos] == [2, 0, 2]
    for name, x in rollout.observations.items():
        assert torch.equal(part.observations[name], x[index])
    assert torch.equal(part.named_costs["a"], rollout.named_costs["a"][index])
    assert part.last_step.tolist() == [2, 3, 2]
    assert len(rollout[torch.tensor([], dtype=torch.int64)]) == 0


def test_wider_rows_are_the_same_episodes() -> None:
    rollout = full(final_reward_values=torch.ones(3))
    wide = rollout.padded(8)
    assert wide.mask.shape == wide.rewards.shape == wide.named_costs["a"].shape == (3, 8)
    assert not wide.mask[:, 5:].any()
    assert wide.last_step.tolist() == rollout.last_step.tolist()
    assert wide.lengths.tolist() == rollout.lengths.tolist()
    for name in ("episode_rewards", "episode_costs", "episode_kl", "groups", "final_reward_values"):
        torch.testing.assert_close(getattr(wide, name), getattr(rollout, name))
    # Action t still stands in column P + t of the ids, and in column t of an MLP's observations.
    assert wide.observations["input_ids"].shape == (3, 10)
    assert wide.observations["observation"].shape == (3, 8, 3)
    for name, x in rollout.observations.items():
        assert torch.equal(wide.observations[name][:, : x.shape[1]], x)
        assert wide.observations[name][:, x.shape[1] :].abs().sum() == 0
    assert list(wide.infos) == list(rollout.infos)
    assert rollout.padded(5) is rollout


def test_joined_rollouts_keep_episodes_and_groups_apart() -> None:
    narrow = full(MASK[:2, :3].index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(True)), seed=5,
                  groups=torch.tensor([0, 0]))  # fmt: skip
    wide = full(groups=torch.tensor([1, 0, 1]))
    joined = Rollout.concatenate([narrow, wide, narrow])
    assert len(joined) == 7
    assert joined.groups.tolist() == [0, 0, 2, 1, 2, 3, 3]
    assert joined.mask[:2].tolist() == narrow.padded(5).mask.tolist()
    assert torch.equal(joined.mask[2:5], MASK)
    assert torch.equal(joined.observations["input_ids"][2:5], wide.observations["input_ids"])
    for name in ("episode_rewards", "episode_costs", "episode_kl", "lengths", "last_step"):
        parts = [getattr(part, name) for part in (narrow, wide, narrow)]
        torch.testing.assert_close(getattr(joined, name), torch.cat(parts))
    assert [info["row"] for info in joined.infos] == [(5, 0), (5, 1), (0, 0), (0, 1), (0, 2), (5, 0), (5, 1)]
    assert joined.final_reward_values is joined.final_cost_values is None
    assert Rollout.concatenate([wide]) is wide


@pytest.mark.parametrize("first", [False, True])
def test_an_episode_that_was_cut_keeps_its_value_next_to_others(first: bool) -> None:
    cut, whole = full(final_cost_values=torch.tensor([1.0, 0.0, 2.0])), full(seed=3)
    parts = [cut, whole] if first else [whole, cut]
    joined: Any = Rollout.concatenate(parts)
    values = [[1.0, 0.0, 2.0], [0.0] * 3]
    assert joined.final_cost_values.tolist() == (values[0] + values[1] if first else values[1] + values[0])
    assert joined.final_reward_values is None


def test_groups_are_numbered() -> None:
    assert group_numbers(6, 2).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="group_size = 4 does not divide the 6 episodes"):
        group_numbers(6, 4)


def test_demonstrations_are_picked_whole() -> None:
    rollout = make()
    shown = Demonstrations(*rollout.inputs)[torch.tensor([1])]
    assert len(shown) == 1
    assert torch.equal(shown.mask, MASK[1:2])
    assert torch.equal(shown.observations["input_ids"], rollout.observations["input_ids"][1:2])


def test_pairs_are_picked_together_and_evaluated_preferred_first() -> None:
    ids = torch.arange(2 * 3 * 4).view(2, 3, 4)
    mask = torch.tensor([[[1, 1], [1, 0], [1, 0]], [[1, 0], [1, 1], [1, 0]]], dtype=torch.bool)
    reference, probability = -torch.arange(6.0).view(2, 3), torch.tensor([1.0, 0.7, 0.2])
    pairs = Preferences({"input_ids": ids}, ids[..., 2:], mask, reference, probability)
    assert len(pairs) == 3
    assert pairs.lengths.tolist() == [2, 2, 1]
    picked = pairs[torch.tensor([2, 0])]
    assert len(picked) == 2
    assert picked.probability.tolist() == pytest.approx([0.2, 1.0])
    assert picked.reference_log_probs.tolist() == [[-2.0, 0.0], [-5.0, -3.0]]
    observations, actions, mask = picked.inputs
    assert observations["input_ids"].tolist() == [
        ids[0, 2].tolist(),
        ids[0, 0].tolist(),
        ids[1, 2].tolist(),
        ids[1, 0].tolist(),
    ]
    assert actions.tolist() == [row[2:] for row in observations["input_ids"].tolist()]
    assert mask.tolist() == [[True, False], [True, True], [True, False], [True, False]]
    assert picked.lengths.tolist() == [1, 2]


def test_a_cost_that_a_part_does_not_name_was_not_incurred_in_it() -> None:
    quiet, loud = make(seed=1, named_costs={"harm": MASK.float()}), make(seed=2, named_costs={"leak": 2.0 * MASK})
    joined = Rollout.concatenate([quiet, loud])
    nothing = torch.zeros(MASK.shape)
    assert torch.equal(joined.named_costs["harm"], torch.cat([MASK.float(), nothing]))
    assert torch.equal(joined.named_costs["leak"], torch.cat([nothing, 2.0 * MASK]))


def test_sums_follow_what_is_summed_to_its_device() -> None:
    """Data that is given beforehand lies on the CPU, what an actor says of it on the actor's device."""
    from algos.core.objectives import masked_mean

    said = torch.empty(MASK.shape, device="meta")
    assert episode_sums(said, MASK).device == masked_mean(said, MASK).device == said.device
