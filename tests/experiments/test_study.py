"""`textsafe study`: what it measures, that it resumes, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import textsafe_gym  # noqa: F401 (registers the environments)
from tests.helpers.commands import textsafe
from tests.helpers.rounding import FLOAT64
from textsafe_gym.evaluation.study import frontiers, score

STUDY = """
env: {id: SafeRLHF-Exact-v0, kwargs: {kl_coefficient: 0.3, vocabulary: 4, max_response_length: 2, prompts: 2}}
seeds: 2
limits: [0.2, 0.0]
settings: {episodes: 128, episodes_per_iteration: 64, learning_rate: 1e-3, kl_coefficient: 0.3, max_kl: 0.05}
algorithms:
  ppo: {}
  ppo_lagrangian: {settings: {limit_includes_kl: true, multiplier_max: 2.0}}
  cpo: {}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    (root / "small.yaml").write_text(STUDY)
    result = textsafe("study", root / "small.yaml", "--out", root / "out", "--json")
    assert result.exit_code == 0, result.stderr
    (root / "printed.json").write_text(result.stdout)
    return root


def test_every_algorithm_is_measured_at_every_limit(study: Path) -> None:
    written = json.loads((study / "out" / "study.json").read_text())
    printed = json.loads((study / "printed.json").read_text())
    assert printed["rows"] == written["rows"]
    found = [(row["algorithm"], row["cost_limit"], row["runs"]) for row in written["rows"]]
    limited = [(name, limit, 2) for name in ("ppo_lagrangian", "cpo") for limit in (0.2, 0.0)]
    assert found == [("ppo", None, 2), *limited]
    assert written["frontiers"].keys() == {"mean", "kl_in_cost"}
    assert (study / "out" / "optimum.png").stat().st_size > 10_000
    config = (study / "out" / "ppo_lagrangian" / "limit=0" / "seed_1" / "config.yaml").read_text()
    assert "multiplier_max: 2.0" in config  # its own setting
    assert "max_kl" not in config  # a setting that it has not


def test_a_finished_study_is_read_again(study: Path, tmp_path: Path) -> None:
    study = shutil.copytree(study, tmp_path / "copy")  # its tables are written anew
    before = (study / "out" / "cpo" / "limit=0" / "seed_0" / "summary.json").stat().st_mtime_ns
    refused = textsafe("study", study / "small.yaml", "--out", study / "out")
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    again = textsafe("study", study / "small.yaml", "--out", study / "out", "--resume", "--only", "cpo")
    assert again.exit_code == 0, again.stderr
    assert "cpo" in again.stdout
    assert "ppo_lagrangian" not in again.stdout
    assert (study / "out" / "cpo" / "limit=0" / "seed_0" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  cpo: {}", "  cpo: {settings: {constraint: probability}}"), "cpo: its settings state probability"),
        (("  cpo: {}", "  cpoo: {}"), "unknown algorithm 'cpoo'.*cpo"),
        (("limits: [0.2, 0.0]", "budgets: {}"), "budgets"),
        (("max_kl: 0.05", "max_kl: -1"), r"cpo: max_kl = -1 \(.*small.yaml:5\)"),
        (
            ("multiplier_max: 2.0", "multiplier_most: 2.0"),
            r"'multiplier_most' \(.*small.yaml:8\); did you mean 'multiplier_max'",
        ),
        (("kl_coefficient: 0.3,", "kl_coefficient: 0.3, cost_limit: 1,"), "small.yaml:2.*limits stand under 'limits'"),
        (("prompts: 2", "prompts: 20"), "prompts = 20"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_in_a_line(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in STUDY
    (tmp_path / "small.yaml").write_text(STUDY.replace(*change))
    result = textsafe("study", tmp_path / "small.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_method_that_samples_nothing_reads_the_studys_data(tmp_path: Path) -> None:
    plan = STUDY.replace("max_kl: 0.05}", "max_kl: 0.05, epochs: 4}").replace(
        "limits:", "budgets: {all: {data: ['simulated:512']}}\nlimits:"
    )
    plan = plan.replace("  cpo: {}", "  dpo: {}").replace("seeds: 2", "seeds: 1")
    (tmp_path / "small.yaml").write_text(plan)
    result = textsafe("study", tmp_path / "small.yaml", "--only", "dpo", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["algorithm"], row["cost_limit"]) == ("dpo", None)
    assert 0.1 < row["fraction"]["mean"] < 1  # 16 steps do not reach the optimum, but lead there
    summary = json.loads((tmp_path / "out" / "dpo" / "seed_0" / "summary.json").read_text())
    assert (summary["episodes"], summary["pairs"]) == (0, 512)
    plan = plan.replace("simulated:512", "nowhere.jsonl")
    (tmp_path / "small.yaml").write_text(plan)
    refused = textsafe("study", tmp_path / "small.yaml", "--only", "dpo", "--out", tmp_path / "never")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "nowhere.jsonl: no such file" in refused.stderr


def test_an_algorithm_may_be_there_twice(tmp_path: Path) -> None:
    plan = STUDY.replace("  cpo: {}", "  other: {algorithm: ppo_lagrangian, settings: {multiplier_init: 1.5}}")
    (tmp_path / "small.yaml").write_text(plan.replace("seeds: 2", "seeds: 1").replace("[0.2, 0.0]", "[0.2]"))
    result = textsafe("study", tmp_path / "small.yaml", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["algorithm"] for row in rows] == ["ppo", "ppo_lagrangian", "other"]
    assert rows[2]["multiplier"]["mean"] > rows[1]["multiplier"]["mean"] + 0.2
    assert rows[2]["best_multiplier"] > 0


def test_an_unknown_study_is_offered_the_nearest() -> None:
    result = textsafe("study", "exakt")
    assert (result.exit_code, "exact" in result.stderr) == (2, True)
    result = textsafe("study", "exact", "--only", "cupp")
    assert (result.exit_code, "did you mean 'cup'" in result.stderr) == (2, True)


def test_the_reference_scores_nothing_and_the_optimum_everything() -> None:
    env: Any = gym.make("SafeRLHF-Exact-v0", kl_coefficient=0.2).unwrapped
    start = env.evaluate(env.exact_task.reference)

    def at(reward: float, cost: float, kl: float, problem: str, cost_weight: float = 0.0, costs: Any = None) -> Any:
        exact = {"reward": reward, "cost": cost, "kl": kl, "prompt_costs": costs or [cost] * 4}
        stated = {"constraint": problem, "cost_weight": cost_weight}
        summary = {"algorithm": "x", "seed": 0, "cost_limit": 0.0, "exact": exact, "problem": stated}
        return score(env, summary, "x", [{"multiplier": own} for own in (*[9.0] * 18, 1.0, 3.0)])

    spread = float(env.exact_task.responses.cost.max() - env.exact_task.responses.cost.min())
    for problem, best in (
        ("mean", env.solve(0.0)),
        ("kl_in_cost", env.solve(0.0, kl_in_cost=True)),
        ("per_prompt", env.solve_each(0.0)),
        ("weighted", env.solve_weighted(0.4)),
    ):
        cost_weight = 0.4 if problem == "weighted" else 0.0
        reached = at(
            best.reward, best.cost, best.kl, problem, cost_weight, [0.0] * 4 if problem == "per_prompt" else None
        )
        assert reached.fraction == pytest.approx(1.0)
        assert (reached.multiplier, reached.best_multiplier) == (
            2.0,
            None if problem == "weighted" else best.multiplier,
        )
        assert reached.violation == pytest.approx(0.0, abs=FLOAT64)
        assert at(start.reward, start.cost, 0.0, problem, cost_weight).fraction == pytest.approx(0.0)
    assert at(1.0, 0.3, 1.0, "mean").violation == pytest.approx(0.3 / spread)
    assert at(1.0, 0.3, 1.0, "kl_in_cost").violation == pytest.approx(0.5 / spread)
    assert at(1.0, -1.0, 1.0, "per_prompt", costs=[0.4, -4.0, 0.8, -1.0]).violation == pytest.approx(0.3 / spread)


def test_the_lines_of_optima_begin_where_no_limit_binds() -> None:
    env: Any = gym.make("SafeRLHF-Exact-v0", kl_coefficient=0.2, vocabulary=4, prompts=2).unwrapped
    free = env.solve_weighted(0.0)
    for problem, line in frontiers(env, {"mean", "kl_in_cost"}, points=4).items():
        first, *_, last = line
        assert first["objective"] == pytest.approx(free.objective, abs=1e-6), problem
        assert first["cost"] == pytest.approx(free.cost, abs=1e-3), problem
        assert last["cost"] < first["cost"]


WORLD = """
env: {id: SafeRLHF-v0}
seeds: 2
budgets:
  small: {settings: {episodes: 32}}
  large: {settings: {episodes: 64}, data: ["simulated:64"]}
settings: {episodes_per_iteration: 32}
algorithms:
  ppo_lagrangian: {}
  dpo: {settings: {rows_per_iteration: 32}}
  heavy: {algorithm: reward_shaping, settings: {cost_weight: 3.0}}
"""


def test_where_no_optimum_is_known_what_is_attainable_stands_for_it(tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text(WORLD)
    call = ("study", tmp_path / "world.yaml", "--only", "heavy", "--only", "ppo_lagrangian", "--out", tmp_path / "out")
    result = textsafe(*call, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"].keys() == {"small", "large"}
    for budget, episodes in (("small", 32), ("large", 64)):
        assert {row["algorithm"] for row in found["rows"][budget]} == {"heavy", "ppo_lagrangian"}
        assert [(row["runs"], row["judge_calls"]) for row in found["rows"][budget]] == [(2, 2 * episodes)] * 2
        config = (tmp_path / "out" / "heavy" / budget / "seed_1" / "config.yaml").read_text()
        assert f"episodes: {episodes}" in config
    assert found["settings"]["heavy/large"]["cost_weight"] == 3.0
    assert (tmp_path / "out" / "attained.png").stat().st_size > 10_000
    again = textsafe(*call, "--resume", "--seeds", "1")
    assert again.exit_code == 0, again.stderr
    assert "above the limit" in again.stdout  # so little training changes hardly anything


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("id: SafeRLHF-v0", "id: SafeRLHF-v0, kwargs: {max_response_length: 8}"),
            "is not known; make it by textsafe frontier",
        ),
        (("seeds: 2", "seeds: 2\nlimits: [-1.0]"), "limits: .* not that of the frontier, -1.16"),
        (("seeds: 2", "seeds: 2\nfrontier: nowhere"), "nowhere"),
        (("small: {settings: {episodes: 32}}", "small: {settings: {episodes: -1}}"), "episodes = -1"),
        (("heavy: {algorithm: reward_shaping", "heavy: {algorithm: rewards_shaping"), "did you mean 'reward_shaping'"),
    ],
)
def test_what_is_wrong_with_a_budget_or_its_frontier_is_said(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    assert change[0] in WORLD
    (tmp_path / "world.yaml").write_text(WORLD.replace(*change))
    result = textsafe("study", tmp_path / "world.yaml", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()
