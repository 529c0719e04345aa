"""Policies and score models; importing this loads no model library."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textsafe_gym.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from textsafe_gym.types import Policy


def make_policy(env: Any, model: str | Path | None = None, **options: Any) -> "Policy":
    """The policy that suits an environment.

    Args:
        env: a vector environment; one whose base has a `tokenizer` gets a language model, any other an MLP.
        model: the language model's folder or hub id; by default the environment's own `default_policy`.
        **options: of `CausalLMPolicy.load` or of `MLPPolicy`. Separate critics of a language model begin as the
            environment's own reward and cost model unless others are named.

    Raises:
        ModelError: there is no model to load, it does not fit, or an MLP was asked to load one.
        ConfigError: an option is wrong, or the spaces are for no policy.
    """
    from textsafe_gym.models.mlp import CONFIG, MLPPolicy

    task = env.unwrapped
    if hasattr(task, "tokenizer"):
        from textsafe_gym.models.causal_lm import CausalLMPolicy

        source = model if model is not None else task.default_policy
        if source is None:
            raise ModelError("this environment brings no policy of its own; give a model's folder or hub id")
        if options.get("critics") == "separate":
            own = {f"{kind}_critic": scores for kind, scores in task.score_models.items()}
            options = own | {name: value for name, value in options.items() if value is not None}
        if isinstance(source, tuple):
            begin, tokenizer = source
            return CausalLMPolicy(copy.deepcopy(begin), tokenizer, **options)
        if Path(source, CONFIG).is_file():
            raise ModelError(
                f"policy '{source}' is a multilayer perceptron, which reads no texts; name its environment"
            )
        return CausalLMPolicy.load(source, **options)
    check_plain(env.single_observation_space)
    if model is not None:
        return MLPPolicy.load(model, **options)
    return MLPPolicy(env.single_observation_space, env.single_action_space, **options)


def check_plain(observation_space: Any) -> None:
    """Refuses a text environment in a form that no language model plays.

    Raises:
        ConfigError: the space has token ids.
    """
    # Without importing gymnasium here; a Dict is the only space with named parts.
    if "input_ids" in getattr(observation_space, "spaces", ()):
        raise ConfigError(
            "a language model plays a text environment's own vector form, past wrappers and Gymnasium's copies; make "
            "it with gymnasium.make_vec(id, num_envs=...), and change what it pays by its reward_model and cost_model"
        )


def load_policy(source: str | Path, **options: Any) -> "Policy":
    """Loads what a policy's `save` wrote, whichever kind it is.

    Args:
        source: its folder or hub id; of a run, `RUN/checkpoints/latest/policy`.
        **options: of `CausalLMPolicy.load` or of `MLPPolicy.load`.

    Raises:
        ModelError: missing or corrupt.
    """
    from textsafe_gym.models import mlp
    from textsafe_gym.models.files import find_file

    if find_file(source, mlp.CONFIG) is not None:
        return mlp.MLPPolicy.load(source, **options)
    from textsafe_gym.models.causal_lm import CausalLMPolicy

    return CausalLMPolicy.load(source, **options)
