"""The statistics of a ranking: what they are, and that their intervals cover."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests.helpers.rounding import FLOAT64
from textsafe_gym.evaluation.ranking import holm, improvement, interquartile_mean, rank, ranking_tables
from textsafe_gym.evaluation.summaries import Run

SIMULATED = 2000


def covered(intervals: list[Any], truth: float) -> float:
    return float(np.mean([own.low <= truth <= own.high for own in intervals]))


def test_the_interquartile_mean_is_of_the_middle_half() -> None:
    found = interquartile_mean([9.0, 1.0, 2.0, -50.0, 3.0, 4.0, 5.0, 900.0])
    assert found.mean == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([1.0, 2.0]).low is None


@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_of_an_interquartile_mean_covers(heavy: bool) -> None:
    draws = np.random.default_rng(0)
    values = draws.standard_t(3, (SIMULATED, 10)) if heavy else draws.normal(size=(SIMULATED, 10))
    # At 95 % the share of 2,000 is within 1.5 points in 997 of 1,000; percentiles of a bootstrap cover 92 %.
    assert covered([interquartile_mean(own) for own in values], 0.0) > 0.935


@pytest.mark.parametrize("ahead", [0.0, 1.0, 3.0])
def test_the_interval_of_an_improvement_covers(ahead: float) -> None:
    draws = np.random.default_rng(1)
    ours, theirs = draws.normal(ahead, 1, (SIMULATED, 10)), draws.normal(0, 1, (SIMULATED, 10))
    found = [improvement(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert covered(found, float(norm.cdf(ahead / 2**0.5))) > 0.935
    assert np.mean([own.mean for own in found]) == pytest.approx(norm.cdf(ahead / 2**0.5), abs=0.02)


def test_a_run_that_is_always_better_is_not_certainly_so() -> None:
    found = improvement([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert 0.3 < found.low < 0.8
    assert improvement([1.0, 1.0], [1.0, 1.0]).mean == 0.5


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5], abs=FLOAT64)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


FRONTIER: dict[str, Any] = {
    "kl_coefficient": 0.1,
    "cost_limit": -1.0,
    "cost_range": [-3.0, 5.0],
    "reference": {"reward": 0.0, "cost": 0.0},
    "at_limit": {"reward": 1.2, "cost": -1.0, "kl": 2.0, "feasible": True, "intervals": {}},
    "front": [],
    "by_constraint": [],
}


def runs(name: str, rewards: list[float], cost: float, kl: float = 1.0) -> list[Run]:
    """A run of each reward, whose costs are spread by a hundredth."""
    made = []
    for seed, reward in enumerate(rewards):
        rows = [{"reward": reward, "cost": cost + 0.01 * (seed - 1), "kl": kl, "prompt": p} for p in "ab"]
        summary = {
            "algorithm": name, "label": name, "seed": seed, "cost_limit": -1.0, "seconds": 3.0, "episodes": 64,
            "problem": None,
        }  # fmt: skip
        made.append(Run(Path(name), summary, rows))
    return made


def test_what_is_above_the_limit_comes_last_and_has_no_share() -> None:
    groups = {
        "wild": runs("wild", [5.0, 5.1, 5.2], 1.0),
        "base": runs("base", [0.3, 0.4, 0.5], -1.2),
        "good": runs("good", [0.6, 0.6, 0.9], -1.1),
    }
    rows = rank(groups, FRONTIER, "base")
    assert [row["algorithm"] for row in rows] == ["good", "base", "wild"]
    good, base, wild = rows
    assert good["shares"] == {0: pytest.approx(50.0), 1: pytest.approx(50.0), 2: pytest.approx(80.0)}
    assert good["attainable"]["mean"] == pytest.approx(60.0)
    assert good["improvement"]["mean"] == 1.0
    # Differences 30, 20, 40: 30 ± 10/√3, t = 5.2 with 2 degrees of freedom.
    assert good["p"] == pytest.approx(0.0351, abs=1e-4)
    assert good["judge_calls"] == 128
    assert (base["improvement"], base["p"]) == (None, None)
    assert (wild["shares"], wild["iqm"], wild["improvement"], wild["p"]) == ({}, None, None, None)
    assert wild["excess"]["mean"] == pytest.approx(2.0 / 8)
    shares, parts = ranking_tables(rows, "64-responses", FRONTIER, "base")
    assert [row[1].text for row in shares.rows] == ["60", "30", "above the limit"]
    assert [row[-1].text for row in parts.rows] == ["128"] * 3


def test_without_the_baselines_share_nothing_is_compared_with_it() -> None:
    rows = rank({"base": runs("base", [0.3, 0.4], 0.0), "good": runs("good", [0.6, 0.7], -1.1)}, FRONTIER, "base")
    assert [(row["algorithm"], row["improvement"], row["p"]) for row in rows] == [
        ("good", None, None),
        ("base", None, None),
    ]
