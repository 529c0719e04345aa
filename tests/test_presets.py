"""One name, one default: presets mean the same in Python, on the command line and for algorithms from outside."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict

import algos
from textsafe_gym.cli.main import main
from textsafe_gym.errors import UnknownNameError
from textsafe_gym.experiments.spec import build_spec
from textsafe_gym.installation import shipped
from textsafe_gym.presets import SMALL, preset_settings

NOTHING: dict[str, Any] = {"env": None, "config": None, "assignments": [], "episodes": None, "seed": None}
# What each line of the preset is about, on the embedded world.
EXPECTED = {
    "minibatch_size": 8,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "constant",
    "critic_learning_rate": 3e-3,
    "gae_lambda": 1.0,
    "kl_coefficient": 0.05,
    "value_coefficient": 0.1,
    "multiplier_init": 1.0,
    "multiplier_learning_rate": 0.05,
}


def test_small_is_the_default_everywhere() -> None:
    assert SMALL == "small"
    trainer = algos.make("ppo_lagrangian", "SafeRLHF-Exact-v0")
    asked = build_spec("ppo_lagrangian", **NOTHING)
    assert asked.preset == "small"
    assert trainer.config.model_dump(mode="json") == asked.config
    assert {key: asked.config[key] for key in EXPECTED} == EXPECTED


@pytest.mark.parametrize("name", [*algos.available(), *algos.members()])
def test_paper_is_the_settings_own_defaults(name: str) -> None:
    schema = algos.config_class(name)
    assert preset_settings("paper", name, schema).values == {}
    if ":" not in name:
        changed = schema().model_dump() | preset_settings("small", name, schema).values
        assert changed != schema().model_dump()
        assert build_spec(name, preset="paper", **NOTHING).config == schema().model_dump(mode="json")


def test_python_takes_a_preset_and_settings_over_it() -> None:
    config = algos.make("ppo", "SafeRLHF-Exact-v0", preset="paper", gae_lambda=0.5).config
    assert (config.learning_rate, config.gae_lambda, config.minibatch_size) == (1e-5, 0.5, 128)
    with pytest.raises(UnknownNameError, match="unknown preset 'smal'; did you mean 'small'"):
        algos.make("ppo", "SafeRLHF-Exact-v0", preset="smal")


class Own(BaseModel):
    """Settings of an algorithm from outside the package."""

    model_config = ConfigDict(extra="forbid")
    learning_rate: float = 1.0
    temperature: float = 1.0


def test_an_algorithm_from_outside_takes_the_shared_settings_that_it_has() -> None:
    assert preset_settings("small", "my_package:Mine", Own).values == {"learning_rate": 3e-4}
    assert preset_settings("paper", "my_package:Mine", Own).values == {}


def test_a_group_of_settings_has_its_own() -> None:
    schema = algos.config_class("cpo")
    for name in ("cpo", "my_package:Mine"):
        small = preset_settings("small", name, schema).values
        assert (small["learning_rate"], small["value_coefficient"]) == (1e-5, 1.0)
        assert (small["kl_coefficient"], small.keys() <= schema.model_fields.keys()) == (0.05, True)


def test_the_command_line_takes_a_preset_and_the_run_records_it(tmp_path: Path) -> None:
    small = ["--set", "episodes_per_iteration=4", "--episodes", "4", "--env", "SafeRLHF-Exact-v0", "-q"]
    for preset in shipped("preset"):
        out = tmp_path / preset
        done = CliRunner().invoke(main, ["train", "rloo", "--preset", preset, *small, "--out", str(out)])
        assert done.exit_code == 0, done.stderr
        saved = yaml.safe_load((out / "config.yaml").read_text())
        assert saved["preset"] == preset
        assert json.loads((out / "checkpoints/latest/state.json").read_text())["preset"] == preset
        again = CliRunner().invoke(main, ["train", "rloo", "--out", str(out), "--resume", "-q"])
        assert again.exit_code == 0, again.stderr
    assert saved["config"]["learning_rate"] == 3e-4  # of "small", the last
    refused = CliRunner().invoke(main, ["train", "rloo", "--preset", "papper", "--out", str(tmp_path / "no")])
    assert refused.exit_code == 2
    assert "unknown preset 'papper'; did you mean 'paper'?" in refused.stderr
    shown = CliRunner().invoke(main, ["algos", "rloo", "--preset", "paper", "--json"])
    assert {row["key"]: row["value"] for row in json.loads(shown.stdout)}["learning_rate"] == 1e-5


@pytest.mark.parametrize("name", shipped("paper"))
def test_a_configuration_of_the_papers_begins_with_the_papers_preset(name: str) -> None:
    found, other = (build_spec("ppo_lagrangian", **NOTHING | {"config": name, "preset": x}) for x in (None, "small"))
    assert (found.preset, other.preset) == ("paper", "small")
    assert found.config == other.config  # as the file has whatever "small" changes


def test_a_comparison_applies_a_setting_where_it_exists() -> None:
    compared = ("ppo", "ppo_lagrangian")
    request = NOTHING | {"assignments": ["multiplier_init=2", "epochs=3"], "compared": compared}
    plain, constrained = (build_spec(name, **request) for name in compared)
    assert plain.left_out == ("multiplier_init",)
    assert "multiplier_init" not in plain.config
    assert constrained.left_out == ()
    assert constrained.config["multiplier_init"] == 2
    assert plain.config["epochs"] == constrained.config["epochs"] == 3
    for name in compared:
        with pytest.raises(Exception, match=r"unknown key 'multiplier_int'.*did you mean 'multiplier_init'"):
            build_spec(name, **NOTHING | {"assignments": ["multiplier_int=2"], "compared": compared})


@pytest.mark.skipif(not algos.members(), reason="OmniSafe is not installed")
def test_sections_of_a_family_are_left_out_too() -> None:
    compared = ("ppo", "omnisafe:PPOLag")
    request = NOTHING | {"assignments": ["algo_cfgs.clip=0.1", "epochs=3"], "compared": compared}
    own, theirs = (build_spec(name, **request) for name in compared)
    assert own.left_out == ("algo_cfgs.clip",)
    assert theirs.left_out == ("epochs",)
    assert theirs.config["algo_cfgs"]["clip"] == 0.1
    with pytest.raises(Exception, match=r"unknown key 'algo_cfgs.clipp' .*; did you mean 'clip'"):
        build_spec("ppo", **NOTHING | {"assignments": ["algo_cfgs.clipp=0.1"], "compared": compared})
