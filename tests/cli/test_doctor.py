"""What `textsafe doctor` finds where all is well, and where something really is wrong."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from textsafe_gym.cli.main import main
from textsafe_gym.experiments import doctor


def report(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert result.stderr == ""
    found = json.loads(result.stdout)
    return result.exit_code, {"ok": found["ok"]} | {check["name"]: check for check in found["checks"]}


def test_a_sound_installation() -> None:
    code, found = report()
    assert (code, found["ok"]) == (0, True)
    for name in ("textsafe-gym", "python", "torch", "transformers", "gymnasium", "rich"):
        assert found[name]["status"] == "ok"
    assert found["torch"]["detail"] == metadata.version("torch")
    for name in ("scores", "optimum", "training"):
        assert found[name]["section"] == "self-test"
        assert found[name]["status"] == "ok"
    assert {"deepspeed", "hub", "mlflow", "omnisafe", "sb3", "trackio", "trl", "wandb"} <= found.keys()
    assert not {"dev", "docs"} & found.keys()


def test_the_table_has_a_line_for_each_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from textsafe_gym.experiments import selftest

    monkeypatch.setattr(selftest, "STEPS", {"optimum": selftest.optimum})
    text = CliRunner().invoke(main, ["doctor"]).stdout
    assert [line for line in text.splitlines() if "torch " in line and " ok " in line]
    assert text.splitlines()[-1] == "All that is required works."


def test_scores_that_are_not_the_cards_fail_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the models had been damaged: the card's responses are compared with what the models say."""
    from textsafe_gym import embedded_world
    from textsafe_gym.experiments import selftest

    shutil.copytree(embedded_world.ASSETS, tmp_path / "assets")
    card = json.loads((tmp_path / "assets/card.json").read_text())
    card["samples"][3]["cost"] += 0.5
    (tmp_path / "assets/card.json").write_text(json.dumps(card))
    monkeypatch.setattr(embedded_world, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(selftest, "STEPS", {"scores": selftest.known_scores})
    code, found = report()
    assert (code, found["ok"]) == (1, False)
    assert found["scores"]["status"] == "FAILED"
    assert "by up to 0.5" in found["scores"]["detail"]


def installed(root: Path, name: str, version: str) -> None:
    """A distribution's metadata, as pip leaves them."""
    folder = root / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_versions_are_held_to_the_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "torch", "1.13.0")
    installed(tmp_path, "deepspeed", "0.20.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch = next(check for check in doctor.versions() if check.name == "torch")
    assert (torch.status, torch.detail) == ("FAILED", "1.13.0, but >=2.4 is needed")
    assert torch.advice == "pip install 'torch>=2.4'"
    deepspeed = next(check for check in doctor.optional() if check.name == "deepspeed")
    assert (deepspeed.status, deepspeed.required) == ("FAILED", False)
    assert "0.20.1, but <0.20,>=0.19 is needed" in deepspeed.detail


def test_a_torch_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    command = [sys.executable, "-m", "textsafe_gym.cli.main", "doctor", "--json"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(done.stdout)
    checks = {(check["section"], check["name"]): check for check in found["checks"]}
    assert (done.returncode, found["ok"], done.stderr) == (1, False, "")
    assert "cannot be imported: OSError: libtorch_cpu.so: " in checks["devices", "torch"]["detail"]
    assert {check["status"] for (section, _), check in checks.items() if section == "self-test"} == {"FAILED"}


def test_missing_parts_come_with_their_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = metadata.distribution("textsafe-gym")
    folder = tmp_path / f"textsafe_gym-{own.version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(str(own.metadata))
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # where only the package itself is installed
    found = {check.name: check for check in doctor.optional()}
    assert {check.status for check in found.values()} == {"missing"}
    assert found["sb3"].advice == "pip install 'textsafe-gym[sb3]'"
    assert found["omnisafe"].advice == ("pip install 'textsafe-gym[omnisafe]' && pip install --no-deps omnisafe==0.5.0")
    assert not any(check.required for check in found.values())


def test_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    (check,) = doctor.here()
    assert (check.status, check.required) == ("FAILED", True)
    os.chdir(tmp_path)
    (check,) = doctor.here()
    assert "can be written to" in check.detail
