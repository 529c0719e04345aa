"""Every YAML file that ships is valid."""

import inspect
from pathlib import Path

import pytest

import algos
from algos.registration import families
from textsafe_gym.config import read_yaml, validate
from textsafe_gym.envs.task import Task
from textsafe_gym.experiments.spec import PolicyOptions, build_spec, resolve_env
from textsafe_gym.experiments.study_file import StudyFile
from textsafe_gym.installation import shipped

ROOT = Path(__file__).parents[1] / "configs"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid(name: str) -> None:
    path = ROOT / name
    nothing = {"assignments": [], "episodes": None, "seed": None}
    match path.parent.name:
        case "algo":
            given = read_yaml(path)
            assert given.values
            assert len(path.read_text().splitlines()) < 30
            assert given.values.keys() <= shipped("preset").keys()
            members = [name for name in algos.members() if name.partition(":")[0] == path.stem]
            assert path.stem in families() or path.stem in algos.available()
            for preset in given.values:
                for algorithm in members if path.stem in families() else [path.stem]:
                    build_spec(algorithm, env=None, config=None, preset=preset, **nothing)
        case "preset":
            fields = {key for name in algos.available() for key in algos.config_class(name).model_fields}
            groups = {base.__name__ for name in algos.available() for base in algos.config_class(name).__bases__}
            assert read_yaml(path).values.keys() <= fields | groups  # a setting of some algorithm, or a group of them
            for name in algos.available():
                build_spec(name, env=None, config=None, preset=path.stem, **nothing)
        case "env":
            _, kwargs, policy = resolve_env(path.stem)
            assert set(kwargs.values) <= set(inspect.signature(Task).parameters)
            validate(PolicyOptions, policy, "policy")
        case "paper":
            build_spec("ppo_lagrangian", env="pku_safe_rlhf", config=str(path), **nothing)
        case "study":
            validate(StudyFile, read_yaml(path), "study")
        case other:
            pytest.fail(f"nothing reads configs/{other}")
