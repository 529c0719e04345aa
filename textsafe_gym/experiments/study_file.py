"""What a study's YAML file holds."""

from pydantic import BaseModel, ConfigDict, Field

from textsafe_gym.config import Values
from textsafe_gym.experiments.spec import DEFAULT_DATA
from textsafe_gym.presets import SMALL


class Entry(BaseModel):
    """One algorithm of a study."""

    model_config = ConfigDict(extra="forbid")

    algorithm: str | None = Field(None, description="its name; none: that of the entry")
    settings: Values = Field(default_factory=dict, description="its own, over those of all")


class Budget(BaseModel):
    """What each run may spend."""

    model_config = ConfigDict(extra="forbid")

    settings: Values = Field(default_factory=dict, description="over those of the algorithms")
    data: list[str] = Field(
        default_factory=lambda: [DEFAULT_DATA], description="as --data, of the algorithms that sample nothing"
    )


class StudyFile(BaseModel):
    """What a study's YAML file holds."""

    model_config = ConfigDict(extra="forbid")

    env: Values = Field(description="as --env has it: id, kwargs (but for cost_limit) and policy")
    preset: str = Field(SMALL, description="settings that all begin with")
    seeds: int = Field(gt=0, description="runs of each algorithm at each limit and budget")
    limits: list[float] = Field(default_factory=list, description="cost limits; none: the environment's own")
    budgets: dict[str, Budget] = Field(default_factory=lambda: {"all": Budget()}, min_length=1, description="by name")
    settings: Values = Field(default_factory=dict, description="of every algorithm that has them, over the preset's")
    algorithms: dict[str, Entry] = Field(min_length=1, description="by name, as rows are called")
    baseline: str = Field("ppo_lagrangian", description="the algorithm that others are compared with")
    frontier: str | None = Field(None, description="of textsafe frontier; none: what the embedded world ships")
