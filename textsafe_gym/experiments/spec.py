"""From options to a fully resolved run: which algorithm with which settings on which environment."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.config import (
    Faults,
    Settings,
    Values,
    merge,
    parse_assignments,
    read_yaml,
    validate,
)
from textsafe_gym.envs import ENVIRONMENTS
from textsafe_gym.errors import ConfigError
from textsafe_gym.experiments.arguments import as_settings
from textsafe_gym.installation import shipped
from textsafe_gym.presets import SMALL, preset_of, preset_settings, section_of
from textsafe_gym.registry import load_object, nearest

Made = TypeVar("Made")

INITIAL = "initial"  # the untrained policy's name where algorithms are compared
DEFAULT_ENV = "SafeRLHF-v0"
SIMULATED = "simulated"  # --data simulated:N: rows that the environment labels itself
DEFAULT_DATA = f"{SIMULATED}:4096"
BATCH = 64  # responses played at once where no iteration says how many


class PolicyOptions(BaseModel):
    """What `policy.KEY` may set; keys left out keep the defaults of the policy's own class."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="directory or hub id to start from")
    temperature: float | None = Field(None, gt=0, description="of the softmax that tokens are sampled from")
    critics: Literal["heads", "separate"] | None = Field(None, description="heads on the trunk or models of their own")
    reward_critic: str | None = Field(None, description="score model that a separate reward critic starts from")
    cost_critic: str | None = Field(None, description="score model that a separate cost critic starts from")
    device: str | None = Field(None, description="of the policy, e.g. cpu or cuda")
    dtype: Literal["float32", "bfloat16"] | None = Field(None, description="of the policy's weights")
    lora_rank: int | None = Field(None, gt=0, description="train a LoRA of that rank, not the weights")
    lora_alpha: int | None = Field(None, gt=0, description="its weight, over its rank; by default twice the rank")
    last_layers: int | None = Field(None, gt=0, description="train so many of the last layers alone")
    gradient_checkpointing: bool | None = Field(None, description="recompute activations: less memory, more time")
    compile: bool | None = Field(None, description="compile the layers: some ten seconds once, then faster updates")
    hidden: list[int] | None = Field(None, description="layer sizes of an MLP policy")


class EnvFile(BaseModel):
    """What a YAML file given as --env holds."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(DEFAULT_ENV, description="Gymnasium id")
    kwargs: Values = Field(default_factory=dict, description="of the environment")
    policy: Values = Field(default_factory=dict, description="see PolicyOptions")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's outcome; `config.yaml` holds it.

    Attributes:
        algorithm: a name in `algos`, or `INITIAL`.
        label: the algorithm with what was varied, e.g. "reward_shaping[nu=0.5]".
        env: {"id", "kwargs"}.
        policy: arguments of `make_actor` and `make_critics`.
        config: the algorithm's settings, all of them.
        preset: which they began with.
        data: what to learn from, files or "simulated:N"; empty where the algorithm learns from rollouts.
        evaluation_batch: responses played at once in the evaluation, the same in all runs of a comparison, since it
            decides the draws; none: as many as in an iteration.
        evaluation_samples: responses to each evaluation prompt.
        places: where each of the environment's kwargs was written, for messages; not a part of the run.
        left_out: settings given for a comparison that this algorithm does not have; not a part of the run.
    """

    algorithm: str
    label: str
    env: Values
    policy: Values
    config: Values
    preset: str = SMALL
    data: list[str] = field(default_factory=list)
    evaluation_batch: int | None = None
    evaluation_samples: int = 1
    places: dict[str, str] = field(default_factory=dict, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def seed(self) -> int:
        """The seed of the run, one of its algorithm's settings."""
        return int(self.config["seed"])

    @property
    def num_envs(self) -> int:
        """Responses played at once: an iteration's, or where a run samples none a batch of its evaluation."""
        return int(self.config.get("episodes_per_iteration") or self.evaluation_batch or BATCH)

    @property
    def evaluation_envs(self) -> int:
        """Responses played at once in the evaluation."""
        return self.evaluation_batch or self.num_envs

    def as_dict(self) -> Values:
        """What `config.yaml` holds: all but the origin of each value, what was left out, and what the run has not."""
        held = {name: value for name, value in asdict(self).items() if name not in ("places", "left_out")}
        usual: Values = {"data": [], "evaluation_batch": None, "evaluation_samples": 1}
        return {name: value for name, value in held.items() if name not in usual or value != usual[name]}

    def with_seed(self, seed: int) -> "RunSpec":
        """The same run with another seed."""
        return replace(self, config={**self.config, "seed": seed})


def call(
    make: Callable[..., Made], what: str, options: Values, *args: object, known: Callable[[], list[str]] = list
) -> Made:
    """`make(*args, **options)`, with an unknown option reported as the user's error.

    Args:
        make: what to call.
        what: its name in the message.
        options: keyword arguments.
        *args: other arguments.
        known: gives options that there are besides those that `make` names.

    Raises:
        ConfigError: `make` takes no such option.
    """
    try:
        return make(*args, **options)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not found or found[1] not in options:
            raise
        takes = inspect.signature(make).parameters.values()
        names = [*known(), *(taken.name for taken in takes if taken.kind is not taken.VAR_KEYWORD)]
        hint = f"; {nearest(found[1], names)}" if names else ""
        raise ConfigError(f"{what}: unknown key '{found[1]}'{hint}") from None


def config_class(algorithm: str) -> type[BaseModel]:
    """The pydantic model of an algorithm's settings.

    Raises:
        UnknownNameError: no such algorithm; the message offers the nearest.
        ConfigError: what it names cannot be imported, or is not an algorithm.
    """
    import algos

    found: type[BaseModel] = algos.config_class(algorithm)
    return found


def preset_for(algorithm: str, preset: str = SMALL) -> Settings:
    """What a preset changes of the algorithm's defaults; see `preset_settings`.

    Raises:
        UnknownNameError: no such algorithm or preset; the message offers the nearest.
    """
    return preset_settings(preset, algorithm, config_class(algorithm))


def env_keys(env_id: str) -> list[str]:
    """Keyword arguments of one of this project's environments; none of another."""
    if env_id not in ENVIRONMENTS:
        return []
    from textsafe_gym.envs.task import Task
    from textsafe_gym.envs.vector import SafeRLHFVectorEnv

    takers = [*map(load_object, ENVIRONMENTS[env_id]), SafeRLHFVectorEnv]
    if env_id == DEFAULT_ENV:
        takers.insert(0, Task)  # whose arguments the environment hands on
    parameters = [taken for taker in takers for taken in inspect.signature(taker).parameters.values()]
    names = [taken.name for taken in parameters if taken.kind is not taken.VAR_KEYWORD]
    return [name for name in dict.fromkeys(names) if name != "num_envs"]


def read_config(config: str) -> Settings:
    """What `--config` names: a file, or one of `configs/paper/`.

    Raises:
        ConfigError: neither, or malformed.
    """
    known = shipped("paper")
    if config not in known and not Path(config).suffix and not Path(config).exists():
        raise ConfigError(f"--config {config}: no such file or shipped configuration; {nearest(config, list(known))}")
    return read_yaml(known.get(config, config))


def resolve_env(env: str | Path | Mapping[str, object] | None) -> tuple[str, Settings, Settings]:
    """The environment's id, its kwargs and the policy options that `--env` stands for.

    Args:
        env: an id, a shipped configuration or a YAML file; or what such a file holds: "id", "kwargs" and "policy".

    Raises:
        ConfigError: a file that is missing or malformed.
    """
    if env is None:
        return DEFAULT_ENV, Settings(), Settings()
    if isinstance(env, Mapping):
        held = as_settings(env, "env")
        loaded = validate(EnvFile, held, "env")
        return loaded.id, held.section("kwargs"), held.section("policy")
    env, known = str(env), shipped("env")
    if env.endswith((".yaml", ".yml")) or env in known:
        given = read_yaml(known.get(env, env))
        loaded = validate(EnvFile, given, "--env")
        return loaded.id, given.section("kwargs"), given.section("policy")
    if Path(env).exists():
        raise ConfigError(f"--env {env}: a file must be YAML and end in .yaml")
    return env, Settings(), Settings()


def check_env_keys(env_id: str, kwargs: Settings) -> None:
    """Refuses keyword arguments that one of this project's environments does not take.

    Raises:
        ConfigError: names each, with its place and the nearest that there is.
    """
    known = env_keys(env_id)
    odd = [name for name in kwargs.values if known and name not in known]
    if odd:
        faults = (f"unknown key '{name}' ({kwargs.where((name,))}); {nearest(name, known)}" for name in odd)
        raise ConfigError(f"env {env_id}: {'; '.join(faults)}")


def build_spec(
    algorithm: str,
    *,
    env: str | Path | Mapping[str, object] | None,
    config: str | None,
    assignments: Sequence[str] | Settings,
    episodes: int | None,
    seed: int | None,
    preset: str | None = None,
    varied: Mapping[str, object] | None = None,
    compared: Sequence[str] = (),
    others: Sequence[str] = (),
    data: Sequence[str | Path] = (),
) -> RunSpec:
    """Resolves one algorithm's run.

    Args:
        algorithm: its name.
        env: `--env`, or what such a file holds.
        config: `--config`.
        assignments: `--set`, or the same as settings.
        episodes: `--episodes`.
        seed: `--seed`.
        preset: `--preset`, by default `preset_of(config)`; where `config` is of a run, no other than that run's.
        varied: from key ("nu", "env.cost_limit") to the value that this variant has.
        compared: names of all algorithms that the settings are given for; what this one does not have and another has
            is left out.
        others: names of all algorithms in the request; sections for them are not this one's settings.
        data: `--data`.

    Raises:
        TextsafeError: anything in it is wrong; all faults of the settings are in one message.
    """
    schema = config_class(algorithm)
    env_id, env_kwargs, policy = resolve_env(env)
    from_file = read_config(config) if config is not None else Settings()
    data = [data] if isinstance(data, str | Path) else data
    offline = check_budget(algorithm, episodes, data)
    batch, samples = None, 1
    if "algorithm" in from_file.values and "config" in from_file.values:
        data = data or from_file.values.get("data", ())
        if isinstance(data, str) or not all(isinstance(source, str | Path) for source in data):
            raise ConfigError(f"data: expected a list of files, got {data!r:.60} ({from_file.where(('data',))})")
        ran = from_file.values.get("preset", SMALL)
        if preset not in (None, ran):
            raise ConfigError(
                f"--preset {preset}: {config} is of a run with the preset '{ran}', and has all its settings; leave "
                "--preset out"
            )
        preset = ran
        batch, samples = _evaluation_of(from_file)
        from_file, file_env = _from_run(from_file, algorithm)
        env_id = env_id if env is not None else file_env
    preset = preset or preset_of(config)
    whole = (algorithm, *others)
    given = merge(
        from_file, assignments if isinstance(assignments, Settings) else parse_assignments(assignments, whole)
    )
    variant = parse_variant(varied or {})
    shared, left_out = _applicable(given.without(*others, algorithm), schema, [config_class(name) for name in compared])
    theirs = [key for name in compared for key in config_class(name).model_fields]
    sections, listed = ("env", "policy", algorithm, *others, *theirs), f"textsafe algos {algorithm}"
    faults = Faults()
    odd = [key for key in shared.values if len(compared) > 1 and key not in sections]
    for key in odd:
        with faults:
            hint = nearest(key, sections, listed)
            raise ConfigError(
                f"unknown key '{key}' ({shared.where((key,))}): none of {', '.join(compared)} has it; {hint}"
            )
    shared = shared.without(*odd)
    given = merge(shared, given.section(algorithm), variant)
    fixed = {name: value for name, value in (("episodes", episodes), ("seed", seed)) if value is not None}
    own = merge(
        preset_for(algorithm, preset),
        given.without("env", "policy"),
        Settings(fixed, {(name,): f"--{name}" for name in fixed}),
    )
    with faults:
        resolved = validate(schema, own, algorithm, sections, listed)
    with faults:
        policy = merge(policy, given.section("policy"))
        options = validate(PolicyOptions, policy, "policy").model_dump(exclude_none=True)
    with faults:
        kwargs = merge(env_kwargs, given.section("env"))
        check_env_keys(env_id, kwargs)
    faults.check()
    label = algorithm
    if varied:
        values = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in varied.items())
        label += f"[{values}]"
    places = {name: kwargs.where((name,)) for name in kwargs.values}
    env_part = {"id": env_id, "kwargs": kwargs.values}
    settings = resolved.model_dump(mode="json")
    sources = [str(source) for source in data or [DEFAULT_DATA]] if offline else []
    run = RunSpec(algorithm, label, env_part, options, settings, preset, sources, batch, samples)
    return replace(run, places=places, left_out=tuple(left_out))


def _evaluation_of(run: Settings) -> tuple[int | None, int]:
    """The `evaluation_batch` and `evaluation_samples` of a run's `config.yaml`."""
    for name in ("evaluation_batch", "evaluation_samples"):
        number = run.values.get(name, 1)
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name} = {number!r} ({run.where((name,))}): expected 1 or more")
    return run.values.get("evaluation_batch"), run.values.get("evaluation_samples", 1)


def check_budget(algorithm: str, episodes: int | None, data: Sequence[str | Path]) -> bool:
    """Whether an algorithm learns from what is there already.

    Raises:
        ConfigError: it is given the other kind's budget.
    """
    import algos

    offline = algos.definition(algorithm).offline
    if offline and episodes is not None:
        raise ConfigError(
            f"--episodes: {algorithm} samples nothing; its budget is what --data names, and --set epochs=N"
        )
    if data and not offline:
        raise ConfigError(f"--data: {algorithm} learns from what it samples; leave it out, or take dpo")
    return offline


def _applicable(
    given: Settings, schema: type[BaseModel], schemas: Sequence[type[BaseModel]]
) -> tuple[Settings, list[str]]:
    """What is given once for several algorithms, as it applies to one of them.

    Returns:
        The settings without those that this one does not have and another has; what nobody has is left to be refused.
        And the keys that were left out.
    """
    left_out: list[str] = []

    def kept(
        values: Mapping[str, Any], own: type[BaseModel] | None, theirs: Sequence[type[BaseModel]], path: tuple[str, ...]
    ) -> Values:
        found: Values = {}
        for key, value in values.items():
            has = own is not None and key in own.model_fields
            below = section_of(own, key)
            sections = [section for other in theirs if (section := section_of(other, key))]
            if isinstance(value, Mapping) and (below or (sections and not has)):
                inner = kept(value, below, sections, (*path, key))
                if inner:
                    found[key] = inner
            elif not has and any(key in other.model_fields for other in theirs):
                left_out.append(".".join((*path, key)))
            elif own is None:
                known = [known for other in theirs for known in other.model_fields]
                here = (*path, key)
                raise ConfigError(f"unknown key '{'.'.join(here)}' ({given.where(here)}); {nearest(key, known)}")
            else:
                found[key] = value  # an unknown key is refused with all other faults
        return found

    return Settings(kept(given.values, schema, schemas, ()), given.origin), left_out


def parse_variant(varied: Mapping[str, object]) -> Settings:
    """Nested settings of {"env.cost_limit": 1}."""
    settings = Settings()
    for name, value in varied.items():
        path = tuple(name.split("."))
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        settings = merge(settings, Settings(nested, {path: f"--vary {name}={value}"}))
    return settings


def _from_run(given: Settings, algorithm: str) -> tuple[Settings, str]:
    """Settings and environment id of a run's `config.yaml`."""
    ran = given.values["algorithm"]
    if ran != algorithm:
        raise ConfigError(f"{given.where(('algorithm',))}: this is a run of '{ran}', not of '{algorithm}'")
    env = given.section("env")
    config = given.section("config")
    parts = [config]
    for name, section in (("env", env.section("kwargs")), ("policy", given.section("policy"))):
        origin = {(name, *path): place for path, place in section.origin.items()}
        parts.append(Settings({name: section.values}, origin))
    return merge(*parts), str(env.values.get("id", DEFAULT_ENV))
