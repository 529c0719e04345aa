"""An installation without extras is an environment with its score models; what else is asked for names the extra."""

import ast
import json
import shutil
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers.installs import ROOT, link_requirements, run
from tests.helpers.rounding import FLOAT64

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "stable-baselines3": "stable_baselines3"}
# No requirement can be met of these: OmniSafe is installed next to the extra of its name, and replaces the other.
BESIDES = {"omnisafe", "safety_gymnasium"}
MISSING = 'pip install "textsafe-gym[train]"'


def modules(requirements: list[str]) -> set[str]:
    names = [Requirement(text).name for text in requirements]
    return {MODULES.get(name, name) for name in names}


@pytest.fixture(scope="module")
def base(wheel_install: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install textsafe-gym` puts into a fresh environment."""
    site = tmp_path_factory.mktemp("base") / "site"
    shutil.copytree(wheel_install, site)
    link_requirements(site)
    return site


def test_an_episode_is_walked_and_scored_without_extras(base: Path, tmp_path: Path) -> None:
    done = run(base, tmp_path, ROOT / "tests/helpers/base_install.py", alone=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(base)
    assert set(found["imported"]) <= modules(PROJECT["dependencies"])
    assert found["reward"] != 0
    assert found["cost"] != 0
    assert 0 not in found["rewards"]
    assert found["optimum"] == pytest.approx(0, abs=FLOAT64)  # the limit, which binds


@pytest.mark.parametrize("command", [["bin/textsafe"], ["-m", "textsafe_gym"]], ids=" ".join)
def test_the_command_line_names_the_extra(base: Path, command: list[str]) -> None:
    for arguments in (["train", "ppo"], ["--help"], []):
        done = run(base, base, *command, *arguments, alone=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: not installed: ")
        assert MISSING in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["algos", "algos.core.loop", *(f"textsafe_gym.{room}" for room in (
    "experiments", "evaluation.figures", "fitting.fit", "planning", "tracking"))])  # fmt: skip
def test_modules_name_the_extra(module: str, base: Path, tmp_path: Path) -> None:
    done = run(base, tmp_path, "-c", f"import {module}", alone=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("textsafe_gym.errors.MissingExtraError: not installed: ")
    assert last.endswith(MISSING)


def test_low_rank_adapters_name_the_extra(base: Path, tmp_path: Path) -> None:
    program = "from textsafe_gym.models.lora import add_new; add_new(None, 'actor', 2, 4)"
    done = run(base, tmp_path, "-c", program, alone=True)
    assert done.stderr.splitlines()[-1].endswith(MISSING)


@pytest.mark.long
def test_sources_that_are_not_installed_have_no_version(tmp_path: Path) -> None:
    program = """
from importlib import metadata
def distribution(name, known=metadata.distribution):
    if name == "textsafe-gym":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.distribution = distribution
from textsafe_gym.__main__ import main
main()
"""
    small = ["--env", "SafeRLHF-Exact-v0", "--episodes", "8", "--set", "episodes_per_iteration=8"]
    for arguments, expected in (
        (["--version"], "textsafe, version unknown (not installed)"),
        (["compare", "ppo", *small, "--seeds", "1", "--out", "out"], "report.html"),
    ):
        done = run(ROOT, tmp_path, "-c", program, *arguments)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    card = (tmp_path / "out/ppo/seed_0/checkpoints/latest/policy/README.md").read_text()
    assert "Made by textsafe-gym unknown (not installed)." in card


def test_every_import_is_of_a_declared_requirement() -> None:
    declared = modules([*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())])
    for path in [*(ROOT / "textsafe_gym").rglob("*.py"), *(ROOT / "algos").rglob("*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
        unknown = names - declared - BESIDES - sys.stdlib_module_names - {"textsafe_gym", "algos", "configs"}
        assert not unknown, f"{path} imports {unknown}, which pyproject.toml does not name"
