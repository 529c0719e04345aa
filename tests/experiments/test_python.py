"""The functions of `textsafe_gym.experiments` against the commands: the same values and the same files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.clock import timeless
from tests.helpers.commands import printed
from textsafe_gym import experiments
from textsafe_gym.errors import ConfigError, RunError, TextsafeError

FAST = {"episodes_per_iteration": 8, "epochs": 1}


@pytest.fixture(scope="module")
def environment(world: Path) -> dict[str, Any]:
    """What the world's YAML file holds."""
    return dict(yaml.safe_load((world / "env.yaml").read_text()))


@pytest.fixture(scope="module")
def compared(world: Path, environment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A comparison made in Python, and the directory of the same one made by the command."""
    here, there = (tmp_path_factory.mktemp("compared") / name for name in ("python", "command"))
    result = experiments.compare(
        ["ppo", "reward_shaping"], env=environment, seeds=2, episodes=16, vary={"reward_shaping.cost_weight": [0.5, 2]},
        settings={**FAST, "ppo.kl_coefficient": 0.2, "env": {"cost_limit": -0.1}}, out=here, quiet=True,
    )  # fmt: skip
    printed(
        "compare", "ppo", "reward_shaping", "--env", world / "env.yaml", "--seeds", 2, "--episodes", 16,
        "--vary", "reward_shaping.cost_weight=0.5,2", *flags(FAST), "--set", "ppo.kl_coefficient=0.2",
        "--set", "env.cost_limit=-0.1", "--out", there,
    )  # fmt: skip
    return result, there


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def same_files(one: Path, other: Path, *, apart: tuple[str, ...] = ()) -> int:
    """Asserts that two directories hold the same files, but for times and those in `apart`; returns how many."""

    def listed(root: Path) -> list[Path]:
        files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return sorted(path for path in files if not path.name.startswith("events.out.tfevents"))  # with the time

    assert listed(one) == listed(other)
    same = [path for path in listed(one) if path.name not in apart]
    for path in same:
        texts = [(root / path).read_bytes() for root in (one, other)]
        if path.suffix in (".json", ".jsonl"):
            lines = [text.split(b"\n") if path.suffix == ".jsonl" else [text] for text in texts]
            parsed = [[timeless(json.loads(line), "directory") for line in each if line] for each in lines]
            assert parsed[0] == parsed[1], path
        else:
            assert texts[0] == texts[1], path
    return len(same)


def test_a_run_is_the_commands(environment: dict[str, Any], world: Path, tmp_path: Path) -> None:
    arguments = {"episodes": 16, "seed": 3, "quiet": True}
    nested = experiments.train("ppo", environment, settings={**FAST, "env": {"cost_limit": -1}}, **arguments,
                               out=tmp_path / "nested")  # fmt: skip
    dotted = experiments.train("ppo", world / "env.yaml", settings={**FAST, "env.cost_limit": -1}, **arguments,
                               out=tmp_path / "dotted")  # fmt: skip
    by_command = printed("train", "ppo", "--env", world / "env.yaml", *flags(FAST), "--set", "env.cost_limit=-1",
                         "--episodes", 16, "--seed", 3, "--out", tmp_path / "command")  # fmt: skip
    assert (
        timeless(nested.values, "directory")
        == timeless(dotted.values, "directory")
        == timeless(by_command, "directory")
    )
    assert nested.values["directory"] == str(nested.directory) == str(tmp_path / "nested")
    assert same_files(tmp_path / "nested", tmp_path / "command") > 8
    same_files(tmp_path / "nested", tmp_path / "dotted")
    assert nested.tables[0].title == "Comparison"
    (run,) = nested.runs
    assert (run.algorithm, run.seed, len(run.rows), len(run.metrics)) == ("ppo", 3, 3, 2)
    assert run.summary["cost_limit"] == -1
    assert repr(run) == f"Run('ppo', seed=3, directory='{tmp_path / 'nested'}')"
    titles = [table.title for table in nested.tables]
    assert repr(nested) == f"Result(directory='{tmp_path / 'nested'}', labels=['ppo'], tables={titles})"
    assert [path.name for path in nested.figures] == ["learning_curves.png"]
    assert (tmp_path / "nested/learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_is_the_commands(compared: tuple[Any, Path]) -> None:
    result, there = compared
    assert same_files(result.directory, there, apart=("report.html",)) > 60  # which says how it was made
    assert result.values == {"directory": str(result.directory)} | json.loads(
        (result.directory / "comparison.json").read_text()
    )
    assert [figure.name for figure in result.figures] == ["learning_curves.png", "pareto.png"]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in result.figures)
    assert result.tables[-1].title == "Hypervolume"
    report = (result.directory / "report.html").read_text()
    assert "compare([&#39;ppo&#39;, &#39;reward_shaping&#39;], env=" in report


def test_a_frame_has_a_row_for_each_run(compared: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    result, _ = compared
    frame = result.frame()
    assert len(frame) == len(result.runs) == 8
    assert set(frame["label"]) == set(result.values["settings"])
    means = frame.groupby("label")[["reward", "cost", "cost_violation"]].mean()
    for label, setting in result.values["settings"].items():
        for name in means:
            assert means.loc[label, name] == pytest.approx(setting["metrics"][name]["mean"])
    shown = result.tables[0].frame().set_index("algorithm")
    assert list(shown.index) == list(result.values["settings"])
    for label, setting in result.values["settings"].items():
        assert shown.loc[label, "responses"] == setting["episodes"]
        for key, column in (("mean", "reward"), ("low", "reward, low"), ("high", "reward, high")):
            assert shown.loc[label, column] == pytest.approx(setting["metrics"]["reward"][key], abs=0.0051)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        result.frame()


def test_the_front_and_an_evaluation_are_the_commands(compared: tuple[Any, Path], world: Path, tmp_path: Path) -> None:
    result, _ = compared
    front = experiments.pareto(result.directory, cost_limit=0.0, reference=(-9, 9), out=tmp_path / "python")
    by_command = printed(
        "pareto", result.directory, "--cost-limit", 0, "--reference", -9, 9, "--out", tmp_path / "command"
    )
    assert timeless(front.values, "directory") == timeless(by_command, "directory")
    assert [table.title for table in front.tables] == ["Settings", "Hypervolume"]
    assert same_files(tmp_path / "python", tmp_path / "command") == 2
    run = result.directory / "ppo/seed_0"
    again = experiments.evaluate(run, seed=7, settings={"policy.temperature": 0.5}, out=tmp_path / "p", quiet=True)
    by_command = printed("evaluate", run, "--seed", 7, "--set", "policy.temperature=0.5", "--out", tmp_path / "c")
    assert timeless(again.values, "directory") == timeless(by_command, "directory")
    assert same_files(tmp_path / "p", tmp_path / "c") == 3
    assert again.figures == [tmp_path / "p/pareto.png"]
    assert again.figures[0].read_bytes().startswith(b"\x89PNG")
    assert len(experiments.pareto([tmp_path / "p"], out=tmp_path / "of-evaluations").runs) == 1


def test_policies_of_other_settings_are_not_evaluated_as_repetitions(
    compared: tuple[Any, Path], tmp_path: Path
) -> None:
    run, other = compared[0].directory / "ppo/seed_0", tmp_path / "other"
    shutil.copytree(run, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["config"] |= {"seed": 5, "kl_coefficient": 0.7}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match=rf"{other}: 'ppo' has config.kl_coefficient 0.7 here and 0.2 in {run}; "):
        experiments.evaluate([run, other], out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_study_is_the_commands(tmp_path: Path) -> None:
    plan = {
        "env": {"id": "SafeRLHF-Exact-v0", "kwargs": {"kl_coefficient": 0.2}},
        "seeds": 1,
        "limits": [0.0],
        "settings": {"episodes": 32, "episodes_per_iteration": 16, "kl_coefficient": 0.2},
        "algorithms": {"rloo_lagrangian": {}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plan))
    result = experiments.study(tmp_path / "mine.yaml", out=tmp_path / "python", quiet=True)
    by_command = printed("study", tmp_path / "mine.yaml", "--out", tmp_path / "command")
    assert timeless(result.values, "directory") == timeless(by_command, "directory")
    assert same_files(tmp_path / "python", tmp_path / "command") > 8
    assert result.tables[0].columns[0] == "algorithm"
    assert [run.algorithm for run in result.runs] == ["rloo_lagrangian"]


def test_what_is_left_is_continued(environment: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"settings": FAST, "episodes": 16, "out": tmp_path, "quiet": True}
    first = experiments.compare("rloo", environment, seeds=1, **options)
    with pytest.raises(RunError, match="is not empty"):
        experiments.compare("rloo", environment, seeds=2, **options)
    second = experiments.compare("rloo", environment, seeds=2, resume=True, **options)
    assert [run.seed for run in second.runs] == [0, 1, 0, 1]
    assert first.runs[1].rows == second.runs[2].rows


def test_an_interrupted_call_says_how_to_go_on(
    environment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("textsafe_gym.experiments.pool.run_all", interrupted)
    with pytest.raises(KeyboardInterrupt, match="continue with: ") as one:
        experiments.train("rloo", environment, settings=FAST, episodes=8, out=tmp_path / "one")
    assert str(one.value).endswith(f"train('rloo', out={str(tmp_path / 'one')!r}, resume=True)")
    with pytest.raises(KeyboardInterrupt) as two:
        experiments.compare(["rloo"], environment, settings=FAST, episodes=8, seeds=1, out=tmp_path / "two")
    call = str(two.value).partition("compare(")[2]
    assert call.startswith("['rloo'], env={'id': ")
    assert call.endswith(f"out={str(tmp_path / 'two')!r}, resume=True)")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 1, "clipp": 0.1}, "unknown key 'clipp' (settings['clipp'])"),
        ({"env.cost_limit": 1, "env": {"cost_limit": 2}}, "settings['env.cost_limit']: is set twice"),
        ({"env": {"reward_model": print}}, "settings['env.reward_model']: a run's config.yaml holds"),
        ({"epochs": 1, "epochs.x": 2}, "settings['epochs.x']: 'epochs' already has a value"),
        ({3: 4}, "expected the name of a setting"),
    ],
)
def test_wrong_settings_are_named(settings: dict[Any, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        experiments.train("ppo", settings=settings, out=tmp_path / "out")
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "request_",
    [
        lambda out: experiments.train("ppo", {"id": "SafeRLHF-v0", "kwarg": {}}, out=out),
        lambda out: experiments.train("ppo", resume=True),
        lambda out: experiments.train("ppo", track="wand", out=out),
        lambda out: experiments.compare([], out=out),
        lambda out: experiments.compare("ppo", seeds=0, out=out),
        lambda out: experiments.compare("ppo", workers=0, out=out),
        lambda out: experiments.compare("ppo", seed=-1, out=out),
        lambda out: experiments.compare(["ppo"], vary={"rloo.epochs": [1]}, out=out),
        lambda out: experiments.compare(["ppo"], vary={"ppo.epochs": [[1]]}, out=out),
        lambda out: experiments.evaluate([], out=out),
        lambda out: experiments.evaluate(out / "none", out=out),
        lambda out: experiments.pareto(out),
        lambda out: experiments.study("exakt", out=out),
    ],
)
def test_wrong_requests_leave_nothing(request_: Any, tmp_path: Path) -> None:
    with pytest.raises(TextsafeError):
        request_(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: experiments.train("ppo", settings="learning_rate=1"), "settings = 'learning_rate=1': expected a mapp"),
        (lambda: experiments.train("ppo", settings=5), "settings = 5: expected a mapping, or KEY=VALUE in a list"),
        (lambda: experiments.train(dict), "algorithm = <class 'dict'>: expected a name or 'MODULE:CLASS'"),
        (lambda: experiments.train("ppo", 5), "env = 5: expected an id, a path or a mapping"),
        (lambda: experiments.train("ppo", episodes=8.5), "episodes = 8.5: expected a whole number, at least 1"),
        (lambda: experiments.train("ppo", data=5), "data = 5: expected paths"),
        (lambda: experiments.train("ppo", out=5), "out = 5: expected a path"),
        (lambda: experiments.train("ppo", timeout="1"), "timeout = '1': expected a number"),
        (lambda: experiments.compare("ppo", seeds=1.5), "seeds = 1.5: expected a whole number, at least 1"),
        (lambda: experiments.compare("ppo", seeds=True), "seeds = True: expected a whole number, at least 1"),
        (lambda: experiments.compare(["ppo", dict]), "algorithms = ['ppo', <class 'dict'>]: expected names"),
        (lambda: experiments.compare("ppo", vary={"ppo.epochs": 1}), "vary = {'ppo.epochs': 1}: expected a mapping"),
        (lambda: experiments.compare("ppo", vary="ppo.epochs=1"), "vary = 'ppo.epochs=1': expected a mapping"),
        (lambda: experiments.compare("ppo", out=None), "out = None: expected a path"),
        (lambda: experiments.study("exact", only="ppo"), "only = 'ppo': expected names in a list"),
        (lambda: experiments.study("exact", workers=0), "workers = 0: expected a whole number, at least 1"),
        (lambda: experiments.evaluate(5), "sources = 5: expected paths"),
        (lambda: experiments.pareto(5), "directories = 5: expected paths"),
        (lambda: experiments.pareto("x", reference=1), "reference = 1: expected two numbers"),
    ],
)
def test_arguments_of_another_kind_are_named(
    call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        call()
    assert str(refused.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_importing_the_package_loads_no_model_library() -> None:
    program = "import sys, textsafe_gym.experiments; print({'torch', 'transformers', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_runs_settings_go_with_its_own_preset_alone(
    environment: dict[str, Any], compared: tuple[Any, Path], tmp_path: Path
) -> None:
    config = compared[0].directory / "ppo/seed_0/config.yaml"
    with pytest.raises(ConfigError, match="is of a run with the preset 'small'"):
        experiments.train("ppo", config=config, preset="paper", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = experiments.train("ppo", config=config, preset="small", out=tmp_path / "out", quiet=True)
    assert yaml.safe_load((again.directory / "config.yaml").read_text()) == yaml.safe_load(config.read_text())


def test_the_setting_that_was_changed_is_named_first(environment: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"episodes": 16, "seeds": 1, "out": tmp_path, "quiet": True}
    experiments.compare("rloo", environment, settings=FAST, **options)
    changed = {**FAST, "episodes_per_iteration": 16}
    with pytest.raises(ConfigError, match=r"other settings: config.episodes_per_iteration was 8, now 16; "):
        experiments.compare("rloo", environment, settings=changed, resume=True, **options)
