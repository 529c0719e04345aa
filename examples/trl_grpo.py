"""TRL's GRPO on the embedded world: the reward and the weighted cost of the environment as TRL's reward functions.

It maximises reward - cost_weight·cost for the weight given and does not look for the one that keeps a limit.

    python examples/trl_grpo.py 0  # the cost's weight; by default 2
    textsafe evaluate runs/trl_grpo --out runs/trl_grpo_evaluated
"""

import sys

import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import textsafe_gym  # noqa: F401  registers the environments
from textsafe_gym.adapters.trl import prompt_dataset, reward_functions


def main(steps: int = 100, cost_weight: float = 2.0, out: str = "runs/trl_grpo") -> list[dict[str, float]]:
    torch.set_num_threads(1)
    env = gym.make("SafeRLHF-v0")
    text = env.unwrapped
    args = GRPOConfig(
        output_dir=out,
        reward_weights=[1.0, cost_weight],  # of the reward, and of the negative cost
        max_completion_length=text.max_response_length,
        num_generations=8,
        per_device_train_batch_size=64,
        max_steps=steps,
        learning_rate=3e-4,  # of a model of 0.24 M parameters
        lr_scheduler_type="constant",
        beta=0.05,  # the weight of the KL to the starting model
        logging_steps=10,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(text.default_policy),
        reward_funcs=reward_functions(env),
        args=args,
        train_dataset=prompt_dataset(env),
        processing_class=text.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(out)
    rows = [row for row in trainer.state.log_history if "cost" in row]
    for row in rows:
        print(", ".join(f"{name} {row[name]:.2f}" for name in ("rewards/reward/mean", "cost", "kl")))
    return rows


if __name__ == "__main__":
    main(cost_weight=float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
