import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.helpers.rounding import FLOAT64
from textsafe_gym import experiments
from textsafe_gym.errors import DataError, RunError, ScoreError
from textsafe_gym.evaluation.intervals import share_interval, t_interval
from textsafe_gym.evaluation.pareto import RunPoint, analyse, hypervolume, on_front
from textsafe_gym.evaluation.records import by_prompt, read_evaluation, summarise
from textsafe_gym.evaluation.report import cell
from textsafe_gym.evaluation.summaries import (
    Run,
    _intervals,
    budget_of,
    compare_runs,
    load_run,
    load_runs,
    points_of,
    tables_of,
)
from textsafe_gym.experiments import play
from textsafe_gym.files import read_rows, write_json, write_rows


def row(reward: float, cost: float, **more: object) -> dict[str, object]:
    return {"algorithm": "ppo", "label": "ppo", "seed": 0, "reward": reward, "cost": cost, **more}


def test_t_interval_against_the_table():
    # n = 4, standard deviation 2, quantile of t with 3 degrees of freedom 3.182446, to six decimals.
    values = [1.0, 1.0, 4.4641016151377544, 4.4641016151377544]
    interval = t_interval(values)
    assert interval.mean == pytest.approx(1 + math.sqrt(3), abs=FLOAT64)
    assert interval.high - interval.mean == pytest.approx(3.182446 * 2 / 2, abs=5e-7)
    assert interval.mean - interval.low == pytest.approx(3.182446 * 2 / 2, abs=5e-7)
    assert t_interval([3.0]).low is None
    assert (t_interval(values, within=(0.0, 5.0)).low, t_interval(values, within=(0.0, 4.0)).high) == (0.0, 4.0)


def test_hypervolume_by_hand():
    # Reference (0, 10): rectangles of (reward 1, cost 2) and (3, 6) overlap in 1 x 4.
    points = np.array([[1.0, 2.0], [3.0, 6.0], [0.5, 9.0], [-1.0, 0.0], [4.0, 11.0]])
    assert hypervolume(points, (0.0, 10.0)) == pytest.approx(1 * 8 + 3 * 4 - 1 * 4)


def test_front_goes_up_in_reward_and_down_in_cost():
    points = np.array([[1.0, 2.0], [3.0, 6.0], [0.5, 9.0], [1.0, 2.0], [3.0, 7.0], [0.0, 1.0]])
    assert on_front(points).tolist() == [True, True, False, True, False, True]


def test_the_interval_of_the_hypervolume_is_the_2_5_to_97_5_percentile_of_seeds_drawn_again():
    """Of one setting it is linear in the mean reward, whose percentiles many more draws give.

    A percentile q of n draws has the standard error √(q·(1 - q) / n) / density, here 0.060 standard deviations of the
    mean for each end; an interval at 90 % would end 0.315 of them earlier.
    """
    rewards = np.random.default_rng(1).normal(2.0, 0.3, 12)
    runs = [RunPoint("ppo", "ppo", seed, reward, -1.0) for seed, reward in enumerate(rewards)]
    found = analyse(runs, reference=(0.0, 1.0))["algorithms"]["ppo"]
    means = rewards[np.random.default_rng(2).integers(12, size=(200_000, 12))].mean(1)
    wanted = 2 * np.percentile(means, [2.5, 97.5])
    assert [found["low"], found["high"]] == pytest.approx(wanted, abs=3 * 0.060 * 2 * means.std())


def test_a_seed_is_drawn_for_all_settings_at_once():
    """What one setting gains in a seed the other loses, so that the hypervolume is the same however seeds are drawn."""
    rewards = np.random.default_rng(1).normal(0.0, 0.2, 8)
    runs = [RunPoint("ppo", "a", seed, 1.0 + reward, -1.0) for seed, reward in enumerate(rewards)]
    runs += [RunPoint("ppo", "b", seed, 2.0 - reward, 0.0) for seed, reward in enumerate(rewards)]
    found = analyse(runs, reference=(0.0, 1.0))["algorithms"]["ppo"]
    assert found["low"] == pytest.approx(3.0)
    assert found["high"] == pytest.approx(3.0)


def test_analysis_averages_seeds_and_bounds_the_hypervolume():
    rng = np.random.default_rng(1)
    runs = [
        RunPoint("shaping", f"shaping[nu={nu}]", seed, 2 - nu + 0.1 * rng.normal(), -nu + 0.1 * rng.normal())
        for nu in (0.5, 1.0)
        for seed in range(6)
    ]
    runs += [RunPoint("ppo", "ppo", seed, 2.0, 1.0) for seed in range(6)] + [
        RunPoint("initial", "initial", 0, 0.0, 1.0)
    ]
    result = analyse(runs, cost_limit=-0.7, reference=(0.0, 1.0))
    shaping = result["algorithms"]["shaping"]
    assert (shaping["settings"], shaping["runs"], result["equal_runs"]) == (2, 12, False)
    by_label = [[r for r in runs if r.label == f"shaping[nu={nu}]"] for nu in (0.5, 1.0)]
    own = np.array([[np.mean([r.reward for r in part]), np.mean([r.cost for r in part])] for part in by_label])
    assert shaping["hypervolume"] == pytest.approx(hypervolume(own, (0.0, 1.0)))
    assert shaping["low"] < shaping["hypervolume"] < shaping["high"]
    assert result["algorithms"]["ppo"]["hypervolume"] == 0.0  # its cost is the reference's
    feasible = {point["label"]: point["feasible"] for point in result["points"]}
    assert feasible == {"shaping[nu=0.5]": False, "shaping[nu=1.0]": True, "ppo": False, "initial": False}


def test_the_default_reference_is_the_worst_of_all():
    runs = [RunPoint("a", "a", 0, 1.0, 5.0), RunPoint("b", "b", 0, -2.0, 3.0)]
    assert analyse(runs)["reference"] == {"reward": -2.0, "cost": 5.0}
    assert analyse(runs)["algorithms"]["a"]["low"] is None
    for limit, feasible in ((5.0, [True, True]), (4.9, [False, True]), (3.0, [False, True]), (2.9, [False, False])):
        assert [point["feasible"] for point in analyse(runs, limit)["points"]] == feasible


def test_summary_numbers():
    rows = [
        row(
            1.0,
            2.0,
            group="harmful",
            kl=0.5,
            response_length=3,
            finish_reason="eos",
            gold_harm=1.0,
            gold_helpfulness=0.2,
        ),
        row(
            3.0,
            -1.0,
            group="benign",
            kl=1.5,
            response_length=5,
            finish_reason="length",
            gold_harm=-1.0,
            gold_helpfulness=0.8,
        ),
        row(
            2.0,
            0.0,
            group="benign",
            kl=1.0,
            response_length=4,
            finish_reason="eos",
            gold_harm=0.0,
            gold_helpfulness=0.5,
        ),
    ]
    summary = summarise(rows, cost_limit=0.25)
    expected = {
        "episodes": 3,
        "reward": 2.0,
        "cost": 1 / 3,
        "cost_violation": 1 / 3 - 0.25,
        "harmful_rate": 1 / 3,
        "kl": 1.0,
        "response_length": 4.0,
        "finished": 2 / 3,
        "gold_harm": 0.0,
        "gold_helpfulness": 0.5,
        "gold_harmful_rate": 1 / 3,
    }
    groups = summary.pop("groups")
    assert summary == pytest.approx(expected)
    assert groups["harmful"]["gold_harmful_rate"] == 1.0
    assert groups["benign"]["cost"] == -0.5
    assert summarise(rows, cost_limit=1.0)["cost_violation"] == 0.0


def write_run(directory: Path, label: str, seed: int, cost: float, limit: float = 0.0) -> None:
    directory.mkdir(parents=True)
    rows = [{**row(cost + 1, cost), "label": label, "algorithm": label.split("[")[0], "seed": seed}] * 2
    write_rows(directory / "evaluation.jsonl", rows)
    summary = {
        "algorithm": label.split("[")[0],
        "label": label,
        "seed": seed,
        "cost_limit": limit,
        "tokens_per_second": 100.0,
    }
    write_json(directory / "summary.json", summary)


def test_runs_are_found_below_and_compared_over_seeds(tmp_path: Path):
    for seed, cost in enumerate([1.0, 3.0]):
        write_run(tmp_path / "x" / "ppo" / f"seed_{seed}", "ppo", seed, cost)
    write_run(tmp_path / "y", "cpo[cost_limit=1]", 0, 0.5, limit=1.0)
    runs = load_runs([tmp_path, tmp_path / "x"])
    assert len(runs) == 3
    comparison = compare_runs(runs)
    ppo = comparison["settings"]["ppo"]
    assert ppo["seeds"] == [0, 1]
    assert ppo["metrics"]["cost"]["values"] == [1.0, 3.0]
    assert ppo["metrics"]["cost"]["mean"] == 2.0
    assert ppo["metrics"]["cost"]["high"] - 2.0 == pytest.approx(12.7062 * 1.0, abs=5e-5)  # the table has four decimals
    assert ppo["metrics"]["cost_violation"]["mean"] == 2.0
    assert comparison["settings"]["cpo[cost_limit=1]"]["metrics"]["cost_violation"]["mean"] == 0.0
    assert comparison["pareto"]["cost_limit"] is None  # the limits differ
    json.dumps(comparison, allow_nan=False)
    notes = [tables_of(compare_runs(own))[0].note for own in (runs, runs[:1])]
    assert ["this policy" in note for note in notes] == [True, True]  # cpo has one run
    assert ["over seeds" in note for note in notes] == [True, False]
    assert "cost limit" not in notes[0]  # as the rows have their own
    table = tables_of(comparison)[0]
    at = table.columns.index("cost limit")
    assert {row[0].text: (row[at].text, row[at + 1].text) for row in table.rows} == {
        "ppo": ("0", "2.00"),
        "cpo[cost_limit=1]": ("1", "0.00"),
    }
    assert table.columns[at + 1] == "violation"
    alone = tables_of(compare_runs(runs[:1]))[0]
    assert "; cost limit 0." in alone.note
    assert "cost limit" not in alone.columns


@pytest.mark.parametrize("text", [True, False])
def test_episodes_that_are_no_responses_are_not_called_so(text: bool, tmp_path: Path):
    own = {"prompt": "hello", "response": "hi"} if text else {}
    rows = [{name: x for name, x in row(1.0, 0.0).items() if name not in ("prompt", "response")} | own] * 2
    summary = {"algorithm": "ppo", "label": "ppo", "seed": 0, "cost_limit": 0.0, "episodes": 8}
    comparison = compare_runs([Run(tmp_path, {**summary, "tokens_per_second": 100.0}, rows)])
    table, *_ = tables_of(comparison)
    shown = " ".join([table.note, *table.columns, budget_of(comparison)])
    words = {"responses", "tokens/s", "prompts"}
    assert all(word in shown for word in (words if text else {"episodes", "steps/s"}))
    assert text or not any(word in shown for word in words)


def test_numbers_in_tables_have_no_negative_zero():
    shown = cell({"mean": -0.001, "low": -0.2, "high": -0.0}, 1)
    assert (shown.text, shown.small) == ("0.0", "-0.2 … 0.0")


@pytest.mark.parametrize("use", [compare_runs, points_of])
def test_runs_that_are_no_repetitions_are_refused(use: Callable[[list[Run]], object], tmp_path: Path):
    for folder, label, seed, limit in [
        ("a", "ppo", 0, 0.0),
        ("b", "ppo", 0, 0.0),
        ("c", "cpo", 0, 0),
        ("d", "cpo", 1, 1),
    ]:
        write_run(tmp_path / folder, label, seed, 1.0, limit=limit)
    with pytest.raises(RunError, match=r"'ppo' with seed 0 is also in .*/a; leave one out"):
        use(load_runs([tmp_path / "a", tmp_path / "b"]))
    with pytest.raises(RunError, match=r"d: 'cpo' has cost_limit 1 here and 0 in .*/c; these are two settings"):
        use(load_runs([tmp_path / "c", tmp_path / "d"]))


def configured(directory: Path, seed: int, **changed: object) -> Run:
    """A run of ppo with a config.yaml in which some dotted keys are changed."""
    write_run(directory, str(changed.pop("label", "ppo")), seed, 1.0)
    held: dict[str, object] = {
        "algorithm": "ppo", "env.id": "SafeRLHF-v0", "env.kwargs.reward_scale": 1, "policy.device": f"cuda:{seed}",
        "config.episodes": 8, "config.seed": seed, "preset": "small",
    }  # fmt: skip
    config: Any = {}
    for key, value in (held | changed).items():
        *path, last = key.split(".")
        inner = config
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    (directory / "config.yaml").write_text(json.dumps(config))
    return load_run(directory)


@pytest.mark.parametrize("use", [compare_runs, points_of])
def test_repetitions_differ_in_their_seeds_alone(use: Callable[[list[Run]], object], tmp_path: Path):
    first = configured(tmp_path / "first", 0)
    evaluated = {"evaluation_seed": 9, "evaluation_batch": 4, "source": "saved", "policy.model": "saved/policy"}
    use([first, configured(tmp_path / "same", 1), configured(tmp_path / "evaluated", 2, **evaluated)])
    for key, here, message in (
        ("config.episodes", 16, "16 here and 8"), ("env.kwargs.reward_scale", 2, "2 here and 1"),
        ("policy.model", "other", "other here and not set"), ("preset", "paper", "paper here and small"),
    ):  # fmt: skip
        other = configured(tmp_path / key, 1, **{key: here, "preset": "paper"})
        with pytest.raises(RunError, match=rf"{key}: 'ppo' has {key} {message} in .*/first; these are two settings"):
            use([first, other])
    elsewhere = configured(tmp_path / "elsewhere", 0, label="cpo", **{"env.id": "Mine-v0"})
    with pytest.raises(RunError, match=r"elsewhere: of the environment Mine-v0, and .*/first of SafeRLHF-v0; "):
        use([first, elsewhere])


def test_other_arguments_of_the_environment_are_told(tmp_path: Path):
    scaled = {"env.kwargs.reward_scale": 2, "env.kwargs.cost_limit": 3}
    runs = [configured(tmp_path / "a", 0), configured(tmp_path / "b", 0, label="cpo", **scaled)]
    assert "The environments differ in reward_scale: " in tables_of(compare_runs(runs))[0].note
    assert "differ" not in tables_of(compare_runs(runs[:1]))[0].note
    found = experiments.pareto([tmp_path], out=tmp_path)
    assert "The environments differ in reward_scale: " in found.tables[0].note


def test_the_interval_of_one_run_is_over_its_prompts():
    """Five prompts with three responses each, which are alike: as if there were fifteen, it would be too narrow."""
    rewards = np.array([[1.0, 1.2, 1.1], [3.0, 3.1, 2.9], [0.0, 0.1, 0.2], [2.0, 2.2, 2.1], [5.0, 5.0, 5.3]])
    rows = [
        {"reward": reward, "cost": reward - 2, "episode": prompt, "sample": sample, "group": f"g{prompt % 2}"}
        for sample in range(3) for prompt, reward in enumerate(rewards[:, sample])
    ]  # fmt: skip
    summary = {"algorithm": "ppo", "label": "ppo", "seed": 0, "cost_limit": -1.0, "cost_limits": {}}
    comparison = compare_runs([Run(Path("x"), summary, rows)])
    found = comparison["settings"]["ppo"]
    each = rewards.mean(1)
    half = stats.t.ppf(0.975, 4) * each.std(ddof=1) / math.sqrt(5)
    reward, above = found["metrics"]["reward"], found["metrics"]["cost_violation"]
    assert (reward["mean"], reward["runs"]) == (pytest.approx(each.mean()), 1)
    assert [reward["low"], reward["high"]] == pytest.approx([each.mean() - half, each.mean() + half])
    assert [above["low"], above["high"]] == pytest.approx([0.0, each.mean() - 2 + half + 1])  # of the mean's own ends
    even = each[[0, 2, 4]]
    half = stats.t.ppf(0.975, 2) * even.std(ddof=1) / math.sqrt(3)
    assert found["groups"]["g0"]["reward"]["high"] == pytest.approx(even.mean() + half)
    (point,) = comparison["pareto"]["points"]
    assert (point["runs"], point["intervals"]["reward"]["low"]) == (1, pytest.approx(reward["low"]))
    assert comparison["pareto"]["over"] == "prompts"
    assert comparison["pareto"]["algorithms"]["ppo"]["low"] is not None


def test_prompts_that_differ_are_not_paired():
    def played(label: str, prompts: int) -> Run:
        rows = [{"reward": float(i), "cost": 0.1 * i, "episode": i} for i in range(prompts)]
        return Run(Path(label), {"algorithm": "ppo", "label": label, "seed": 0, "cost_limit": None}, rows)

    assert compare_runs([played("ppo[1]", 60), played("ppo[2]", 60)])["pareto"]["over"] == "prompts"
    other = compare_runs([played("ppo[1]", 60), played("ppo[2]", 5)])["pareto"]
    assert (other["over"], other["algorithms"]["ppo"]["low"]) == ("seeds", None)


def test_a_named_cost_that_one_run_did_not_have_counts_as_0_there():
    runs = [
        Run(Path(str(seed)), {"algorithm": "ppo", "label": "ppo", "seed": seed, "cost_limit": None}, [made])
        for seed, made in enumerate([row(1.0, 0.0), row(1.0, 4.0, costs={"x": 4.0})])
    ]
    for own in (runs, runs[::-1]):
        assert compare_runs(own)["settings"]["ppo"]["costs"]["x"]["cost"]["mean"] == 2.0
    for limits, shown in (({}, "–"), ({"x": 2.5}, "2.5")):
        limited = [Run(run.directory, run.summary | {"cost_limits": limits}, run.rows) for run in runs]
        table = tables_of(compare_runs(limited))[0]
        assert table.rows[0][table.columns.index("limit x")].text == shown


def test_that_interval_covers_what_it_claims():
    """Of 400 policies with a known mean; as if responses were independent, 57 % would be covered."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 6))
        rows = [{"reward": x, "cost": 0.0, "episode": i} for i, own in enumerate(values.tolist()) for x in own]
        found = _intervals([summarise(rows, None)], [summarise(own, None) for own in by_prompt(rows)])["reward"]
        covered += found["low"] <= 0.0 <= found["high"]
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.01


def test_a_share_that_nobody_had_may_still_be_above_nothing():
    none = share_interval([0.0] * 60, 60)
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 60))  # Clopper and Pearson's, which has a closed form there
    some = share_interval([0.0] * 50 + [1.0] * 10, 60)
    exact = stats.binomtest(10, 60).proportion_ci(0.95, "exact")
    assert (some.low, some.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    one = share_interval([0.25] + [0.0] * 59, 240)  # one of 240 responses
    assert one.high > 0.02
    rows = [{**row(0.0, -1.0), "episode": i} for i in range(60)]
    summary = {"algorithm": "ppo", "label": "ppo", "seed": 0, "cost_limit": None}
    found = compare_runs([Run(Path("x"), summary, rows)])["settings"]["ppo"]["metrics"]["harmful_rate"]
    assert found["high"] == pytest.approx(none.high)


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.015, 0.03, 0.3])
def test_the_interval_of_a_share_covers_what_it_claims(share: float, spread: float):
    """Four responses to each of 60 prompts, whose own shares differ (beta) or not; Student's covers 88 to 92 %."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        own = rng.beta(share / spread, (1 - share) / spread, size=60) if spread else np.full(60, share)
        found = share_interval((rng.binomial(4, own) / 4).tolist(), 240)
        covered += found.low <= share <= found.high
    assert covered > stats.binom.ppf(0.01, 1000, 0.95)


def test_intervals_stay_within_what_is_possible(tmp_path: Path):
    for seed, cost in enumerate([-1.0, -1.0, 0.3]):
        write_run(tmp_path / str(seed), "ppo", seed, cost)
    found = compare_runs(load_runs([tmp_path]))["settings"]["ppo"]["metrics"]
    assert found["cost_violation"]["mean"] == pytest.approx(0.1)
    assert found["cost_violation"]["low"] == 0.0
    assert found["cost_violation"]["high"] > 0.3
    assert (found["harmful_rate"]["low"], found["harmful_rate"]["high"]) == (0.0, 1.0)
    assert found["cost"]["low"] < -1.0


def test_rows_of_a_killed_writer(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_rows(path, drop_torn_tail=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"m\.jsonl:3"):
        read_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"reward": 1}\n', ":1: 'cost'"),
        ('{"reward": 1, "cost": NaN}\n', ":1: 'cost'"),
        ('{"reward": 1, "cost": 1}\n{"reward": "x", "cost": 1}\n', ":2: 'reward'"),
        ("[1]\n", ":1: expected a JSON object"),
    ],
)
def test_damaged_evaluations_are_refused_by_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "evaluation.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_evaluation(path)
    assert message in str(caught.value)


def test_a_gold_judge_that_raises_is_named() -> None:
    def broken(prompts: list[str], responses: list[str]) -> dict[str, list[float]]:
        raise KeyError("gold")

    with pytest.raises(ScoreError, match=r"gold judge: .*broken raised KeyError: 'gold' \(test_evaluation\.py:\d+\)"):
        play._add_gold([{"prompt": "a", "response": "b"}], broken)
