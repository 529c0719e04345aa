"""What each process of test_distributed.py runs; started by torchrun.

Usage: distributed_worker.py FOLDER JOB, where FOLDER has model/ and a plain checkpoint plain-2/.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import torch
import torch.distributed as td

import algos
import textsafe_gym  # noqa: F401 (registers the environment)
from algos.core import sources
from textsafe_gym.data.readers import Preference
from textsafe_gym.experiments import play
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.offline.preferences import Preferences
from textsafe_gym.parallel.process_group import ProcessGroup

EPISODES = 16
SETTINGS: dict[str, Any] = {
    "preset": "paper",
    "episodes": 4 * EPISODES,
    "episodes_per_iteration": EPISODES,
    "minibatch_size": 7,  # three minibatches of 6, 5 and 5: processes have unequal parts
    "epochs": 2,
    "learning_rate": 3e-4,  # where a gradient is about Adam's epsilon, its rounding moves a weight by a share of it
    "cost_limit": 1.0,
    "seed": 3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ppo_lagrangian": {"critic_learning_rate": 1e-3},
    "grpo_lagrangian": {"group_size": 4},
    "p3o": {"critic_learning_rate": 1e-3, "cost_limit": 2.0},
    "cup": {"critic_learning_rate": 1e-3},
}


OFFLINE: dict[str, Any] = {  # of dpo, which samples nothing: four iterations of two minibatches of 6 and 5 pairs
    "preset": "paper",
    "rows_per_iteration": 11,
    "epochs": 2,
    "minibatch_size": 7,
    "learning_rate": 3e-4,
    "seed": 3,
}


def environment(num_envs: int, tokenizer: Any, budget: int) -> Any:
    return gym.make_vec(
        "SafeRLHF-v0",
        num_envs=num_envs,
        prompts=["w1 w2", "w3 w4 w5 w6", "w7", "w8 w9 w10"],
        tokenizer=tokenizer,
        reward_model=lambda prompts, responses: [float(len(set(text.split()))) for text in responses],
        cost_model=lambda prompts, responses: [float(text.count("w2")) for text in responses],
        max_prompt_length=6,
        max_response_length=budget,
    )


def trainer_of(
    folder: Path, name: str, processes: ProcessGroup | None = None, resume: Path | None = None, **more: Any
) -> Any:
    torch.manual_seed(0)  # a fresh adapter
    actor = CausalLMActor.load(folder / "model", **more.pop("policy", {}))
    num_envs, budget = more.pop("num_envs", EPISODES), more.pop("budget", 9)
    env = environment(num_envs // (processes.world_size if processes else 1), actor.tokenizer, budget)
    if name == "dpo":
        texts = ["w4 w5 w6", "w7", "w2 w2 w8 w9", "w1 w3"]
        rows = [Preference(f"w{i % 9 + 1} w2", texts[i % 4], texts[(i + 1 + i // 8) % 4]) for i in range(22)]
        data = Preferences.encode(rows, actor, 6, 9, actor.reference())
        return algos.make(name, env, actor, None, processes, data=data, **OFFLINE | more)
    shown = Demonstrations.encode([("w1 w2", "w4 w5"), ("w3", "w6")], actor, 6, 9)
    if resume is not None:
        return algos.load(resume, env, actor, shown, processes)
    return algos.make(name, env, actor, shown, processes, **SETTINGS | OPTIONS[name] | more)


def result(trainer: Any, rows: list[dict[str, float]]) -> dict[str, Any]:
    with trainer.algorithm.optimizer.engine.gathered_policy():
        state = trainer.algorithm.agent.state_dict()
        # Each critic is a part of its own.
        tensors = {name.removeprefix("critics."): x.detach().float().cpu().clone() for name, x in state.items()}
    return {"tensors": tensors, "rows": rows}


STREAMED: dict[str, Any] = {"policy": {"lora_rank": 2}, "num_envs": 4, "budget": 14, "epochs": 1}
STREAMED |= {"episodes": 24, "episodes_per_iteration": 8, "minibatch_size": 5}


def played(trainer: Any, processes: ProcessGroup | None = None) -> list[dict[str, Any]]:
    reference = trainer.algorithm.agent.reference
    # 6 episodes are not a whole batch.
    with patch.object(play, "EPISODES", 6), trainer.algorithm.optimizer.engine.generating():
        return play.evaluate_policy(trainer.actor, trainer.source.env, 5, {}, reference, processes=processes)


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


def main(folder: Path, job: str) -> None:
    from textsafe_gym.parallel.deepspeed import start

    cpu = {"device": "cpu"}
    configs = {
        "zero0": zero(0),
        "zero1": zero(1),
        "zero2": zero(2, offload_optimizer=cpu),
        "zero3": zero(3, offload_optimizer=cpu, offload_param=cpu, stage3_param_persistence_threshold=0),
    }
    if job == "parity":
        for name, config in configs.items():
            processes = start(config)
            for algorithm in OPTIONS:
                if algorithm != "ppo_lagrangian" and name not in ("zero2", "zero3"):
                    continue
                trainer = trainer_of(folder, algorithm, processes, micro_batch_size=2)
                rows = trainer.learn(2 * EPISODES)
                if algorithm == "ppo_lagrangian":
                    trainer.save(folder / f"{name}-2")
                    rows += trainer.learn()
                keep(folder, f"{name}-{algorithm}", processes, result(trainer, rows))
            if name == "zero2":
                offline = trainer_of(folder, "dpo", processes, micro_batch_size=2)
                keep(folder, "zero2-dpo", processes, result(offline, offline.learn()))
            resumed = trainer_of(folder, "ppo_lagrangian", processes, resume=folder / "plain-2")
            keep(folder, f"{name}-resumed", processes, result(resumed, resumed.learn()))
        processes = start(configs["zero3"])
        lora = trainer_of(folder, "ppo_lagrangian", processes, policy={"lora_rank": 2})
        keep(folder, "zero3-lora", processes, result(lora, lora.learn(2 * EPISODES)))
    elif job == "stream":
        stream(folder, start(streaming()))
        processes = start(streaming(offload_optimizer=cpu, offload_param=cpu))
        resumed = trainer_of(folder, "ppo_lagrangian", processes, resume=folder / "stream-1", **STREAMED)
        keep(folder, "stream-resumed", processes, result(resumed, resumed.learn(16)))
        if processes.rank == 1:
            resumed.source.env.unwrapped.task.end = None  # fails in the midst of a rollout
        resumed.learn()
    else:
        processes = start(configs["zero2"], timeout=6.0)
        trainer = trainer_of(folder, "ppo_lagrangian", processes)

        def after(row: dict[str, float]) -> None:
            trainer.save(folder / f"{job}-latest")
            if row["iteration"] == 2 and processes.rank == 1:
                if job == "dead":
                    os._exit(3)
                time.sleep(1000)

        try:
            trainer.learn(on_iteration=after)
        except Exception as error:
            (folder / f"{job}-{processes.rank}.txt").write_text(f"{type(error).__name__}: {error}")
            raise


def streaming(**more: Any) -> dict[str, Any]:
    return {"textsafe": {"gather_for_generation": False}, **zero(3, stage3_param_persistence_threshold=0, **more)}


def stream(folder: Path, processes: ProcessGroup) -> None:
    """Trains and counts how many numbers are gathered at once, and in how many rollouts one process ends first."""
    trainer = trainer_of(folder, "ppo_lagrangian", processes, **STREAMED)
    agent = trainer.algorithm.agent
    every = [x for part in (agent.actor, agent.critics) for x in part.parameters()]
    counts = {"numbers": sum(x.ds_numel for x in every), "most": 0, "unequal": 0}

    def count(*_: Any) -> None:
        counts["most"] = max(counts["most"], gathered())

    def gathered() -> int:
        return sum(x.ds_numel for x in every if x.ds_status.name != "NOT_AVAILABLE")

    inner, draw = sources.collect, trainer.source.draw

    def collect(*args: Any, **kwargs: Any) -> Any:
        found = inner(*args, **kwargs)
        longest = processes.all_gather(int(found.lengths.max()))
        counts["unequal"] += len(set(longest)) > 1
        return found

    def drawn(iteration: int) -> Any:
        handle = torch.nn.modules.module.register_module_forward_hook(count)
        try:
            return draw(iteration)
        finally:
            handle.remove()
            counts["left"] = gathered()

    sources.collect, trainer.source.draw = collect, drawn
    rows = trainer.learn(8)
    trainer.save(folder / "stream-1")
    rows += trainer.learn(16)
    keep(folder, "stream", processes, result(trainer, rows))
    evaluated = played(trainer, processes)
    if processes.rank == 0:
        (folder / "stream-counts.json").write_text(json.dumps({**counts, "evaluated": evaluated}))


def keep(folder: Path, name: str, processes: ProcessGroup, found: dict[str, Any]) -> None:
    if processes.rank == 0:
        torch.save(found["tensors"], folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(found["rows"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    here, what = Path(sys.argv[1]), sys.argv[2]
    # Called last, as the first that was registered.
    atexit.register(lambda: (here / f"{what}-left-{os.environ['RANK']}").write_text(str(not td.is_initialized())))
    main(here, what)
