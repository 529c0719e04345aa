"""Run where nothing but the package and its own requirements is installed: walks and scores an episode.

Prints, as JSON, where the package was found, the other distributions' modules that its own modules import, and what
came out.
"""

import builtins
import json
import sys
from typing import Any


def main() -> None:
    load, imported = builtins.__import__, set()

    def noting(name: str, names: Any = None, *rest: Any, **more: Any) -> Any:
        by, top = (names or {}).get("__name__", "").partition(".")[0], name.partition(".")[0]
        if by == "textsafe_gym" and top != by and top not in sys.stdlib_module_names:
            imported.add(top)
        return load(name, names, *rest, **more)

    builtins.__import__ = noting
    import gymnasium as gym

    import textsafe_gym

    env = gym.make("SafeRLHF-v0")
    env.reset(seed=0)
    terminated, info = False, {}
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
    vector = gym.make_vec("SafeRLHF-v0", num_envs=2, max_response_length=1)
    vector.reset(seed=0)
    rewards = vector.step(vector.action_space.sample())[1]
    exact = gym.make("SafeRLHF-Exact-v0", cost_limit=0.0, kl_coefficient=0.2).unwrapped
    found = {"reward": reward, "cost": info["cost"], "rewards": rewards.tolist(), "optimum": exact.solve().cost}
    print(json.dumps({"file": textsafe_gym.__file__, "imported": sorted(imported), **found}))


if __name__ == "__main__":
    main()
