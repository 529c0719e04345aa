"""Policies as `evaluate` and `chat` are given them: a run's directory, or a model's directory or hub id."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.config import Settings, merge, parse_assignments, read_yaml, validate
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.experiments.run import CHECKPOINT, make_actor, make_env, saved_trainer
from textsafe_gym.experiments.spec import BATCH, INITIAL, PolicyOptions, RunSpec, resolve_env
from textsafe_gym.registry import nearest

MODEL = "model"  # what stands for the algorithm where a policy comes without a run


def saved_spec(source: str, env: str | None, assignments: tuple[str, ...]) -> RunSpec:
    """What to play: the run's own settings, or a model in the given environment.

    Args:
        source: a run's directory, or a model's directory or hub id.
        env: `--env`; replaces a run's environment.
        assignments: `--set`, with keys below env and policy only.

    Raises:
        TextsafeError: the run cannot be read, or a setting is wrong.
    """
    given = parse_assignments(assignments)
    odd = [name for name in given.values if name not in ("env", "policy")]
    if odd:
        hint = nearest(odd[0], ["env", "policy"])
        raise ConfigError(f"{given.where((odd[0],))}: only env.KEY and policy.KEY can be set here; {hint}")
    env_id, kwargs, policy = resolve_env(env)
    directory = Path(source)
    if (directory / "config.yaml").is_file():
        spec = read_spec(directory / "config.yaml")
        if env is not None:
            spec = replace(spec, env={"id": env_id, "kwargs": kwargs.values})
        changed = merge(Settings(spec.env["kwargs"]), given.section("env"))
        options = merge(Settings(spec.policy), policy, given.section("policy"))
        checked = validate(PolicyOptions, options, "policy").model_dump(exclude_none=True)
        return replace(spec, env={"id": spec.env["id"], "kwargs": changed.values}, policy=checked)
    if not directory.exists() and source.count("/") != 1:
        raise ModelError(f"{source}: no such run or model")
    if directory.is_file():
        raise ModelError(f"{source}: a file; give a run's or a model's directory")
    checked = validate(PolicyOptions, merge(policy, given.section("policy")), "policy").model_dump(exclude_none=True)
    config = {"seed": 0, "episodes_per_iteration": BATCH}
    kwargs = merge(kwargs, given.section("env"))
    env_part = {"id": env_id, "kwargs": kwargs.values}
    return RunSpec(MODEL, directory.name or source, env_part, {**checked, "model": source}, config)


class SavedEnv(BaseModel):
    """What `config.yaml` says of the environment."""

    id: str
    kwargs: dict[str, Any]


class SavedConfig(BaseModel):
    """Of an algorithm's settings, which may be another version's, those that playing needs."""

    model_config = ConfigDict(extra="allow")

    seed: int = Field(ge=0, lt=2**63)
    episodes_per_iteration: int | None = Field(None, gt=0)
    cost_limit: float | None = None


class SavedRun(BaseModel):
    """A run's `config.yaml`."""

    algorithm: str
    label: str
    env: SavedEnv
    policy: dict[str, Any]
    config: SavedConfig
    data: list[str] = []


def read_spec(path: Path) -> RunSpec:
    """A run's `config.yaml`.

    Raises:
        ConfigError: the file is damaged or of something else.
    """
    run = validate(SavedRun, read_yaml(path), f"{path} is no run's")
    return RunSpec(**run.model_dump())


def open_saved(source: str, spec: RunSpec, num_envs: int | None = None) -> tuple[Any, Any, Any]:
    """The environment, the trained actor, and the reference: the policy that training started from.

    Args:
        source: as for `saved_spec`.
        spec: of `saved_spec`.
        num_envs: responses played at once; by default those of an iteration.

    Raises:
        TextsafeError: something is missing or damaged.
    """
    env = make_env(spec, num_envs or spec.num_envs)
    actor = make_actor(spec, env)
    reference = actor.reference()
    if spec.algorithm not in (INITIAL, MODEL):
        agent = saved_trainer(spec, env, actor, Path(source) / CHECKPOINT, few=True).algorithm.agent
        actor, reference = agent.actor, agent.reference
    return env, actor, reference
