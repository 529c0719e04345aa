"""The constrained MDPs, known to Gymnasium by name and imported when one is made."""

import gymnasium as gym

from textsafe_gym.registry import Registry

# Where Gymnasium imports the single and the vector environment from.
ENVIRONMENTS: Registry[tuple[str, str]] = Registry(
    "environment",
    [
        (
            "SafeRLHF-v0",
            ("textsafe_gym.envs.text:SafeRLHFEnv", "textsafe_gym.envs.vector:SafeRLHFVectorEnv"),
            "An episode is a response to a prompt, an action its next token.",
        ),
        (
            "SafeRLHF-Exact-v0",
            ("textsafe_gym.envs.exact:ExactEnv", "textsafe_gym.envs.exact:ExactVectorEnv"),
            "A task so small that every response can be listed and the constrained optimum computed.",
        ),
    ],
)


def register() -> None:
    """Registers `ENVIRONMENTS`; a second call changes nothing."""
    for name, (entry_point, vector_entry_point) in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(name, entry_point=entry_point, vector_entry_point=vector_entry_point)
