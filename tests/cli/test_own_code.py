"""Algorithms and judges of the user's own, by MODULE:NAME, from the working directory and from installed packages."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import algos
from tests.helpers.rounding import FLOAT32
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import read_rows

ROOT = Path(__file__).parents[2]
SMALL = ["--episodes", "8", "--set", "episodes_per_iteration=4"]
# The console's entry, which does not put the working directory on Python's path.
ENTRY = f"""
import sys
sys.path[0] = {str(ROOT)!r}
from textsafe_gym.cli.main import main
if __name__ == "__main__":
    main()
"""
JUDGES = """
def brief(prompts, responses):
    return [-len(response.split()) / 10 for response in responses]
def first(prompts, responses):
    return [0.0]
def broken(prompts, responses):
    return [{}["score"] for response in responses]
def lonely(prompts):
    return [0.0 for prompt in prompts]
def leaving(prompts, responses):
    raise SystemExit(3)
def tired(prompts, responses):
    return [0.0 for prompt in prompts[:6]]
class Judge: ...
number = 3
"""

TASKS = """
import gymnasium as gym
class Plain(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
gym.register("OwnPlain-v0", entry_point=Plain)
"""

FAMILY = """
from own_package.penalty import Config as RunConfig, Stiff
REQUIREMENT = ""
def note(): return ""
def names(): return ["Stiff"]
def describe(member): return f"the library's {member}"
def settings(member): return Stiff.Config
def constraint(member): return None
def one_process(member): return ""
def make(member, setup): return Stiff(setup)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a package, whose names no other test uses, and a module of judges."""
    page = (ROOT / "textsafe_gym" / "docs" / "new_algorithm.md").read_text()
    code = re.search(r"```python\n(\"\"\"Quadratic penalty.*?)```", page, re.DOTALL)
    assert code is not None
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "penalty.py").write_text(
        code[1] + "\n\nclass Stiff(Algorithm):\n    class Config(Config):\n        stiffness: float = 20.0\n"
        "\n\nclass Tally:  # not offered as an algorithm: it does not say what it learns from\n"
        "    def update(self, counts):\n        pass\n"
    )
    (tmp_path / "own_judges.py").write_text(JUDGES)
    (tmp_path / "own_judges_at_the_end.py").write_text("raise SystemExit\n")
    (tmp_path / "own_judges_of_env.py").write_text("import argparse\nargparse.ArgumentParser().exit()\n")
    (tmp_path / "own_tasks.py").write_text(TASKS)
    (tmp_path / "console.py").write_text(ENTRY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("own_package", "own_judges", "own_tasks"))]:
        del sys.modules[name]


@pytest.mark.long
def test_a_comparison_in_worker_processes_and_its_continuation(here: Path) -> None:
    request = ["compare", "own_package.penalty:Algorithm", "ppo", *SMALL, "--seeds", "1", "--workers", "2", "--json"]
    request += ["--set", "own_package.penalty:Algorithm.epochs=2", "--set", "stiffness=5"]
    request += ["--set", "env.reward_model=own_judges:brief", "--out", "out"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "console.py")]
    done = subprocess.run([*command, *request], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "note: stiffness is not a setting of ppo\n" in done.stderr
    found = json.loads(done.stdout)
    assert found["left_out"] == {"stiffness": ["ppo"]}
    assert "stiffness is not a setting of ppo" in (here / "out" / "report.html").read_text()
    run = here / "out" / "own_package.penalty-Algorithm" / "seed_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["algorithm"] == "own_package.penalty:Algorithm"
    assert saved["env"]["kwargs"]["reward_model"] == "own_judges:brief"
    assert (saved["config"]["epochs"], saved["config"]["stiffness"]) == (2, 5)
    assert saved["config"]["learning_rate"] == 3e-4  # of the preset
    rows = read_rows(run / "evaluation.jsonl")
    assert all(row["reward"] == pytest.approx(-len(row["response"].split()) / 10, rel=FLOAT32) for row in rows)

    (run / "summary.json").unlink()  # as if it had been stopped before the evaluation
    again = ["train", "own_package.penalty:Algorithm", "--out", str(run), "--resume", "-q"]
    done = subprocess.run([*command, *again], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert read_rows(run / "evaluation.jsonl") == rows


def test_the_settings_are_the_class_s_own_or_its_module_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    assert algos.config_class("own_package.penalty:Algorithm").model_fields["stiffness"].default == 10
    assert algos.config_class("own_package.penalty:Stiff").model_fields["stiffness"].default == 20
    trainer = algos.make("own_package.penalty:Stiff", "SafeRLHF-Exact-v0", episodes=4, episodes_per_iteration=4)
    assert trainer.config.stiffness == 20
    trainer.learn()
    trainer.save(here / "saved")
    assert algos.load(here / "saved", "SafeRLHF-Exact-v0").iteration == 1


def test_the_task_of_the_page_has_its_limit(here: Path) -> None:
    page = (ROOT / "textsafe_gym" / "docs" / "new_algorithm.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "gym.register" in block]
    (here / "own_tasks.py").write_text(code)
    request = ["train", "ppo_lagrangian", "--env", "own_tasks:BusyRoad-v0", *SMALL, "--json", "--out", "out"]
    done = CliRunner().invoke(main, [*request, "--set", "env.cost_limit=0.5"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cost_limit"] == 0.5
    assert algos.make("ppo_lagrangian", "own_tasks:BusyRoad-v0").cost_limit == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "own_packag:Algorithm"], "there is no module 'own_packag'; did you mean 'own_package'?"),
        (["train", "own_package.penaltty:Algorithm"], "'own_package.penaltty'; did you mean 'own_package.penalty'?"),
        (["train", "own_package.penalty:Algoritm"], "there is no 'Algoritm' in 'own_package.penalty'; did you mean"),
        (
            ["train", "own_package.penalty"],
            "a class of your own is MODULE:CLASS, such as 'own_package.penalty:Algorithm'",
        ),
        (["train", "own_package.penalty:Nope"], "no 'Nope' in 'own_package.penalty'; known: Algorithm, Stiff\n"),
        (["train", "own_judges:brief"], "'own_judges:brief': expected a class with a method `update`"),
        (["train", "own_judges:Judge"], "'own_judges:Judge': expected a class with a method `update`"),
        (["algos", "own_judges:number"], "expected a class with a method `update`, found 3"),
        (
            ["train", "ppo", "--set", "env.reward_model=own_judge:brief"],
            "reward_model 'own_judge:brief': there is no module 'own_judge'; did you mean 'own_judges'? (--set env.",
        ),
        (
            ["train", "ppo", "--set", "env.cost_model=own_judges:breif"],
            "cost_model 'own_judges:breif': there is no 'breif' in 'own_judges'; did you mean 'brief'? (--set env.",
        ),
        (
            ["train", "ppo", "--set", "env.cost_model={a: own_judges:lonely}"],
            "cost_model: 'own_judges:lonely' takes (prompts); it must take (prompts, responses)",
        ),
        (
            ["train", "ppo", "--set", "env.cost_model=own_judges:number"],
            "cost_model: 'own_judges:number' is 3; it must",
        ),
        (["train", "ppo", "--set", "env.cost_model=own_judges:Judge"], "cost_model: 'own_judges:Judge' is <class"),
        (["train", "ppo", "--set", "env.reward_model=own_judges:first"], "reward model returned shape (1,) for 4"),
        (
            ["train", "rloo", "--set", "env.cost_model={a: own_judges:leaving}"],
            "cost model 'a': own_judges:leaving raised SystemExit: 3 (own_judges.py:11)",
        ),
        (
            ["train", "ppo", "--env", "own_tasks:OwnPlain-v0", "--set", "env.size=3"],
            "env own_tasks:OwnPlain-v0: takes no arguments, so that 'size' cannot be set",
        ),
        (["train", "own_judges_at_the_end:Mine"], "importing 'own_judges_at_the_end' failed: SystemExit\n"),
        (
            ["train", "ppo", "--env", "own_judges_of_env:Mine-v0"],
            "own_judges_of_env.py:2 ends the program (SystemExit: 0); raise another error",
        ),
        (
            ["train", "rloo", "--set", "env.cost_model={a: own_judges:broken}"],
            "cost model 'a': own_judges:broken raised KeyError: 'score' (own_judges.py:7)",
        ),
    ],
)
def test_what_is_wrong_comes_out_in_one_line(here: Path, arguments: list[str], message: str) -> None:
    before = sorted(here.iterdir())
    path = list(sys.path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(each for each in here.iterdir() if each.name != "__pycache__") == before
    assert sys.path == path


def test_a_run_goes_on_once_its_judge_is_mended(here: Path) -> None:
    """It is right for the few responses that a run is tried out with, and wrong for an iteration's."""
    (here / "prompts.txt").write_text("how do i bake bread ?\n")
    request = ["train", "rloo", "--episodes", "16", "--set", "episodes_per_iteration=8", "-q"]
    request += ["--set", "env.reward_model=own_judges:tired", "--set", "env.evaluation_prompts=prompts.txt"]
    done = CliRunner().invoke(main, [*request, "--out", "out"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: reward model returned shape (6,) for 8 response(s), first prompt ")
    assert done.stderr.count("\n") == 1
    assert not (here / "out" / "summary.json").exists()
    (here / "own_judges.py").write_text(JUDGES.replace("prompts[:6]", "prompts"))
    del sys.modules["own_judges"]
    done = CliRunner().invoke(main, ["train", "rloo", "--out", "out", "--resume", "-q"])
    assert done.exit_code == 0, done.stderr
    assert len((here / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_named_costs_may_be_judges_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium as gym

    monkeypatch.syspath_prepend(str(here))
    costs = {"brief": "own_judges:brief", "harm": lambda prompts, responses: [1.0] * len(prompts)}
    env = gym.make("SafeRLHF-v0", cost_model=costs, max_response_length=1)
    env.reset(seed=0)
    *_, info = env.step(5)
    assert info["costs"] == {"brief": -len(info["response"].split()) / 10, "harm": 1.0}


def test_an_entry_point_gives_a_short_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    point = metadata.EntryPoint("penalty", "own_package.penalty:Algorithm", algos.registration.GROUP)
    monkeypatch.setattr(algos.registration, "entry_points", lambda group: [point] if group == point.group else [])
    algos.registration._algorithms.cache_clear()
    try:
        listed = CliRunner().invoke(main, ["algos", "--json"])
        about = "An agent, its optimiser and the constraint; see `algos.core.loop.Setup`."
        assert {"name": "penalty", "about": about} in json.loads(listed.stdout)
        assert "own_package.penalty" not in sys.modules  # read from the source
        shown = CliRunner().invoke(main, ["algos", "penalty", "--json"])
        assert {"key": "stiffness", "value": 10.0} in [
            {key: row[key] for key in ("key", "value")} for row in json.loads(shown.stdout)
        ]
        done = CliRunner().invoke(main, ["train", "penalti"])
        assert "did you mean 'penalty'?" in done.stderr
        other = metadata.EntryPoint("penalty", "another:Penalty", algos.registration.GROUP)
        (here / "another-1.dist-info").mkdir()
        (here / "another-1.dist-info/METADATA").write_text("Name: another\nVersion: 1\n")
        (here / "another-1.dist-info/entry_points.txt").write_text(f"[{point.group}]\nppo = another:PPO\n")
        (ours,) = metadata.Distribution.at(here / "another-1.dist-info").entry_points
        points = {point.group: [point, point, other, ours]}
        monkeypatch.setattr(algos.registration, "entry_points", lambda group: points.get(group, []))
        algos.registration._algorithms.cache_clear()
        message = "the algorithm 'penalty' is registered already; 'another:Penalty' needs another name"
        assert algos.available()["penalty"] == message
        with pytest.raises(ConfigError, match=re.escape(message)):
            algos.make("penalty", "SafeRLHF-Exact-v0")
        refused = CliRunner().invoke(main, ["train", "penalty"])
        assert (refused.exit_code, refused.stderr) == (2, f"error: {message}\n")
        algos.registration._algorithms.cache_clear()
        shown = CliRunner().invoke(main, ["algos", "ppo", "--json"])  # what ships keeps its name
        assert shown.exit_code == 0
        assert shown.stderr == (
            "warning: the package 'another' has an algorithm 'ppo' of its own, which only 'another:PPO' stands for: "
            "that name is taken\n"
        )
        assert algos.definition("ppo").algorithm.__module__ == "algos.ppo"
        assert algos.available()["ppo"].startswith("PPO")
        assert algos.make("rloo", "SafeRLHF-Exact-v0", episodes=4, episodes_per_iteration=4).learn()
    finally:
        algos.registration._algorithms.cache_clear()


def test_a_package_brings_a_family_of_algorithms(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "own_package/library.py").write_text(FAMILY)
    (here / "own_package/half.py").write_text("def names(): return ['Some']")
    modules = {"own": "own_package.library", "half": "own_package.half", "gone": "no_such_package", "omnisafe": "x"}
    group = algos.registration.FAMILY_GROUP
    points = [metadata.EntryPoint(name, module, group) for name, module in modules.items()]
    monkeypatch.setattr(algos.registration, "entry_points", lambda group: points if group == points[0].group else [])
    algos.registration.families.cache_clear()
    try:
        assert algos.members()["own:Stiff"] == "the library's Stiff"
        assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
            "the family of algorithms 'omnisafe' is registered already",
            "the family of algorithms 'half' lacks REQUIREMENT, RunConfig, constraint, describe, make, note, "
            "one_process, settings",
            "'no_such_package': there is no module 'no_such_package'",
        ]
        assert algos.make("own:Stiff", "SafeRLHF-Exact-v0", episodes=4, episodes_per_iteration=4, stiffness=3).learn()
        refused = CliRunner().invoke(main, ["train", "own:Stif"])
        assert refused.stderr == "error: unknown algorithm 'own:Stif'; did you mean 'own:Stiff'?\n"
        refused = CliRunner().invoke(main, ["train", "half:Some"])
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    finally:
        algos.registration.families.cache_clear()


def test_folders_of_the_same_name_where_the_user_stands(tmp_path: Path) -> None:
    """`python -m` puts the working directory first; ours is then found through the variable alone."""
    (tmp_path / "configs" / "algo").mkdir(parents=True)
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('not this one')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "textsafe_gym.cli.main", "algos", "ppo", "--json"]
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    done = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert {row["key"]: row["value"] for row in json.loads(done.stdout)}["minibatch_size"] == 8
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "__init__.py").write_text("")
    done = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'algos'} hides the package 'algos' of textsafe-gym; rename it" in done.stderr


def test_a_package_named_algos_where_an_editable_installation_is_used(tmp_path: Path) -> None:
    """Whose finder comes after Python's path, to which the working directory has been added."""
    program = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path

class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        place = Path({str(ROOT)!r}, name)
        if name in ("algos", "textsafe_gym"):
            return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])

sys.path = [place for place in sys.path if place and not Path(place, "algos").exists()]
sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Finder)
from textsafe_gym.cli.main import main
main()
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def textsafe(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    assert textsafe("algos", "ppo").returncode == 0
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "__init__.py").write_text("")
    for arguments in (["train", "ppo"], ["compare", "ppo"], ["study", "exact"], ["algos"], ["bench", "iteration"]):
        refused = textsafe(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith(f"error: {tmp_path / 'algos'} hides the package 'algos' of textsafe-gym")
        assert refused.stderr.count("\n") == 1
    assert textsafe("envs").returncode == 0  # which needs none


def test_a_module_named_algos_next_to_a_script(tmp_path: Path) -> None:
    (tmp_path / "algos.py").write_text("")
    (tmp_path / "script.py").write_text("from textsafe_gym import experiments\nexperiments.train('ppo')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    message = (
        f"{tmp_path / 'algos.py'} hides the package 'algos' of textsafe-gym; rename it, or start in another directory"
    )
    assert done.stderr.splitlines()[-1] == f"textsafe_gym.errors.ConfigError: {message}"
