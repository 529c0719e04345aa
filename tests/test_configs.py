"""Every YAML file that ships is valid."""

import inspect
from pathlib import Path

import pytest

import configs
from textsafe_gym.adapters.omnisafe import files as omnisafe_files
from textsafe_gym.config import read_yaml, validate
from textsafe_gym.envs.task import Task
from textsafe_gym.experiments.spec import PolicyOptions, build_spec, resolve_env
from textsafe_gym.experiments.study import StudyFile

ROOT = Path(configs.__path__[0])
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid(name: str) -> None:
    path = ROOT / name
    nothing = {"assignments": [], "episodes": None, "seed": None}
    match path.parent.name:
        case "algo":
            found = read_yaml(path).values
            assert found
            members = [name for name in omnisafe_files.names() if name == "PPOLag" or name in found]
            for algorithm in [f"omnisafe:{name}" for name in members] if path.stem == "omnisafe" else [path.stem]:
                build_spec(algorithm, env=None, config=None, **nothing)
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
