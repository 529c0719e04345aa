"""The one mechanism by which names find things."""

import sys
from pathlib import Path

import pytest

import algos
from algos import ppo_lagrangian, registration
from algos.core.constraints import Rule
from algos.core.settings import RULES, TrainingConfig
from textsafe_gym.cli.main import COMMANDS
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.errors import ConfigError, UnknownNameError
from textsafe_gym.registry import Lazy, Registry, did_you_mean, load_object


def test_a_name_stands_once_and_a_miss_offers_the_nearest() -> None:
    known: Registry[int] = Registry("number", [("one", 1, "the first"), ("two", 2, "")])
    assert dict(known) == {"one": 1, "two": 2}
    assert known.about("one") == "the first"
    assert known.get("three") is None
    with pytest.raises(ConfigError, match="the number 'one' is registered already"):
        known.register("one", 3)
    with pytest.raises(UnknownNameError) as caught:
        known["tow"]
    assert str(caught.value) == "unknown number 'tow'; did you mean 'two'?"
    known.remove("one")
    known.register("one", 3)
    assert known["one"] == 3


@pytest.mark.parametrize(
    ("short", "known"),
    [
        ("lr", "learning_rate"),
        ("mlr", "multiplier_learning_rate"),
        ("ent_coef", "entropy_coefficient"),
        ("KL_coef", "kl_coefficient"),
        ("zz", ""),
    ],
)
def test_an_abbreviation_is_understood(short: str, known: str) -> None:
    names = [*ppo_lagrangian.Config.model_fields]
    assert did_you_mean(short, names) == (f"did you mean '{known}'?" if known else "")


def test_a_lazy_entry_is_imported_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazily_imported.py").write_text("value = 7")
    monkeypatch.syspath_prepend(str(tmp_path))
    known: Registry[int] = Registry("number", [("seven", Lazy("lazily_imported:value"), "a prime")])
    assert list(known) == ["seven"]
    assert known.about("seven") == "a prime"
    assert "lazily_imported" not in sys.modules
    assert known["seven"] == 7


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("no_such_modul:f", UnknownNameError, "there is no module 'no_such_modul'; did you mean 'no_such_module'?"),
        ("zzz.zzz:f", UnknownNameError, "there is no module 'zzz'; it has to be installed, or lie in the working"),
        ("no_such_module:judg", UnknownNameError, "there is no 'judg' in 'no_such_module'; did you mean 'judge'?"),
        ("no_such_module:judge.x", UnknownNameError, "there is no 'x' in 'no_such_module'"),
        ("breaks_on_import:f", ConfigError, "importing 'breaks_on_import' failed: ZeroDivisionError: division by zero"),
        ("lacks_another:f", ConfigError, "module 'lacks_another' needs 'not_installed_here', which is not installed"),
    ],
)
def test_what_cannot_be_imported(
    path: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_such_module.py").write_text("def judge(prompts, responses): ...")
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    (tmp_path / "lacks_another.py").write_text("import not_installed_here")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(kind) as caught:
        load_object(path)
    assert message in str(caught.value)
    sys.modules.pop("no_such_module", None)


def test_the_registries_have_what_they_name() -> None:
    for name, rule in RULES.items():
        assert RULES.about(name)
        assert issubclass(rule, Rule)
    for name, paths in ENVIRONMENTS.items():
        assert ENVIRONMENTS.about(name)
        for path in paths:
            assert isinstance(load_object(path), type)
    for name, command in COMMANDS.items():
        assert COMMANDS.about(name)
        assert command.name == name


def test_a_registered_algorithm_is_described_by_its_first_line() -> None:
    class Config(TrainingConfig):
        """Settings."""

    class Algorithm:
        """What it does, in a line.

        And more.
        """

        source, critics = "rollouts", ()

    try:
        algos.register("described", Config, Algorithm)
        assert algos.available()["described"] == "What it does, in a line."
    finally:
        registration._algorithms().remove("described")


def test_the_same_class_defined_anew_takes_the_place_of_the_old_one() -> None:
    def cell() -> type:
        class Own: ...

        return Own

    class Other: ...

    first, again = cell(), cell()
    known: Registry[type] = Registry("kind of data", [("own", first, "")])
    known.register("own", again)
    assert known["own"] is again
    with pytest.raises(ConfigError, match="the kind of data 'own' is registered already"):
        known.register("own", Other)
    with pytest.raises(ConfigError, match="registered already"):
        known.register("own", Lazy("somewhere:Own"))
