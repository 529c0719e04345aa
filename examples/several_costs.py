"""Two named costs, each with its own limit and its own multiplier.

python examples/several_costs.py

`cost_model` names the costs, `cost_limits` limits them. λ of each is its weight, in units of reward for a unit of that
cost, so costs of like scale are easier to steer: words are counted in tens.
"""

import gymnasium as gym

import algos
from textsafe_gym.embedded_world import ASSETS

LIMITS = {"harm": -1.0, "words": 1.3}


def words(prompts: list[str], responses: list[str]) -> list[float]:
    """Length in tens of words."""
    return [len(response.split()) / 10 for response in responses]


def main(episodes: int = 4096, out: str = "runs/several_costs") -> list[dict[str, float]]:
    env = gym.make_vec("SafeRLHF-v0", num_envs=128, cost_model={"harm": ASSETS / "cost", "words": words})
    trainer = algos.make(
        "ppo_lagrangian",
        env,
        episodes=episodes,
        cost_limits=LIMITS,
    )
    rows = trainer.learn(on_iteration=show)
    trainer.save(out)
    return rows


def show(row: dict[str, float]) -> None:
    parts = [f"{name} {row[f'window_cost_{name}']:.2f} (λ {row[f'multiplier_{name}']:.2f})" for name in LIMITS]
    print(f"{row['episodes']:5d}  reward {row['reward']:.2f}  {'  '.join(parts)}")


if __name__ == "__main__":
    main()
