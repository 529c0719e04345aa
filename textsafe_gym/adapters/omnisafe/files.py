"""What OmniSafe has, read from its files without importing it, which takes seconds."""

import importlib.util
from pathlib import Path

from textsafe_gym.config import Settings, read_yaml
from textsafe_gym.errors import ConfigError
from textsafe_gym.files import Row

INSTALL = (
    'install it with the two commands: pip install "textsafe-gym[omnisafe]"; pip install --no-deps omnisafe==0.5.0'
)
NORMALIZERS = ("obs_normalize", "reward_normalize", "cost_normalize")
BUDGETS = ("safety_budget", "upper_budget")
# What the environment, the run or the policy decides here.
_DECIDED = {
    (): ("seed", "train_cfgs", "logger_cfgs", "env_cfgs"),
    ("algo_cfgs",): ("steps_per_epoch", "cost_limit", "max_ep_len", *BUDGETS, *NORMALIZERS),
    ("lagrange_cfgs",): ("cost_limit",),
    ("model_cfgs",): ("actor_type", "exploration_noise_anneal", "std_range", "weight_initialization_mode"),
    ("model_cfgs", "actor"): ("hidden_sizes", "activation"),
    ("model_cfgs", "critic"): ("hidden_sizes", "activation"),
}


def names() -> list[str]:
    """OmniSafe's on-policy algorithms; none where it is not installed."""
    folder = _folder()
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder else []


def defaults(name: str) -> Row:
    """OmniSafe's settings of an algorithm by section, but for those that are decided elsewhere here.

    Raises:
        ConfigError: OmniSafe is not installed.
    """
    return _without(_own(name).values, ())


def descriptions(name: str) -> dict[str, str]:
    """What OmniSafe's files say of each section and setting, such as "algo_cfgs.clip", in the comment above it.

    Raises:
        ConfigError: OmniSafe is not installed.
    """
    found: dict[str, str] = {}
    lines: list[str] = []
    for path, place in _own(name).origin.items():
        file, _, number = place.rpartition(":")
        lines = lines or Path(file).read_text(encoding="utf-8").splitlines()
        above = lines[int(number) - 2].strip()
        found[".".join(path)] = above.lstrip("# ").rstrip(".") if above.startswith("#") else ""
    return found


def has_limit(name: str) -> bool:
    """Whether an algorithm bounds the cost.

    Raises:
        ConfigError: OmniSafe is not installed.
    """
    sections = _own(name).values
    keys = {*sections["algo_cfgs"], *sections.get("lagrange_cfgs", {})}
    return bool(keys & {"cost_limit", *BUDGETS})


def _own(name: str) -> Settings:
    folder = _folder()
    if folder is None:
        raise ConfigError(f"OmniSafe is not installed; {INSTALL}")
    return read_yaml(folder / f"{name}.yaml").section("defaults")


def _folder() -> Path | None:
    spec = importlib.util.find_spec("omnisafe")
    return (
        Path(spec.submodule_search_locations[0]) / "configs" / "on-policy"
        if spec and spec.submodule_search_locations
        else None
    )


def _without(values: Row, path: tuple[str, ...]) -> Row:
    # A rate without a value is that of an actor that takes trust-region steps, which has none.
    kept = {key: x for key, x in values.items() if x is not None and key not in _DECIDED.get(path, ())}
    return {key: _without(x, (*path, key)) if isinstance(x, dict) else x for key, x in kept.items()}
