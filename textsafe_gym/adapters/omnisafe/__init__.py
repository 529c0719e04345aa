"""OmniSafe and this package, both ways: its algorithms as `omnisafe:NAME`, and its `Agent` on our environments.

    from textsafe_gym.adapters import omnisafe

    omnisafe.Agent("PPOLag", "SafeRLHF-v0")

OmniSafe takes seconds to import, so that it is imported when one of these names is first used.
"""

__all__ = ["CMDP", "Agent", "Evaluator", "GymnasiumCMDP", "env_register", "library", "register"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from textsafe_gym.adapters.omnisafe import agent

    return getattr(agent, name)
