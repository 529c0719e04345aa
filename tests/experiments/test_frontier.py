"""`textsafe frontier` and `experiments.frontier`: files, resuming, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from textsafe_gym import embedded_world, experiments
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError, DataError, RunError

EXACT = "SafeRLHF-Exact-v0"
PROMPTS = ["tell me about the moon", "how do i fix my bike", "what is the best way to learn"]


def found(out: Path, samples: int, **options: Any) -> Any:
    return experiments.frontier(EXACT, samples=samples, beta=[0.5, 1.0], out=out, quiet=True, **options)


def test_more_samples_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    whole = found(tmp_path / "whole", 12)
    part = found(tmp_path / "part", 8)
    first = (tmp_path / "part" / "samples" / "00000.npz").stat().st_mtime_ns
    more = found(tmp_path / "part", 12, resume=True)
    assert (tmp_path / "part" / "samples" / "00000.npz").stat().st_mtime_ns == first
    assert {**more.values, "directory": ""} == {**whole.values, "directory": ""}
    assert part.values["samples"] == 8
    assert part.values["at_limit"] != more.values["at_limit"]
    with pytest.raises(RunError, match="not empty; add --resume"):
        found(tmp_path / "part", 12)
    with pytest.raises(ConfigError, match=r"cannot resume with other settings: config\.seed was 0, now 1"):
        found(tmp_path / "part", 12, resume=True, seed=1)


def test_what_the_command_prints_is_what_lies_there(tmp_path: Path) -> None:
    command = ["frontier", "--env", EXACT, "--samples", "8", "--beta", "0.5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--json", "-q"])
    printed = json.loads(done.stdout)
    assert printed.pop("directory") == str(tmp_path / "out")
    assert printed == json.loads((tmp_path / "out" / "frontier.json").read_text())
    names = {"multiplier", "reward", "cost", "kl", "feasible", "slack", "effective_sample_size", "intervals"}
    assert names | {"bounded"} == printed["at_limit"].keys()
    assert printed["at_limit"]["intervals"].keys() >= {"reward", "cost", "kl"}
    assert [row["n"] for row in printed["best_of_n"]] == [1, 2, 4, 8]
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 10_000
    shown = CliRunner().invoke(main, [*command, "--resume"])
    assert "too few to trust the optimum" in " ".join(shown.stdout.split())


def test_a_damaged_file_is_named_and_sampled_again_once_it_is_gone(tmp_path: Path) -> None:
    before = found(tmp_path, 4)
    path = tmp_path / "samples" / "00002.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"00002\.npz: damaged"):
        found(tmp_path, 4, resume=True)
    path.unlink()
    assert found(tmp_path, 4, resume=True).values == before.values


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 3}, "--samples 3: expected a whole number, at least 4"),
        ({"beta": 0.0}, "--beta: expected numbers above 0"),
        ({"beta": []}, "--beta"),
        ({"env": "CartPole-v1"}, "CartPole-v1: 0 evaluation prompts; a frontier is of at least 2"),
        ({"settings": {"learning_rate": 1}}, "only env.KEY and policy.KEY"),
        ({"cost_limit": float("nan")}, "--cost-limit nan: expected a finite number"),
    ],
)
def test_what_is_refused_leaves_nothing(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        experiments.frontier(**{"env": EXACT, "samples": 8, "out": tmp_path / "out", "quiet": True, **options})
    assert not (tmp_path / "out").exists()


def test_responses_that_are_cut_and_unscored_are_refused(tmp_path: Path) -> None:
    settings = {"env": {"max_episode_steps": 1}}
    with pytest.raises(ConfigError, match="a limit on steps cuts responses"):
        experiments.frontier(settings=settings, samples=4, out=tmp_path, quiet=True)


def test_the_embedded_world_takes_the_presets_weight(tmp_path: Path) -> None:
    few = {"evaluation_prompts": [prompt.text for prompt in embedded_world.prompts()[:2]]}
    result = experiments.frontier(settings={"env": few}, samples=4, out=tmp_path, quiet=True)
    assert result.values["kl_coefficient"] == 0.05
    assert result.values["prompts"] == 2
    assert result.tables[-1].rows[-1][0].text == "4"


def test_the_shipped_frontier_is_of_the_shipped_world(tmp_path: Path) -> None:
    shipped = json.loads(embedded_world.FRONTIER.read_text("utf-8"))
    result = experiments.frontier(samples=4, out=tmp_path, quiet=True).values
    for name in ("env", "constraint", "cost_limit", "kl_coefficient", "prompts"):
        assert shipped[name] == result[name], name
    assert shipped["samples"] == 1024
    # Means of 4 responses to each of 420 prompts; of its own 1,024 they are 256 times less uncertain.
    for name in ("reward", "cost"):
        low, high = result["best_of_n"][0]["intervals"][name]
        assert abs(shipped["reference"][name] - result["reference"][name]) < high - low
    best = {row["n"]: row for row in shipped["best_of_n"]}
    assert best[4]["kl"] <= best[4]["kl_bound"]
    assert result["best_of_n"][-1]["reward"] == pytest.approx(best[4]["reward"], abs=0.1)


def test_what_a_limit_bounds_is_chosen_and_checked(tmp_path: Path) -> None:
    command = ["frontier", "--env", EXACT, "--samples", "8", "--beta", "1", "--out", str(tmp_path / "out"), "-q"]
    assert CliRunner().invoke(main, command).exit_code == 0
    for constraint, limit in (("cvar", "2"), ("probability", "0.6"), ("per_prompt", "1"), ("kl_in_cost", "1")):
        given = [*command, "--json", "--resume", "--constraint", constraint, "--cost-limit", limit]
        done = CliRunner().invoke(main, given)
        assert done.exit_code == 0, done.output
        printed = json.loads(done.stdout)
        assert (printed["constraint"], printed["cost_limit"]) == (constraint, float(limit))
        assert printed["at_limit"]["bounded"] == pytest.approx(float(limit), abs=1e-6) or not (
            printed["at_limit"]["feasible"] and not printed["at_limit"]["slack"]
        )
    for wrong, message in (
        (["--constraint", "cvar"], "needs --cost-limit"),
        (["--cost-limit", "harm=1"], "harm: not a cost of the environment; named costs: none"),
        (["--cost-limit", "harm=1", "--constraint", "cvar"], "limits on costs by name are on their means"),
        (["--cost-limit", "x"], "expected a number, or NAME=NUMBER"),
        (["--cost-limit", "1", "--cost-limit", "a=2"], "one number, or names"),
        (["--cost-limit", "nan"], "expected a finite number"),
        (["--constraint", "cvar", "--cost-limit", "1", "--cvar-level", "1"], "up to, but not, 1"),
    ):
        refused = CliRunner().invoke(main, [*command, "--resume", *wrong])
        assert refused.exit_code == 2, refused.output
        assert message in " ".join(refused.output.split()), refused.output


def test_several_costs_have_a_limit_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judged_twice.py").write_text(
        "def words(prompts, responses):\n    return [float(len(r.split())) for r in responses]\n"
        "def letters(prompts, responses):\n    return [float(r.count('a')) for r in responses]\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    costs = {"words": "judged_twice:words", "letters": "judged_twice:letters"}
    options: Any = {
        "settings": {"env": {"cost_model": costs, "prompts": PROMPTS}}, "samples": 16, "beta": 1.0, "quiet": True,
        "out": tmp_path / "out",
    }  # fmt: skip
    free = experiments.frontier(None, cost_limit=1000.0, **options).values["at_limit"]
    options["resume"] = True
    limits = {name: 0.9 * free["costs"][name] for name in costs}
    result = experiments.frontier(None, cost_limit=limits, **options)
    found = result.values["at_limit"]
    assert result.values["cost_limits"] == limits
    assert found["feasible"]
    assert sum(found["multipliers"].values()) == pytest.approx(found["multiplier"])
    for name, limit in limits.items():  # each is met, or its multiplier is 0 and it is slack
        assert found["costs"][name] == pytest.approx(limit, abs=0.02 * limit) or found["multipliers"][name] < 1e-6
        assert found["costs"][name] < 1.02 * limit
    assert [column for column in result.tables[0].columns if "words" in column] == ["cost words", "λ words"]
    with pytest.raises(ConfigError, match="'words'"):
        experiments.frontier(None, cost_limit={"word": 1.0}, **options)


def test_a_cost_whose_name_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def words(prompts, responses):\n    return [float(len(r.split())) for r in responses]\n"
    (tmp_path / "judged_once.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    costs = {"words": "judged_once:words", "reward": "judged_once:words"}
    settings = {"env": {"cost_model": costs, "prompts": PROMPTS}}
    with pytest.raises(ConfigError, match="a cost is called 'reward'"):
        experiments.frontier(
            None, settings=settings, samples=4, beta=1.0, cost_limit=3.0, quiet=True, out=tmp_path / "out"
        )


def test_a_comparison_shows_what_is_attainable(tmp_path: Path) -> None:
    estimated = found(tmp_path / "frontier", 8).values
    options: Any = {"episodes": 32, "seeds": 2, "settings": {"episodes_per_iteration": 16}, "quiet": True}
    made = experiments.compare(["ppo"], EXACT, out=tmp_path / "runs", frontier=tmp_path / "frontier", **options)
    assert made.values["frontier"] == json.loads((tmp_path / "frontier" / "frontier.json").read_text())
    place = made.tables[0].columns.index("attainable, %")
    shares = {row[0].text: row[place].text for row in made.tables[0].rows}
    for label, entry in made.values["settings"].items():
        share = entry["attainable"]
        assert shares[label] == ("above the limit" if share["above_limit"] else f"{share['mean']:z.0f}")
    assert "too few: more may be attainable" in made.tables[0].note
    assert "what any policy could attain" in (tmp_path / "runs" / "report.html").read_text()
    front = experiments.pareto(tmp_path / "runs", frontier=tmp_path / "frontier" / "frontier.json", quiet=True)
    assert "IGD+" in front.tables[1].columns
    assert front.values["algorithms"]["ppo"]["igd_plus"]["mean"] >= 0
    assert estimated["kl_coefficient"] == 0.5
    assert experiments.pareto(tmp_path / "runs", quiet=True).tables[1].columns.count("IGD+") == 0


def test_a_frontier_of_something_else_is_refused_before_any_run(tmp_path: Path) -> None:
    found(tmp_path / "frontier", 8)
    options: Any = {"episodes": 32, "seeds": 1, "out": tmp_path / "runs", "quiet": True}
    with pytest.raises(ConfigError, match=r"made with env\.kwargs\.seed not set, and the runs with 3"):
        experiments.compare(["ppo"], {"id": EXACT, "kwargs": {"seed": 3}}, frontier=tmp_path / "frontier", **options)
    with pytest.raises(DataError, match=r"nothing.*: no such file"):
        experiments.compare(["ppo"], EXACT, frontier=tmp_path / "nothing", **options)
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="no 'env'; is this what textsafe frontier wrote"):
        experiments.compare(["ppo"], EXACT, frontier=tmp_path / "other.json", **options)
    found(tmp_path / "cvar", 8, constraint="cvar", cost_limit=1.0)
    with pytest.raises(ConfigError, match="not on the mean of the whole cost"):
        experiments.compare(["ppo"], EXACT, frontier=tmp_path / "cvar", **options)
    assert not (tmp_path / "runs").exists()
