"""The bench command: its jobs are what they say they are."""

import json
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from textsafe_gym.cli.main import main
from textsafe_gym.experiments import bench as bench_job
from textsafe_gym.experiments.bench import actor_of, env_of, measure
from textsafe_gym.experiments.bench_sizes import Sizes
from textsafe_gym.models.critics import SeparateCritics
from textsafe_gym.rollouts import collect

TINY = Sizes(batch=4, prompt_length=3, response_length=5, hidden=16, layers=1, heads=2, mlp=24, vocab=40)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TINY).items()]


@pytest.mark.parametrize("job", ["rollout", "iteration", "env"])
def test_reports_speed_and_sizes(job: str) -> None:
    ran = CliRunner().invoke(main, ["bench", job, *FLAGS, "--repeats", "2", "--threads", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == ""
    row = json.loads(ran.stdout)
    assert row["sizes"] == vars(TINY)
    assert row["tokens_per_second"] == pytest.approx(4 * 5 / row["seconds"])
    low, high = row["tokens_per_second_range"]
    assert low <= row["tokens_per_second"] <= high
    assert len(row["compared_with"]) == (job != "iteration")
    assert (row["bandwidth_bound"] is None) == (job != "rollout")
    assert row["threads"] == 1


@pytest.mark.parametrize(("algorithm", "made"), [("ppo_lagrangian", "separate"), ("grpo_lagrangian", None)])
def test_critics_of_their_own_are_made_for_an_algorithm_that_has_any(algorithm: str, made: str | None) -> None:
    with patch(
        "textsafe_gym.models.critics.SeparateCritics.values", autospec=True, side_effect=SeparateCritics.values
    ) as values:
        row = measure("iteration", TINY, algorithm, 1, 1, "cpu", "float32", critics="separate")
    assert row["critics"] == made
    assert values.called == (made is not None)


def test_the_default_job_is_the_peers() -> None:
    assert vars(Sizes()) == {
        "batch": 64,
        "prompt_length": 32,
        "response_length": 64,
        "hidden": 128,
        "layers": 4,
        "heads": 4,
        "mlp": 344,
        "vocab": 2048,
    }
    assert sum(x.numel() for x in actor_of(Sizes()).model.parameters()) == 1_315_968 + 2048  # and the head's bias


def test_the_bandwidth_bound_is_bytes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_job, "_copied_per_second", lambda device: 1e9)
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16  # attention, MLP, two norms
    weights = layer + 16 + 40 * 16 + 40  # the last norm, the head and its bias
    cached = 2 * 16 * (3 + 2.5)
    bound = 4 * 1e9 / (2 * (weights + 4 * cached))
    assert bench_job.bandwidth_bound(TINY, "cpu", "bfloat16") == pytest.approx(bound)


def test_copies_are_timed() -> None:
    assert 1e8 < bench_job._copied_per_second("cpu") < 1e13


def test_no_response_ends_early_and_doublings_are_jobs_of_their_own() -> None:
    rollout = collect(actor_of(TINY), env_of(TINY), seed=0)
    assert rollout.lengths.tolist() == [5] * 4
    assert {len(info["prompt"].split()) for info in rollout.infos} == {3}
    rows = [measure("rollout", TINY.replace(batch=size), "ppo", 1, 1, "cpu", "float32") for size in (4, 8)]
    assert [row["sizes"]["batch"] for row in rows] == [4, 8]
    ran = CliRunner().invoke(main, ["bench", "rollout", *FLAGS, "--repeats", "1", "--doublings", "2", "--json"])
    found = [(row["sizes"]["batch"], row["sizes"]["response_length"]) for row in json.loads(ran.stdout)]
    assert found == [(4, 5), (8, 5), (16, 5), (4, 10), (4, 20)]
    assert CliRunner().invoke(main, ["bench", "iteration", "--algo", "pppo"]).exit_code == 2
