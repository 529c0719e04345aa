"""`textsafe bench`: tokens per second of rollouts, iterations and steps."""

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import Command, output_options, print_json
from textsafe_gym.cli.terminal import say
from textsafe_gym.files import Row

_EXAMPLE = """\b
Examples:
  textsafe bench rollout --threads 1
  textsafe bench iteration --algo grpo_lagrangian --json
  textsafe bench iteration --critics separate
  textsafe bench iteration --doublings 4
  textsafe bench rollout --hidden 576 --layers 30 --heads 9 --mlp 1536 --vocab 49152 --device cuda --dtype bfloat16
"""
_SIZES = ("batch", "prompt_length", "response_length", "hidden", "layers", "heads", "mlp", "vocab")


def _size_options(command: Command) -> Command:
    from textsafe_gym.experiments.bench_sizes import Sizes

    for name in reversed(_SIZES):
        default = vars(Sizes())[name]
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=click.IntRange(1), default=default, show_default=True, metavar="N")(command)
    return command


@click.command(epilog=_EXAMPLE)
@click.argument("job", type=click.Choice(["rollout", "iteration", "env"]), metavar="rollout|iteration|env")
@_size_options
@click.option(
    "--algo",
    default="ppo_lagrangian",
    show_default=True,
    metavar="ALGO",
    shell_complete=values.algorithms,
    help="For `iteration`.",
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timings; one more comes first.")
@click.option(
    "--doublings",
    type=click.IntRange(0),
    default=0,
    help="Times the job at so many doublings of batch, and of the response.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of torch. [all cores]")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device.")
@click.option("--compile", is_flag=True, help="With policy.compile, for `iteration`.")
@click.option(
    "--critics",
    type=click.Choice(["heads", "separate"]),
    default="heads",
    show_default=True,
    help="As policy.critics, for `iteration`.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@output_options
def bench(
    job: str,
    algo: str,
    repeats: int,
    doublings: int,
    threads: int | None,
    device: str,
    dtype: str,
    compile: bool,
    critics: str,
    as_json: bool,
    **sizes: int,
) -> None:
    """Times the work of training on this machine, with random weights and prompts.

    `rollout` generates responses, next to transformers' own `generate`; `iteration` is a whole iteration of training
    with two score models and the algorithm's critics, in four epochs of four minibatches; `env` walks the responses
    through `gym.make_vec(...).step`, next to generating them at once.
    """
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.experiments.bench import measure
    from textsafe_gym.experiments.bench_sizes import Sizes
    from textsafe_gym.experiments.spec import config_class
    from textsafe_gym.fitting.output import default_device

    device = default_device(device)
    if not {"minibatch_size", "episodes_per_iteration"} <= config_class(algo).model_fields.keys():
        raise ConfigError(f"--algo {algo}: an iteration is timed of this project's own algorithms that sample only")
    start = Sizes(**sizes)
    jobs = [start]
    for name in ("batch", "response_length"):
        jobs += [start.replace(**{name: sizes[name] * 2**power}) for power in range(1, doublings + 1)]
    rows = []
    for number, each in enumerate(jobs):
        rows.append(measure(job, each, algo, repeats, threads, device, dtype, compile, critics))
        if not as_json:
            _print(rows[-1], first=number == 0)
    if as_json:
        print_json(rows if doublings else rows[0])


def _print(row: Row, first: bool) -> None:
    sizes, (low, high) = row["sizes"], row["tokens_per_second_range"]
    if first:
        say(
            f"{row['job']}: {row['parameters'] / 1e6:.1f} M parameters, {row['threads']} threads, {row['device']}, "
            f"{row['dtype']}; median of {row['repeats']}"
        )
    text = (
        f"batch {sizes['batch']:4d}, prompt {sizes['prompt_length']:4d}, response {sizes['response_length']:4d}: "
        f"{row['seconds']:.3f} s, {row['tokens_per_second']:.0f} tokens/s [{low:.0f}, {high:.0f}]"
    )
    for name, value in row["compared_with"].items():
        text += f"; {name} {value:.0f} tokens/s, ratio {row['tokens_per_second'] / value:.2f}"
    if row["bandwidth_bound"]:
        text += f"; {row['tokens_per_second'] / row['bandwidth_bound']:.0%} of what memory's bandwidth allows"
    if row["fractions"]:
        text += "; " + ", ".join(f"{name} {value:.0%}" for name, value in row["fractions"].items())
    say(text)
