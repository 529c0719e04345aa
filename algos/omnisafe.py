"""OmniSafe's on-policy algorithms, a family: "omnisafe:PPOLag", "omnisafe:CPO" and so on.

Source: Ji et al., "OmniSafe", arXiv 2305.09304, release 0.5. Rollouts, budget, seeds, checkpoints and the KL penalty
are this project's, the same for all algorithms; the update is OmniSafe's own, with its own optimisers and multiplier.
It learns from the reward less `kl_coefficient` times the KL to the reference, step by step, and from the cost as paid.
"""

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from textsafe_gym.adapters.omnisafe import files as omnisafe_files
from textsafe_gym.files import Row
from textsafe_gym.protocols import State

if TYPE_CHECKING:
    import torch

    from algos.core.loop import Setup, Stateful, Stepper
    from textsafe_gym.adapters.omnisafe.updates import Updater
    from textsafe_gym.types import Rollout

REQUIREMENT = "omnisafe==0.5.0"  # its own requirements cannot be met
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
    """What all of OmniSafe's algorithms have in common here; next to it stand their own sections."""

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


def note() -> str:
    """Whether a stub stands in for a package that OmniSafe imports and does not need here."""
    try:
        metadata.version("safety-gymnasium")
    except metadata.PackageNotFoundError:
        return "in the place of safety-gymnasium, which is not needed, stands a stub"
    return ""


def names() -> list[str]:
    """Its algorithms, such as "PPOLag"; none where OmniSafe is not installed."""
    return omnisafe_files.names()


def describe(member: str) -> str:
    """One line about one of them."""
    return f"OmniSafe's {member}"


@lru_cache
def settings(member: str) -> type[RunConfig]:
    """The settings of one: those of `RunConfig`, and OmniSafe's own by section.

    Raises:
        ConfigError: OmniSafe is not installed.
    """
    sections = _fields(omnisafe_files.defaults(member), "", omnisafe_files.descriptions(member))
    name = f"omnisafe:{member}"
    return create_model(name, __base__=RunConfig, __doc__=f"Settings of {name}.", **sections)


def constraint(member: str) -> Literal["mean"] | None:
    """The mean episode cost, where it bounds the cost at all."""
    return "mean" if omnisafe_files.has_limit(member) else None


def one_process(member: str) -> str:
    """Why DeepSpeed cannot train any of them."""
    return "steps the policy by optimisers of its own"


def make(member: str, setup: "Setup") -> "Algorithm":
    """The algorithm that OmniSafe calls `member`, around the actor and critics of `setup`."""
    return Algorithm(member, setup)


def _fields(values: Row, prefix: str, about: dict[str, str]) -> dict[str, Any]:
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


class Limit:
    """The limit, which OmniSafe's algorithms keep for themselves; see `algos.core.loop.Limits`."""

    def __init__(self, name: str, cost_limit: float | None, updater: "Updater") -> None:
        from algos.core.constraints import Constraints

        self.judged = Constraints(None, cost_limit, name)
        self.unseen = self.judged.unseen
        self.updater = updater

    @property
    def cost_limit(self) -> float | None:
        """On the mean of all costs."""
        return self.judged.cost_limit

    def set_limit(self, limit: float, name: str = "") -> None:
        """Changes the limit in OmniSafe's own settings and in what is reported; see `Updater.set_limit`."""
        self.updater.set_limit(limit, name)
        self.judged.cost_limit = float(limit)

    def violation(self, measured: Mapping[str, float]) -> dict[str, float]:
        """By how much the iteration's mean cost exceeds the limit; see `Constraints.violation`."""
        return self.judged.violation(measured)

    def state_dict(self) -> State:
        """What the reported constraint keeps, as JSON values; OmniSafe's own state is the updater's."""
        return self.judged.state_dict()

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`, for the reported constraint alone."""
        self.judged.load_state_dict(state)


class Steps:
    """What the training loop asks of an optimiser: who trains, and that the agent is whole. OmniSafe's step it."""

    def __init__(self, setup: "Setup") -> None:
        self.processes = setup.processes
        rates = dict.fromkeys(setup.agent.parameter_groups(), 0.0)
        self.engine = setup.processes.engine(setup.agent, rates, 0.0)


class Algorithm:
    """An agent and an OmniSafe algorithm that updates it; see `algos.core.loop.Setup`."""

    source = "rollouts"
    critics = ("reward", "cost")

    def __init__(self, member: str, setup: "Setup") -> None:
        from textsafe_gym.adapters.omnisafe.updates import Updater

        self.agent, self.config = setup.agent, setup.config
        self.optimizer: Stepper = Steps(setup)
        assert setup.env is not None  # `algos.make` gives it
        self.files = tempfile.TemporaryDirectory(prefix="omnisafe-")
        self.updater = Updater(
            member,
            setup.config.model_dump(exclude=set(RunConfig.model_fields)),
            setup.env,
            setup.agent,
            cost_limit=setup.cost_limit,
            seed=setup.config.seed,
            episodes=setup.config.episodes_per_iteration,
            updates=setup.iterations,
            log_dir=self.files.name,
        )
        self.constraints = Limit(f"omnisafe:{member}", setup.cost_limit, self.updater)
        self.parts: Mapping[str, Stateful] = {"omnisafe": self.updater, "constraints": self.constraints}

    def update(self, rollout: "Rollout", generator: "torch.Generator") -> dict[str, float]:
        """One iteration's learning; metrics are those of OmniSafe's log that have a name here."""
        import torch

        from algos.core.objectives import shape_with_kl

        kl = self.config.kl_coefficient
        rewards = shape_with_kl(rollout.rewards, rollout.log_ratios, -kl, float("inf"))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logged = self.updater.update(rollout, rewards, rollout.costs, seed)
        return {name: logged[key] for key, name in _LOGGED.items() if key in logged}
