"""Evaluates a chat model from the hub, or from a folder, by a reward and a cost model.

python examples/hub_model.py HuggingFaceTB/SmolLM2-135M-Instruct REWARD COST prompts.jsonl

REWARD and COST are hub ids or folders too: what `textsafe fit` wrote, a decoder classifier with one label, or the
official PKU-Alignment/beaver-7b-v1.0-reward and -cost. The same from the command line:

textsafe evaluate MODEL --set env.tokenizer=MODEL --set env.reward_model=REWARD --set env.cost_model=COST \
    --set env.prompts=prompts.jsonl --out runs/hub_model
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym

import textsafe_gym  # noqa: F401 (registers the environments)
from textsafe_gym.evaluation.records import summarise
from textsafe_gym.experiments.play import evaluate_policy
from textsafe_gym.files import write_rows
from textsafe_gym.models import make_actor


def main(
    model: str, reward_model: str, cost_model: str, prompts: str, out: str = "runs/hub_model", **options: Any
) -> dict[str, Any]:
    """One response to each prompt; `options` are the environment's, such as max_response_length=256."""
    env = gym.make_vec(
        "SafeRLHF-v0",
        num_envs=64,
        prompts=prompts,
        tokenizer=model,
        reward_model=reward_model,
        cost_model=cost_model,
        **options,
    )
    policy = make_actor(env, model)
    rows = evaluate_policy(policy, env, seed=0, identity={"model": model})
    Path(out).mkdir(parents=True, exist_ok=True)
    write_rows(Path(out) / "evaluation.jsonl", rows)
    summary = summarise(rows, env.unwrapped.cost_limit)
    print("reward {reward:.2f}, cost {cost:.2f}, harmful {harmful_rate:.0%}".format(**summary))
    for row in rows[:3]:
        print(f"\n{row['prompt']}\n{row['response']}\n[reward {row['reward']:.2f}, cost {row['cost']:.2f}]")
    return summary


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
