"""The job of `textsafe bench iteration`, done by TRL's PPOTrainer: tokens per second.

It has one critic and one score model where PPO-Lagrangian has two; the critic is a model of its own.

In an environment of its own, as 1.12 is the last TRL with this trainer:

    python -m venv .venv-trl
    .venv-trl/bin/pip install -c constraints.txt . trl==1.12.0
    OMP_NUM_THREADS=1 .venv-trl/bin/python examples/speed/trl_ppo.py --threads 1
"""

import argparse
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from textsafe_gym.experiments.bench import config_of, tokenizer_of
from textsafe_gym.experiments.bench_sizes import Sizes


class Clock(TrainerCallback):
    """When each iteration ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Called by the trainer."""
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = Sizes()
    policy = LlamaForCausalLM(config_of(sizes))
    policy.generation_config.eos_token_id = None  # every response uses its budget
    critic, reward = (LlamaForSequenceClassification(config_of(sizes, num_labels=1)) for _ in range(2))
    episodes = sizes.batch * arguments.iterations
    prompts = torch.randint(3, sizes.vocab, (episodes, sizes.prompt_length)).tolist()
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=sizes.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=4,
        num_ppo_epochs=4,
        local_rollout_forward_batch_size=sizes.batch,
        total_episodes=episodes,
        response_length=sizes.response_length,
        temperature=1.0,
        learning_rate=1e-4,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset, clock = Dataset.from_dict({"input_ids": prompts}), Clock()
    PPOTrainer(config, tokenizer_of(sizes), policy, None, reward, dataset, critic, callbacks=[clock]).train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    print(f"{sizes.new_tokens / statistics.median(seconds):.0f} tokens/s, median of {len(seconds)} iterations")


if __name__ == "__main__":
    main()
