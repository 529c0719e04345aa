"""Policies as `evaluate` and `chat` are given them: of a run, of a trainer's `save`, or a model's folder or hub id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from textsafe_gym.config import Settings, Values, merge, parse_assignments, read_json_settings, read_yaml, validate
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.experiments.build import make_actor, make_env
from textsafe_gym.experiments.directory import CONFIG
from textsafe_gym.experiments.run import CHECKPOINT
from textsafe_gym.experiments.spec import BATCH, INITIAL, PolicyOptions, RunSpec, resolve_env
from textsafe_gym.presets import SMALL
from textsafe_gym.registry import nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from textsafe_gym.protocols import Actor, Reference

LIMITS = ("cost_limit", "cost_limits", "constraint")  # an algorithm's settings that say what is bounded by how much
MODEL = "model"  # what stands for the algorithm where a policy comes without a run
STATE, _POLICY = "state.json", "policy"  # of a folder that a trainer's `save` wrote


@dataclass(frozen=True)
class SavedPolicy:
    """What to play.

    Attributes:
        source: as it was given.
        spec: the run's, or what stands for one.
        weights: the folder of the trained policy; none where `spec.policy` names all there is.
        start_known: whether the policy that training started from is known, which KL is measured to.
        seed: of the responses; by default that of training, which stays `spec.seed`.
    """

    source: str
    spec: RunSpec
    weights: Path | None
    start_known: bool
    seed: int = 0


def saved_policy(
    source: str | None,
    env: str | Path | Mapping[str, object] | None,
    given: Settings | Sequence[str],
    seed: int | None = None,
) -> SavedPolicy:
    """Finds out what a source is, without loading it.

    Args:
        source: a run's directory, what a trainer's `save` wrote, or a model's directory or hub id; none: the untrained
            policy of the environment.
        env: `--env`; replaces the environment of training.
        given: settings below env and policy only.
        seed: of the responses; by default the run's.

    Raises:
        TextsafeError: the source cannot be read, or a setting is wrong.
    """
    given = given if isinstance(given, Settings) else parse_assignments(given)
    odd = [name for name in given.values if name not in ("env", "policy")]
    if odd:
        hint = nearest(odd[0], ["env", "policy"])
        raise ConfigError(f"{given.where((odd[0],))}: only env.KEY and policy.KEY can be set here; {hint}")
    directory = Path(source or "")
    if source is None:
        found = _untrained(seed or 0)
    elif (directory / CONFIG).is_file():
        found = _of_run(source, directory)
    elif (directory / STATE).is_file():
        found = _of_trainer(source, directory, env is not None)
    else:
        found = _of_model(source, directory)
    spec = found.spec
    options, own_env = Settings(spec.policy), given.section("env")
    if env is not None:
        env_id, kwargs, policy = resolve_env(env)
        spec, options = replace(spec, env={"id": env_id, "kwargs": kwargs.values}), merge(options, policy)
        own_env = merge(kwargs, own_env)
    if "cost_limit" in own_env.values:  # given for this evaluation, so that it counts, whatever training bounded
        spec = replace(spec, config={name: x for name, x in spec.config.items() if name not in LIMITS})
    changed = merge(Settings(spec.env["kwargs"]), given.section("env"))
    options = merge(options, given.section("policy"))
    if found.weights is None and not found.start_known:
        options = merge(options, Settings({"model": spec.policy["model"]}))
    checked = validate(PolicyOptions, options, "policy")
    spec = replace(
        spec,
        env={"id": spec.env["id"], "kwargs": changed.values},
        policy=checked.model_dump(exclude_none=True),
    )
    return replace(found, spec=spec, seed=spec.seed if seed is None else seed)


def _untrained(seed: int) -> SavedPolicy:
    env_id, _, _ = resolve_env(None)
    config = {"seed": seed, "episodes_per_iteration": BATCH}
    return SavedPolicy("", RunSpec(INITIAL, INITIAL, {"id": env_id, "kwargs": {}}, {}, config), None, True)


def _of_run(source: str, directory: Path) -> SavedPolicy:
    spec = read_spec(directory / CONFIG)
    trained = spec.algorithm not in (INITIAL, MODEL)
    return SavedPolicy(source, spec, directory / CHECKPOINT / _POLICY if trained else None, spec.algorithm != MODEL)


def _of_trainer(source: str, directory: Path, other_env: bool) -> SavedPolicy:
    saved = validate(SavedTrainer, read_json_settings(directory / STATE), f"{directory / STATE} is not a trainer's")
    if saved.env is None and not other_env:
        raise ConfigError(
            f"{source}: does not say what environment it was trained in, which was made of objects; give --env to "
            "textsafe evaluate or chat"
        )
    env = {"id": "", "kwargs": {}} if saved.env is None else saved.env.model_dump()
    config = saved.config.model_dump()
    # The environment's own, or one that was set, also while training; of another environment its own counts.
    if config["cost_limit"] is not None or not other_env:
        config["cost_limit"] = saved.cost_limit
    if saved.own_policy:
        return SavedPolicy(
            source, RunSpec(saved.name, saved.name, env, {}, config, saved.preset), directory / _POLICY, True
        )
    policy = {"model": str(directory / _POLICY)}
    return SavedPolicy(source, RunSpec(saved.name, saved.name, env, policy, config, saved.preset), None, False)


def _of_model(source: str, directory: Path) -> SavedPolicy:
    # OWNER/NAME is taken for a hub id, unless OWNER is a folder here.
    if not directory.exists() and (source.count("/") != 1 or directory.parent.is_dir()):
        raise ModelError(f"{source}: no such run or model")
    if directory.is_file():
        raise ModelError(f"{source}: a file; give a run's or a model's directory")
    env_id, _, _ = resolve_env(None)
    config = {"seed": 0, "episodes_per_iteration": BATCH}
    spec = RunSpec(MODEL, directory.name or source, {"id": env_id, "kwargs": {}}, {"model": source}, config)
    return SavedPolicy(source, spec, None, False)


class SavedEnv(BaseModel):
    """What `config.yaml` says of the environment."""

    id: str
    kwargs: Values


class SavedConfig(BaseModel):
    """Of an algorithm's settings, which may be another version's, those that playing needs."""

    model_config = ConfigDict(extra="allow")

    seed: int = Field(ge=0, lt=2**63)
    episodes_per_iteration: int | None = Field(None, gt=0)
    cost_limit: float | None = None


class SavedRun(BaseModel):
    """What a run's `config.yaml` has to hold for the run to be read again."""

    algorithm: str
    label: str
    env: SavedEnv
    policy: Values
    config: SavedConfig
    preset: str = SMALL
    data: list[str] = []
    evaluation_batch: int | None = Field(None, gt=0)
    evaluation_samples: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _plays_as_it_did(self) -> "SavedRun":
        # Which prompts and tokens are drawn depends on how many responses are played at once.
        if not (self.config.episodes_per_iteration or self.evaluation_batch or self.data or self.algorithm == INITIAL):
            raise ValueError("the key 'config.episodes_per_iteration' is missing")
        return self


class SavedTrainer(BaseModel):
    """Of the `state.json` that a trainer's `save` wrote, what playing its policy needs."""

    name: str
    preset: str = SMALL
    env: SavedEnv | None
    own_policy: bool = Field(description="training began from the environment's default policy")
    cost_limit: float | None = Field(None, alias="constraints.cost_limit")
    config: SavedConfig


def read_spec(path: Path) -> RunSpec:
    """A run's `config.yaml`.

    Raises:
        ConfigError: the file is damaged or of something else.
    """
    run = validate(SavedRun, read_yaml(path), f"{path} is not a run's")
    return RunSpec(**run.model_dump())


def open_saved(
    saved: SavedPolicy, num_envs: int | None = None
) -> "tuple[gym.vector.VectorEnv, Actor, Reference | None]":
    """The environment, the trained actor, and the reference that training started from, or none if that is not known.

    Only the policy's own folder is read, so that the algorithm need not be there.

    Args:
        saved: what to play.
        num_envs: responses played at once; by default those of the run's evaluation.

    Raises:
        TextsafeError: something is missing or damaged.
    """
    env = make_env(saved.spec, num_envs or saved.spec.evaluation_envs)
    actor = make_actor(saved.spec, env)
    reference = actor.reference() if saved.start_known else None
    if saved.weights is not None:
        actor.load_weights(saved.weights)
    return env, actor, reference
