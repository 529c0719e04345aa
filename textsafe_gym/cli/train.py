"""`textsafe train`: one run of one algorithm, new or resumed."""

from pathlib import Path

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import (
    Seed,
    out_option,
    output_options,
    print_json,
    print_tables,
    run_options,
    track_option,
)
from textsafe_gym.cli.terminal import is_quiet, output, say
from textsafe_gym.files import Row

_EXAMPLE = """\b
Examples:
  textsafe train ppo_lagrangian --out runs/lagrangian
  textsafe train reward_shaping --set cost_weight=2 --set env.cost_limit=-1 --episodes 2048 --seed 3
  textsafe train ppo_lagrangian --out runs/lagrangian --resume
  textsafe train dpo --data pairs.jsonl --set kl_coefficient=0.05
  textsafe train my_package:MyAlgorithm --env my_package:MyTask-v0 --out runs/mine
  textsafe train ppo_lagrangian --out runs/lagrangian --track wandb
  torchrun --nproc_per_node 8 -m textsafe_gym.cli.main train ppo_lagrangian --deepspeed zero2
  textsafe train ppo_lagrangian --env mine.yaml --set policy.lora_rank=8 --memory
"""


@click.command(epilog=_EXAMPLE)
@click.argument("algorithm", metavar="ALGO", shell_complete=values.algorithms)
@run_options
@click.option("--seed", type=Seed(), help="All randomness follows from it. [0]")
@out_option("runs/ALGO-SEED")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option(
    "--deepspeed",
    metavar="FILE",
    shell_complete=values.deepspeed,
    help="DeepSpeed config, or a shipped one (zero1, zero2, zero3, ...); under torchrun, or alone.",
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
    preset: str | None,
    episodes: int | None,
    data: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    resume: bool,
    deepspeed: str | None,
    timeout: float,
    memory: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Trains a policy with ALGO and evaluates it; `textsafe algos` lists the algorithms."""
    from textsafe_gym.experiments import train as run

    if resume and out is None:
        raise click.UsageError("--resume needs --out DIR, the run to continue", click.get_current_context())
    shown = _show_memory if not as_json else lambda plan: None
    result = run(
        algorithm,
        env,
        config=config,
        settings=assignments,
        preset=preset,
        episodes=episodes,
        data=data,
        seed=seed,
        out=out,
        resume=resume,
        deepspeed=deepspeed,
        timeout=timeout,
        on_memory_plan=shown if memory else None,
        track=track,
        quiet=is_quiet(),
        command=command,
    )
    if not result.runs:  # of several processes only the first reports
        return
    if as_json:
        print_json(result.values)
    else:
        print_tables(result.tables)
        say(f"The run and its policy are in {result.directory}")


def _show_memory(plan: Row) -> None:
    from rich.table import Table

    from textsafe_gym.experiments.memory import readable

    table = Table(title="memory", title_justify="left")
    for number, head in enumerate(("", "bytes", "where", "when", "")):
        table.add_column(head, justify="right" if number == 1 else "left")
    for part in plan["parts"]:
        when = "always" if len(part["phases"]) == 3 else ", ".join(part["phases"])
        table.add_row(part["name"], readable(part["bytes"]), part["device"], when, part["note"])
    console = output()
    console.print(table)
    for device, peak in plan["peaks"].items():
        most, room = readable(peak["bytes"]), readable(peak["capacity"])
        console.print(f"Peak on {device}: {most} in the {peak['phase']} phase, of {room}.", soft_wrap=True)
