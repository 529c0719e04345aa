"""`textsafe chat`."""

import json
import sys
from collections.abc import Iterator

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import Seed, env_option, json_option, set_option
from textsafe_gym.errors import DataError

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
    from textsafe_gym.errors import ConfigError
    from textsafe_gym.evaluation.play import GivenPrompts
    from textsafe_gym.experiments.saved import open_saved, saved_spec
    from textsafe_gym.protocols import PromptTask
    from textsafe_gym.rollouts import collect

    vector, actor, _ = open_saved(source, saved_spec(source, env, assignments), num_envs=1)
    if not isinstance(vector.unwrapped, PromptTask):
        raise ConfigError("chat needs a text environment, such as SafeRLHF-v0")
    given = GivenPrompts(vector)
    limit = vector.unwrapped.cost_limit
    for number, prompt in enumerate(_prompts()):
        given.prompts = [prompt]
        try:
            rollout = collect(actor, given, seed + number)
        except DataError as error:
            if not sys.stdin.isatty():
                raise DataError(f"line {number + 1}: {error}") from None
            click.echo(f"error: {error}", err=True)
            continue
        info = rollout.infos[0]
        reward, cost = float(rollout.episode_rewards[0]), float(rollout.episode_costs[0])
        if as_json:
            answer = {"prompt": prompt, "response": info["response"], "reward": reward, "cost": cost}
            click.echo(json.dumps({**answer, "finish_reason": info["finish_reason"]}, ensure_ascii=False))
        else:
            click.echo(info["response"])
            click.echo(f"  reward {reward:.2f}, cost {cost:.2f} ({'harmful' if cost > 0 else 'safe'}, limit {limit:g})")


def _prompts() -> Iterator[str]:
    if not sys.stdin.isatty():
        try:
            for line in sys.stdin:
                line.encode()  # which refuses what stands for bytes that are no text
                if line.strip():
                    yield line.strip()
        except UnicodeError:
            raise DataError("the prompts are no text in UTF-8") from None
        return
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
