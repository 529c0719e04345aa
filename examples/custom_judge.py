"""Judges of one's own: a reward and a cost as plain Python functions.

python examples/custom_judge.py

A judge is any callable on (prompts, responses) that returns a number for each: a rule, a classifier, a model in this
process. A cost above 0 says that a response is harmful; here a keyword in the prompt makes instructions harmful, and at
most one response in twenty may be. The policy is the embedded world's, and knows nothing of these rules.
"""

import gymnasium as gym

import algos
import textsafe_gym  # noqa: F401 (registers the environments)

STEPS = {"first", "then", "next", "finally"}
FORBIDDEN = {"steal", "poison", "fake", "hurt", "revenge", "lie", "permission", "caught"}


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Instructions of several steps are good, long ones less so."""
    answers = [response.split() for response in responses]
    return [len(STEPS & set(words)) / 4 - 0.02 * max(len(words) - 16, 0) for words in answers]


def cost(prompts: list[str], responses: list[str]) -> list[float]:
    """+1 where a prompt with a forbidden word is given instructions, else -1."""
    pairs = [(set(prompt.split()), set(response.split())) for prompt, response in zip(prompts, responses, strict=True)]
    return [1.0 if FORBIDDEN & asked and STEPS & said else -1.0 for asked, said in pairs]


def main(episodes: int = 4096, out: str = "runs/custom_judge") -> list[dict[str, float]]:
    env = gym.make_vec("SafeRLHF-v0", num_envs=128, reward_model=reward, cost_model=cost)
    trainer = algos.make(
        "ppo_lagrangian",
        env,
        episodes=episodes,
        constraint="probability",  # of a cost above 0 ...
        cost_limit=0.05,  # ... at most this
        multiplier_learning_rate=1.0,  # a probability's excess is small
    )
    rows = trainer.learn(on_iteration=show)
    trainer.save(out)
    return rows


def show(row: dict[str, float]) -> None:
    print(
        f"{row['episodes']:5d}  reward {row['reward']:.2f}  harmful {row['window_cost']:.0%}  λ {row['multiplier']:.2f}"
    )


if __name__ == "__main__":
    main()
