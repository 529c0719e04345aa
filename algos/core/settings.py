"""Settings that algorithms share; importing this loads no torch, so that help and validation are quick."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from textsafe_gym.config import OneOf
from textsafe_gym.registry import Lazy, Registry

if TYPE_CHECKING:
    from algos.core.constraints import Rule

RULES: "Registry[type[Rule]]" = Registry(
    "multiplier rule",
    [
        ("log", Lazy("algos.core.constraints:Log"), "Safe RLHF's: a gradient step on log λ"),
        ("projected", Lazy("algos.core.constraints:Projected"), "gradient ascent on λ, kept at 0 or above"),
        ("adam", Lazy("algos.core.controllers:Adam"), "ascent on λ by Adam"),
        ("pid", Lazy("algos.core.controllers:PID"), "a PID controller on the excess"),
        ("nu_pi", Lazy("algos.core.controllers:NuPI"), "a PI controller on a smoothed excess"),
        ("fixed", Lazy("algos.core.constraints:Rule"), "λ stays as it is"),
    ],
)
"""What `multiplier_update` may name; `RULES.register` adds a subclass of `algos.core.constraints.Rule`."""
RuleName = Annotated[str, AfterValidator(OneOf(RULES))]


class Group(BaseModel):
    """Settings that belong together, for an algorithm's `Config` to build on."""

    # Validators are built when something is validated, and not by whoever only reads what settings there are.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class StepConfig(Group):
    """Minibatches and optimiser; the defaults are the official Safe RLHF script's, on its eight devices."""

    seed: int = Field(0, ge=0, lt=2**63, description="all randomness of a run follows from it")
    minibatch_size: int = Field(128, gt=0, description="episodes, or pairs, in one optimiser step, at most")
    micro_batch_size: int | None = Field(
        None, gt=0, description="as many in one pass of it, at most; gradients add up to the same step; none: all"
    )
    learning_rate: float = Field(1e-5, ge=0, description="AdamW's, for the actor")
    learning_rate_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the iterations in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm of each parameter group is clipped to it")
    cost_limit: float | None = Field(None, description="largest allowed mean episode cost; none: the environment's own")

    @property
    def at_once(self) -> int:
        """Episodes in one pass of the actor."""
        return min(self.micro_batch_size or self.minibatch_size, self.minibatch_size)

    @property
    def problem(self) -> str | None:
        """Which problem is solved, of max E[R] - β·KL: "weighted", less a fixed weight of the cost or none of it; under
        a limit what that bounds, "mean", "probability", "cvar", "kl_in_cost" (E[C] + β·KL) or "per_prompt" (every
        prompt's E[C]); None: another problem, or limits by name."""
        return None


class TrainingConfig(StepConfig):
    """Budget and batches of rollouts, PTX and KL; the defaults are the official Safe RLHF script's."""

    episodes: int = Field(
        4096, gt=0, description="episodes in all, rounded up to whole iterations; the learning rate spans them"
    )
    episodes_per_iteration: int = Field(128, gt=0, description="episodes collected before each update")
    epochs: int = Field(1, gt=0, description="passes over an iteration's episodes")
    group_size: int = Field(1, gt=0, description="episodes that begin in the same state, as answers to one prompt")
    ptx_coefficient: float = Field(16.0, ge=0, description="weight of the cross-entropy on demonstrations, where given")
    kl_coefficient: float = Field(0.02, ge=0, description="weight of each step's KL, taken off the reward")
    clip_range_score: float = Field(50.0, gt=0, description="bound on each step's shaped reward and cost")

    @model_validator(mode="after")
    def _check_groups(self) -> "TrainingConfig":
        if self.episodes_per_iteration % self.group_size:
            raise ValueError(
                f"group_size = {self.group_size} does not divide episodes_per_iteration = {self.episodes_per_iteration}"
            )
        return self


class OfflineConfig(StepConfig):
    """Budget of a method that learns from data that are there already, and samples nothing."""

    epochs: int = Field(1, gt=0, description="passes over all of them")
    rows_per_iteration: int = Field(
        512, gt=0, description="pairs, labelled responses or demonstrations that an iteration reads"
    )


class ActorConfig(Group):
    """What holds the actor's steps on a rollout back, and what keeps it exploring; off by default."""

    target_kl: float | None = Field(
        None, gt=0, description="an iteration's steps end once their approximate KL exceeds 1.5 times it; none: never"
    )
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of each step's entropy, added to the objective")


class ClipConfig(ActorConfig):
    """PPO's clip, and what holds its steps back besides it."""

    clip_range_ratio: float = Field(0.2, gt=0, description="PPO's clip on the ratio of new to old probability")


class CriticConfig(Group):
    """Advantages from critics, and how critics learn; the defaults are the official Safe RLHF script's."""

    critic_learning_rate: float = Field(5e-6, ge=0, description="AdamW's, for critics, be they models or heads")
    gamma: float = Field(1.0, ge=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    clip_range_value: float = Field(5.0, gt=0, description="how far a value may move from the old one in an update")
    value_coefficient: float = Field(1.0, ge=0, description="weight of the critics' losses next to the actor's")


class ConstraintConfig(StepConfig):
    """What is bounded, besides `cost_limit`."""

    constraint: Literal["mean", "probability", "cvar"] = Field(
        "mean", description="what cost_limit bounds: E[cost], P(cost > 0), or the mean of the worst episodes' costs"
    )
    cvar_level: float = Field(
        0.9, ge=0, lt=1, description="cvar: the worst share 1 - cvar_level of the episodes counts"
    )
    cost_limits: dict[str, float] | None = Field(
        None, description="from the name of a cost to its own limit, instead of cost_limit on their sum"
    )
    cost_window: int = Field(128, gt=0, description="episodes over which the constraint is judged")

    @property
    def problem(self) -> str | None:
        """What the limit bounds; see `StepConfig.problem`."""
        return self.constraint if self.cost_limits is None else None


class MultiplierConfig(ConstraintConfig):
    """What is bounded, and how λ follows its excess."""

    multiplier_update: RuleName = Field(
        "projected", description="log: Safe RLHF's; projected, adam: gradient ascent, λ may be 0; pid; nu_pi; fixed"
    )
    multiplier_init: float = Field(0.0, ge=0, description="λ before the first update")
    multiplier_learning_rate: float = Field(
        0.1, ge=0, description="step of λ's update; the integral gain of pid, nu_pi"
    )
    multiplier_max: float | None = Field(5.0, gt=0, description="largest λ; none: unbounded")
    multiplier_kp: float = Field(0.1, ge=0, description="proportional gain of pid and nu_pi")
    multiplier_kd: float = Field(0.0, ge=0, description="derivative gain of pid")
    multiplier_nu: float = Field(0.0, gt=-1, lt=1, description="nu_pi: weight of the past in the smoothed excess")

    @property
    def problem(self) -> str | None:
        """None under a fixed λ, which weighs the cost and keeps no limit; see `StepConfig.problem`."""
        return None if self.multiplier_update == "fixed" else super().problem

    @model_validator(mode="after")
    def _check_multiplier(self) -> "MultiplierConfig":
        if self.multiplier_update == "log" and self.multiplier_init == 0:
            raise ValueError(
                "multiplier_init = 0 would stay 0 under multiplier_update 'log', which moves log λ; "
                "use a small positive value, or another multiplier_update"
            )
        if self.multiplier_max is not None and self.multiplier_init > self.multiplier_max:
            raise ValueError(f"multiplier_init = {self.multiplier_init} exceeds multiplier_max = {self.multiplier_max}")
        return self


class TrustRegionConfig(Group):
    """Size of the region and effort spent on its step; the defaults are the literature's."""

    max_kl: float = Field(0.01, gt=0, description="δ: bound on the mean KL(old‖new) of a step's distributions, in nats")
    damping: float = Field(0.1, ge=0, description="added to the Fisher matrix's diagonal")
    conjugate_gradient_steps: int = Field(10, gt=0, description="of solving F·x = g, at most")
    fisher_episodes: int = Field(32, gt=0, description="episodes that the Fisher matrix is measured on, at most")
    backtracks: int = Field(15, gt=0, description="shorter steps that the line search tries")
    backtrack_factor: float = Field(0.8, gt=0, lt=1, description="each one's length relative to the last")
