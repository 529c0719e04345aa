"""From options to a fully resolved run: which algorithm with which settings on which environment."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.cli.values import env_keys
from textsafe_gym.config import Faults, Settings, merge, parse_assignments, parse_value, read_yaml, validate
from textsafe_gym.errors import ConfigError
from textsafe_gym.presets import presets
from textsafe_gym.registry import nearest

Made = TypeVar("Made")

INITIAL = "initial"  # the untrained policy's name where algorithms are compared
DEFAULT_ENV = "SafeRLHF-v0"
SIMULATED = "simulated"  # --data simulated:N: the environment's own pairs
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
    lora_rank: int | None = Field(None, gt=0, description="train a low-rank adapter of that rank, not the weights")
    lora_alpha: int | None = Field(None, gt=0, description="its weight, over its rank; by default twice the rank")
    last_layers: int | None = Field(None, gt=0, description="train so many of the last layers alone")
    gradient_checkpointing: bool | None = Field(None, description="recompute activations: less memory, more time")
    compile: bool | None = Field(None, description="compile the layers: some ten seconds once, then faster updates")
    hidden: list[int] | None = Field(None, description="layer sizes of an MLP policy")


class EnvFile(BaseModel):
    """What a YAML file given as --env holds."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(DEFAULT_ENV, description="Gymnasium id")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="of the environment")
    policy: dict[str, Any] = Field(default_factory=dict, description="see PolicyOptions")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's outcome; `config.yaml` holds it.

    Attributes:
        algorithm: a name in `algos`, or `INITIAL`.
        label: the algorithm with what was varied, e.g. "reward_shaping[nu=0.5]".
        env: {"id", "kwargs"}.
        policy: arguments of `make_policy`.
        config: the algorithm's settings, all of them.
        data: labelled pairs to learn from, files or "simulated:N"; empty where the algorithm learns from rollouts.
        places: where each of the environment's kwargs was written, for messages; not a part of the run.
    """

    algorithm: str
    label: str
    env: dict[str, Any]
    policy: dict[str, Any]
    config: dict[str, Any]
    data: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.config["seed"])

    @property
    def num_envs(self) -> int:
        """Responses played at once: an iteration's, or where a run samples none a batch of its evaluation."""
        return int(self.config.get("episodes_per_iteration") or BATCH)

    def as_dict(self) -> dict[str, Any]:
        """For `config.yaml`."""
        without = {"places"} if self.data else {"places", "data"}
        return {name: value for name, value in asdict(self).items() if name not in without}

    def with_seed(self, seed: int) -> "RunSpec":
        """The same run with another seed."""
        return replace(self, config={**self.config, "seed": seed})


def call(
    make: Callable[..., Made], what: str, options: Mapping[str, Any], *args: Any, known: Callable[[], list[str]] = list
) -> Made:
    """`make(*args, **options)`, with an unknown option reported as the user's error.

    Args:
        make: what to call.
        what: its name in the message.
        options: keyword arguments.
        *args: other arguments.
        known: gives options that there are beside those that `make` names.

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


def folder_of(label: str) -> str:
    """A label as the name of a directory: reward_shaping[nu=0.5] -> reward_shaping-nu=0.5."""
    return "".join(c if c.isalnum() or c in "_-=.," else "-" for c in label).rstrip("-")


def config_class(algorithm: str) -> type[BaseModel]:
    """The pydantic model of an algorithm's settings.

    Raises:
        UnknownNameError: no such algorithm; the message offers the nearest.
        ConfigError: it is one of OmniSafe's, which is not installed.
    """
    import algos

    found: type[BaseModel] = algos.config_class(algorithm)
    return found


def tuned_defaults(algorithm: str) -> Settings:
    """What `configs/algo/NAME.yaml` changes of the algorithm's defaults; empty where there is no such file.

    OmniSafe's algorithms share `omnisafe.yaml`: under "all" what each takes that has such a key, then their own.
    """
    family, _, member = algorithm.partition(":")
    path = presets("algo").get(family)
    given = read_yaml(path) if path else Settings()
    if not member:
        return given
    return merge(_known_to(config_class(algorithm), given.section("all")), given.section(member))


def _known_to(schema: type[BaseModel], given: Settings) -> Settings:
    """The settings that a schema has."""
    kept: dict[str, Any] = {}
    for key, value in given.values.items():
        field = schema.model_fields.get(key)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kept[key] = _known_to(field.annotation, given.section(key)).values
        elif field is not None:
            kept[key] = value
    return Settings(kept, given.origin)


def read_config(config: str) -> Settings:
    """What `--config` names: a file, or one of `configs/paper/`.

    Raises:
        ConfigError: neither, or malformed.
    """
    known = presets("paper")
    if config not in known and not Path(config).suffix and not Path(config).exists():
        raise ConfigError(f"--config {config}: no such file or preset; {nearest(config, list(known))}")
    return read_yaml(known.get(config, config))


def resolve_env(env: str | None) -> tuple[str, Settings, Settings]:
    """The environment's id, its kwargs and the policy options that `--env` stands for.

    Raises:
        ConfigError: a file that is missing or malformed.
    """
    if env is None:
        return DEFAULT_ENV, Settings(), Settings()
    known = presets("env")
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
    env: str | None,
    config: str | None,
    assignments: Sequence[str],
    episodes: int | None,
    seed: int | None,
    varied: Mapping[str, Any] | None = None,
    others: Sequence[str] = (),
    data: Sequence[str] = (),
) -> RunSpec:
    """Resolves one algorithm's run.

    Args:
        algorithm: its name.
        env: `--env`.
        config: `--config`.
        assignments: `--set`.
        episodes: `--episodes`.
        seed: `--seed`.
        varied: from key ("nu", "env.cost_limit") to the value that this variant has.
        others: names of all algorithms in the request; sections for them are not this one's settings.
        data: `--data`.

    Raises:
        TextsafeError: anything in it is wrong; all faults of the settings are in one message.
    """
    schema = config_class(algorithm)
    env_id, env_kwargs, policy = resolve_env(env)
    from_file = read_config(config) if config is not None else Settings()
    offline = check_budget(algorithm, episodes, data)
    if "algorithm" in from_file.values and "config" in from_file.values:
        data = data or from_file.values.get("data", ())
        from_file, file_env = _from_run(from_file, algorithm)
        env_id = env_id if env is not None else file_env
    given = merge(from_file, parse_assignments(assignments))
    variant = parse_variant(varied or {})
    given = merge(given.without(*others, algorithm), given.section(algorithm), variant)
    fixed = {name: value for name, value in (("episodes", episodes), ("seed", seed)) if value is not None}
    own = merge(
        tuned_defaults(algorithm),
        given.without("env", "policy"),
        Settings(fixed, {(name,): f"--{name}" for name in fixed}),
    )
    faults = Faults()
    with faults:
        resolved = validate(schema, own, algorithm, ("env", "policy", algorithm, *others))
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
    data = list(data or [DEFAULT_DATA]) if offline else []
    return RunSpec(algorithm, label, env_part, options, resolved.model_dump(mode="json"), data, places)


def check_budget(algorithm: str, episodes: int | None, data: Sequence[str]) -> bool:
    """Whether an algorithm learns from labelled pairs.

    Raises:
        ConfigError: it is given the other kind's budget.
    """
    import algos

    offline = algos.source_of(algorithm) == "preferences"
    if offline and episodes is not None:
        raise ConfigError(
            f"--episodes: {algorithm} samples no responses; its budget is the pairs of --data, and --set epochs=N"
        )
    if data and not offline:
        raise ConfigError(f"--data: {algorithm} learns from what it samples; leave it out, or take dpo")
    return offline


def parse_variant(varied: Mapping[str, Any]) -> Settings:
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


def parse_vary(arguments: Sequence[str], algorithms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The variants of each algorithm: all combinations of its `--vary` values, or one empty variant.

    Raises:
        ConfigError: not of the form ALGO.KEY=V1,V2,..., or of an algorithm that is not compared.
    """
    axes: dict[str, dict[str, list[Any]]] = {name: {} for name in algorithms}
    for argument in arguments:
        target, equals, text = argument.partition("=")
        algorithm, dot, key = target.partition(".")
        if not equals or not dot or not all(key.split(".")) or not text.strip():
            raise ConfigError(f"--vary {argument}: expected ALGO.KEY=V1,V2,...")
        if algorithm not in axes:
            raise ConfigError(f"--vary {argument}: '{algorithm}' is not compared; {nearest(algorithm, list(axes))}")
        if key in axes[algorithm]:
            raise ConfigError(f"--vary {argument}: '{target}' is varied twice")
        values = [parse_value(part, f"--vary {argument}") for part in text.split(",")]
        if any(value is None or isinstance(value, dict | list) for value in values):
            raise ConfigError(f"--vary {argument}: every value must be a number, a word, or true or false")
        if len(set(map(str, values))) < len(values):
            raise ConfigError(f"--vary {argument}: a value stands twice")
        axes[algorithm][key] = values
    return {
        name: [dict(zip(own, combination, strict=True)) for combination in product(*own.values())]
        for name, own in axes.items()
    }
