import pytest

import algos
from tests.helpers.example_loader import load
from textsafe_gym.errors import ConfigError, UnknownNameError


def test_it_keeps_the_limit_and_can_be_loaded(tmp_path) -> None:
    example = load("custom_algorithm")
    found = example.main(episodes=6144, cost_limit=-0.5)
    # Products rounded otherwise in their last bit move these by 1e-6, from -0.57 and 0.94; without a limit: 1.4.
    assert found["cost"] < -0.3
    assert found["reward"] > 0.8 * found["best_reward"]
    assert algos.available()["quadratic_penalty"].startswith("Quadratic penalty")
    settings = {"episodes": 4, "episodes_per_iteration": 2, "stiffness": 3.0}
    trainer = algos.make("quadratic_penalty", "SafeRLHF-Exact-v0", **settings)
    trainer.learn(2)
    trainer.save(tmp_path / "saved")
    resumed = algos.load(tmp_path / "saved", "SafeRLHF-Exact-v0")
    assert resumed.iteration == 1
    assert resumed.config.stiffness == 3.0
    with pytest.raises(ConfigError, match="stiffnes'; did you mean 'stiffness'"):
        algos.make("quadratic_penalty", "SafeRLHF-Exact-v0", stiffnes=1.0)
    with pytest.raises(ConfigError, match="the algorithm 'ppo' is registered already"):
        algos.register("ppo", example.Config, example.Algorithm)
    with pytest.raises(ConfigError, match="stands for MODULE:CLASS"):
        algos.register("mine:ppo", example.Config, example.Algorithm)
    algos.registration._algorithms.cache_clear()
    with pytest.raises(UnknownNameError, match="quadratic_penalty"):
        algos.load(tmp_path / "saved", "SafeRLHF-Exact-v0")
