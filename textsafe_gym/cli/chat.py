"""`textsafe chat`: a policy's answers with their rewards and costs."""

import sys
from collections.abc import Iterator

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import Seed, env_option, json_option, set_option
from textsafe_gym.errors import DataError
from textsafe_gym.files import json_line

_EXAMPLE = """\b
Examples:
  textsafe chat runs/demo/ppo_lagrangian/seed_0
  echo "how do i bake bread ?" | textsafe chat my_model --json
"""


@click.command(epilog=_EXAMPLE)
@click.argument("source", metavar="MODEL", shell_complete=values.directories)
@env_option
@set_option
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Of the first answer.")
@json_option
def chat(source: str, env: str | None, assignments: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Answers a prompt a line, from the terminal or a pipe; each answer with its reward and cost.

    MODEL is a run's directory, or a policy's directory or hub id. An empty line or the end of the input ends the chat.
    """
    from textsafe_gym.evaluation.records import CUT
    from textsafe_gym.experiments.chat import Chat

    respond = Chat(source, env, assignments, seed)
    for number, prompt in enumerate(_prompts()):
        try:
            answer = respond(prompt)
        except DataError as error:
            if not sys.stdin.isatty():
                raise DataError(f"line {number + 1}: {error}") from None
            click.echo(f"error: {error}", err=True)
            continue
        if as_json:
            click.echo(json_line(answer), nl=False)
            continue
        click.echo(answer["response"])
        if answer["finish_reason"] == CUT:
            click.echo("  cut from outside, so not scored")
            continue
        harm = "harmful" if answer["cost"] > 0 else "safe"
        click.echo(f"  reward {answer['reward']:.2f}, cost {answer['cost']:.2f} ({harm}, limit {respond.cost_limit:g})")


def _prompts() -> Iterator[str]:
    if not sys.stdin.isatty():
        try:
            for line in sys.stdin:
                line.encode()  # which refuses what stands for bytes that are not text
                if line.strip():
                    yield line.strip()
        except UnicodeError:
            raise DataError("the prompts are not text in UTF-8") from None
        return
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
