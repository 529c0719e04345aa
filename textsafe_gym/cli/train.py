"""`textsafe train`."""

import os
from pathlib import Path
from typing import Any

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import (
    Seed,
    data_option,
    out_option,
    output_options,
    print_json,
    print_tables,
    run_options,
    track_option,
)
from textsafe_gym.cli.outcomes import Interrupted
from textsafe_gym.cli.terminal import say

_EXAMPLE = """\b
Examples:
  textsafe train ppo_lagrangian --out runs/lagrangian
  textsafe train reward_shaping --set cost_weight=2 --set env.cost_limit=-1 --episodes 2048 --seed 3
  textsafe train ppo_lagrangian --out runs/lagrangian --resume
  textsafe train dpo --data pairs.jsonl --set kl_coefficient=0.05
  textsafe train omnisafe:PPOLag --set algo_cfgs.clip=0.1 --out runs/ppolag
  textsafe train ppo_lagrangian --out runs/lagrangian --track wandb
  torchrun --nproc_per_node 8 -m textsafe_gym.cli.main train ppo_lagrangian --deepspeed configs/deepspeed/zero2.json
  textsafe train ppo_lagrangian --env mine.yaml --set policy.lora_rank=8 --memory
"""


@click.command(epilog=_EXAMPLE)
@click.argument("algorithm", metavar="ALGO", shell_complete=values.algorithms)
@run_options
@click.option("--seed", type=Seed(), help="All randomness follows from it. [0]")
@data_option
@out_option("runs/ALGO-SEED")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option(
    "--deepspeed",
    metavar="FILE",
    shell_complete=values.deepspeed,
    help="DeepSpeed config or preset (zero1, zero2, zero3, ...); under torchrun, or alone.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="With --deepspeed: after which a process that others wait for is taken for lost.",
)
@click.option("--memory", is_flag=True, help="Print first what memory the run takes; too much is refused.")
@track_option
@output_options
@click.pass_obj
def train(
    command: str,
    algorithm: str,
    env: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    episodes: int | None,
    seed: int | None,
    data: tuple[str, ...],
    out: Path | None,
    resume: bool,
    deepspeed: str | None,
    timeout: float,
    memory: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Trains a policy with ALGO and evaluates it; `textsafe algos` lists the algorithms."""
    from textsafe_gym.cli.memory import check_room, memory_plan, show
    from textsafe_gym.evaluation.files import read_json
    from textsafe_gym.experiments.pool import Job, run_all
    from textsafe_gym.experiments.run import check, check_out, same_request
    from textsafe_gym.experiments.spec import build_spec, config_class, folder_of
    from textsafe_gym.experiments.tracking import Track

    config_class(algorithm)
    processes = joined(deepspeed, timeout)
    plan: dict[str, Any] = {}
    with processes.together("the request"):
        if resume:
            if out is None:
                raise click.UsageError("--resume needs --out DIR, the run to continue", click.get_current_context())
            check_out(out, resume=True)
            config = config or str(out / "config.yaml")
        spec = build_spec(
            algorithm, env=env, config=config, assignments=assignments, episodes=episodes, seed=seed, data=data
        )
        out = out or Path("runs") / f"{folder_of(algorithm)}-{spec.seed}"
        check_out(out, resume)
        if resume:
            same_request(spec, out)
        if memory:
            plan = {"memory": memory_plan(spec, processes)}
            if not as_json and processes.rank == 0:
                show(plan["memory"])
            check_room(plan["memory"])
        check(spec, processes=processes)
    try:
        failures = run_all([Job(spec, out, Track(track))], workers=1, processes=processes)
    except KeyboardInterrupt:
        raise Interrupted(f"continue with: textsafe train {algorithm} --out {out} --resume") from None
    for failure in failures.values():
        raise failure
    if processes.rank > 0:
        return
    summary = read_json(out / "summary.json")
    if as_json:
        print_json({"directory": str(out), **plan, **summary})
    else:
        from textsafe_gym.evaluation.summaries import compare_runs, load_runs, tables_of

        print_tables(tables_of(compare_runs(load_runs([out]))))
        say(f"The run and its policy are in {out}")


def joined(deepspeed: str | None, timeout: float) -> Any:
    """The processes that train: this one, or with DeepSpeed those that torchrun has started.

    Raises:
        ConfigError: the DeepSpeed config is wrong, or there are several processes and no config.
    """
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.parallel.process_group import SingleProcess
    from textsafe_gym.presets import presets
    from textsafe_gym.registry import nearest

    if deepspeed is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("several processes were started, but without --deepspeed each would train alone")
        return SingleProcess()
    from textsafe_gym.parallel.deepspeed import start
    from textsafe_gym.parallel.deepspeed_config import read_config

    known = presets("deepspeed")
    path = known.get(deepspeed, Path(deepspeed))
    if not path.is_file():
        raise ConfigError(f"--deepspeed {deepspeed}: no such file or preset; {nearest(deepspeed, list(known))}")
    return start(read_config(path), timeout)
