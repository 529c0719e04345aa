"""OmniSafe's on-policy algorithms under the names "omnisafe:PPOLag", "omnisafe:CPO" and so on.

Source: Ji et al., "OmniSafe", arXiv 2305.09304, release 0.5. Rollouts, budget, seeds, checkpoints and the KL penalty
are this project's, the same for all algorithms; the update is OmniSafe's own, with its own optimisers and multiplier.
It learns from the reward less `kl_coefficient` times the KL to the reference, step by step, and from the cost as paid.
"""

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model

from algos import OMNISAFE
from algos.core.constraints import Constraints
from algos.core.loop import Stateful, Stepper
from algos.core.objectives import shape_with_kl
from algos.core.optim import Setup
from textsafe_gym.adapters.omnisafe import files as omnisafe_files
from textsafe_gym.errors import UnknownNameError
from textsafe_gym.parallel.engine import Engine
from textsafe_gym.parallel.process_group import ProcessGroup
from textsafe_gym.registry import nearest
from textsafe_gym.types import Rollout

_LOGGED = {
    "Loss/Loss_pi": "actor_loss",
    "Loss/Loss_reward_critic": "reward_critic_loss",
    "Loss/Loss_cost_critic": "cost_critic_loss",
    "Metrics/LagrangeMultiplier": "multiplier",
    "Train/Entropy": "entropy",
    "Train/KL": "step_kl",
    "Train/StopIter": "epochs",
}


class RunConfig(BaseModel):
    """What all of OmniSafe's algorithms have in common here; beside it stand their own sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**63, description="all randomness of a run follows from it")
    episodes: int = Field(4096, gt=0, description="episodes in all, rounded up to whole iterations")
    episodes_per_iteration: int = Field(128, gt=0, description="episodes collected before each update")
    kl_coefficient: float = Field(0.02, ge=0, description="weight of each step's KL, taken off the reward")
    cost_limit: float | None = Field(None, description="largest allowed mean episode cost; none: the environment's own")

    @property
    def group_size(self) -> int:
        """Every episode begins in a state of its own."""
        return 1


def names() -> list[str]:
    """All of them, as "omnisafe:PPOLag"; none where OmniSafe is not installed."""
    return [OMNISAFE + name for name in omnisafe_files.names()]


@lru_cache
def config_class(name: str) -> type[RunConfig]:
    """The settings of "omnisafe:NAME": those of `RunConfig`, and OmniSafe's own by section.

    Raises:
        ConfigError: OmniSafe is not installed.
        UnknownNameError: it has no such on-policy algorithm.
    """
    if names() and name not in names():
        raise UnknownNameError(f"unknown algorithm '{name}'; {nearest(name, names())}")
    member = name.removeprefix(OMNISAFE)
    sections = _fields(omnisafe_files.defaults(member), "", omnisafe_files.descriptions(member))
    return create_model(name, __base__=RunConfig, __doc__=f"Settings of {name}.", **sections)


def _fields(values: dict[str, Any], prefix: str, about: dict[str, str]) -> dict[str, Any]:
    """Fields of a pydantic model; `prefix` is the path of their section, as in "algo_cfgs."."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = _fields(value, f"{path}.", about)
            section = create_model(path, __config__=RunConfig.model_config, **inner)
            fields[key] = (section, Field(default_factory=section, description=about[path]))
        else:
            fields[key] = (type(value), Field(value, description=about[path]))
    return fields


class Limit(Constraints):
    """The limit, which OmniSafe's algorithms keep for themselves."""

    def __init__(self, name: str, cost_limit: float | None, updater: Any) -> None:
        super().__init__(None, cost_limit, name)
        self.updater = updater

    def set_limit(self, limit: float, name: str = "") -> None:
        """See `Updater.set_limit`."""
        self.updater.set_limit(limit, name)
        self.cost_limit = float(limit)


class Steps:
    """What the training loop asks of an optimiser: who trains, and that the agent is whole. OmniSafe's step it."""

    def __init__(self, setup: Setup[Any]) -> None:
        self.processes: ProcessGroup = setup.processes
        rates = dict.fromkeys(setup.agent.parameter_groups(), 0.0)
        self.engine: Engine = setup.processes.engine(setup.agent, rates, 0.0)


class Algorithm:
    """An agent and an OmniSafe algorithm that updates it; see `algos.core.optim.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, name: str, setup: Setup[Any]) -> None:
        from textsafe_gym.adapters.omnisafe.updates import Updater

        self.agent, self.config = setup.agent, setup.config
        self.optimizer: Stepper = Steps(setup)
        self.files = tempfile.TemporaryDirectory(prefix="omnisafe-")
        settings = setup.config.model_dump(exclude=set(RunConfig.model_fields))
        self.updater = Updater(
            name.removeprefix(OMNISAFE),
            settings,
            setup.env,
            setup.agent,
            cost_limit=setup.cost_limit,
            seed=setup.config.seed,
            episodes=setup.config.episodes_per_iteration,
            updates=setup.iterations,
            log_dir=self.files.name,
        )
        self.constraints = Limit(name, setup.cost_limit, self.updater)
        self.parts: Mapping[str, Stateful] = {"omnisafe": self.updater, "constraints": self.constraints}

    def update(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """One iteration's learning; metrics are those of OmniSafe's log that have a name here."""
        kl = self.config.kl_coefficient
        rewards = shape_with_kl(rollout.rewards, rollout.log_ratios, -kl, float("inf"))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logged = self.updater.update(rollout, rewards, rollout.costs, seed)
        return {name: logged[key] for key, name in _LOGGED.items() if key in logged}
