"""The constrained MDPs, known to Gymnasium by name and imported when one is made."""

import gymnasium as gym

ENVIRONMENTS = {
    "SafeRLHF-v0": ("textsafe_gym.envs.text:SafeRLHFEnv", "textsafe_gym.envs.vector:SafeRLHFVectorEnv"),
    "SafeRLHF-Exact-v0": ("textsafe_gym.envs.exact:ExactEnv", "textsafe_gym.envs.exact:ExactVectorEnv"),
}


def register() -> None:
    """Registers `ENVIRONMENTS`; a second call changes nothing."""
    for name, (entry_point, vector_entry_point) in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(name, entry_point=entry_point, vector_entry_point=vector_entry_point)
