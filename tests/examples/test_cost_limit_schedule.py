import itertools
from pathlib import Path

import pytest

import algos
from tests.helpers.example_loader import load
from textsafe_gym.errors import ConfigError


def test_every_iteration_is_judged_by_its_own_limit(tmp_path: Path) -> None:
    example = load("cost_limit_schedule")
    rows = example.main(episodes=512, out=str(tmp_path / "run"))
    assert [row["cost_limit"] for row in rows] == pytest.approx([-0.7, -0.93, -1.16, -1.16])
    for row in rows:
        assert row["cost_violation"] == pytest.approx(max(row["cost"] - row["cost_limit"], 0))
    for before, after in itertools.pairwise(rows):  # log λ moves by η·λ·excess over that limit
        excess = after["window_cost"] - after["cost_limit"]
        assert after["multiplier"] == pytest.approx(
            before["multiplier"] * 2.718281828 ** (0.05 * before["multiplier"] * excess)
        )
    resumed = algos.load(tmp_path / "run", "SafeRLHF-v0")
    assert resumed.cost_limit == pytest.approx(-1.16)
    assert resumed.algorithm.constraints.limits == {"": pytest.approx(-1.16)}


def test_what_cannot_be_set() -> None:
    small = {"episodes": 2, "episodes_per_iteration": 2}
    with pytest.raises(ConfigError, match="ppo keeps no cost limit"):
        algos.make("ppo", "SafeRLHF-Exact-v0", **small).set_cost_limit(0.0)
    trainer = algos.make("ppo_lagrangian", "SafeRLHF-Exact-v0", constraint="probability", cost_limit=0.1, **small)
    for limit, name, message in [(1.5, "", "not a probability"), (float("nan"), "", "finite"), (0.1, "harm", "'harm'")]:
        with pytest.raises(ConfigError, match=message):
            trainer.set_cost_limit(limit, name)
    assert trainer.algorithm.constraints.limits == {"": 0.1}
    assert trainer.cost_limit is None  # which is on the mean; what is bounded here is a probability
