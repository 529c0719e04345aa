"""What a trainer draws from, iteration by iteration."""

import torch

import algos
from algos.core.settings import OfflineConfig
from algos.core.sources import Dataset, seeds_of
from tests.helpers.cmdps import Crossing, vector
from textsafe_gym.offline.preferences import Preferences


def test_pairs_come_once_an_epoch_and_in_a_new_order() -> None:
    numbers = torch.arange(10).expand(2, 10)
    said = {"x": numbers}, numbers[..., None], numbers[..., None] >= 0, numbers.float(), torch.ones(10)
    pairs = Dataset(Preferences(*said), OfflineConfig(epochs=3, rows_per_iteration=4, seed=1))
    assert pairs.iterations == 8
    drawn = torch.cat([pairs.draw(i).observations["x"][0] for i in range(pairs.iterations)])
    assert [len(pairs.draw(i)) for i in range(pairs.iterations)] == [4] * 7 + [2]
    epochs = drawn.split(10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert [pairs.spent(i) for i in (0, 2, 8)] == [{"episodes": 0, "pairs": n} for n in (0, 8, 10)]


def test_every_iteration_has_seeds_of_its_own() -> None:
    seeds = [seed for i in range(4) for seed in (*seeds_of(7, i, 3)[0], seeds_of(7, i, 3)[1])]
    assert len(set(seeds)) == len(seeds) == 16
    assert seeds_of(7, 2, 3) == seeds_of(7, 2, 3) != seeds_of(8, 2, 3)


def test_every_iteration_plays_episodes_of_its_own() -> None:
    source = algos.make("ppo", vector(Crossing, 8), episodes=64, episodes_per_iteration=16, minibatch_size=16).source
    first, again, second = source.draw(0), source.draw(0), source.draw(1)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, second.actions)
    assert not torch.equal(first.actions[:8], first.actions[8:])  # nor do the two parts of one iteration
