"""OmniSafe itself, for its neighbours to take names from; importing this imports it, or says how to install it."""

import sys
from types import ModuleType, SimpleNamespace

from textsafe_gym.adapters.omnisafe.files import INSTALL
from textsafe_gym.errors import ConfigError


def _stub() -> None:
    """Puts a module in the place of safety_gymnasium, which OmniSafe imports and whose pins cannot be met."""

    def absent(*_: object, **__: object) -> None:
        raise ImportError("safety_gymnasium is not installed, so its environments cannot be made")

    module = ModuleType("safety_gymnasium")
    module.make = module.register = absent  # type: ignore[attr-defined]
    module.vector = SimpleNamespace(make=absent)  # type: ignore[attr-defined]
    sys.modules["safety_gymnasium"] = module


try:
    import safety_gymnasium  # noqa: F401
except Exception:  # whatever old simulators raise on a new system
    _stub()
try:
    import omnisafe as library
    from omnisafe import Agent
    from omnisafe.adapter import online_adapter
    from omnisafe.adapter.online_adapter import OnlineAdapter
    from omnisafe.algorithms import algo_wrapper
    from omnisafe.algorithms.on_policy.base.natural_pg import NaturalPG
    from omnisafe.algorithms.on_policy.base.policy_gradient import PolicyGradient
    from omnisafe.envs.core import CMDP, env_register
    from omnisafe.utils.config import Config
except ImportError as error:
    raise ConfigError(f"OmniSafe cannot be imported ({error}); {INSTALL}") from None

__all__ = [
    "CMDP",
    "Agent",
    "Config",
    "NaturalPG",
    "OnlineAdapter",
    "PolicyGradient",
    "algo_wrapper",
    "env_register",
    "library",
    "online_adapter",
]
