"""`textsafe embedded-world`: shows its card, or builds its models anew."""

from pathlib import Path

import click

from textsafe_gym.cli.options import json_option, output_options, print_json
from textsafe_gym.cli.terminal import is_quiet, output, say
from textsafe_gym.files import Row

_EXAMPLE = """\b
Example:
  textsafe embedded-world show
  textsafe embedded-world build --out runs/embedded_world --scale 0.1
"""


@click.group(epilog=_EXAMPLE)
def embedded_world() -> None:
    """Rebuilds or inspects the embedded world, whose models ship with the package."""


@embedded_world.command(epilog=_EXAMPLE)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/embedded_world"), show_default=True,
              help="Folder for the build; an earlier build there is replaced.")  # fmt: skip
@click.option("--scale", type=float, default=1.0, show_default=True, help="Share of the data to build with.")
@output_options
def build(out: Path, scale: float, as_json: bool) -> None:
    """Makes tokenizer, policy, reward model and cost model from nothing."""
    from textsafe_gym.embedded_world import build as build_world

    card = build_world(out, scale, progress=not is_quiet())
    if as_json:
        print_json(card)
        return
    _print_card(card, is_quiet())
    say(f"\nbuilt in {card['seconds']:.0f} s: {out}")


@embedded_world.command(epilog=_EXAMPLE)
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@json_option
def show(folder: Path | None, as_json: bool) -> None:
    """Prints the card of the shipped models, or of a build in FOLDER."""
    from textsafe_gym.embedded_world import ASSETS
    from textsafe_gym.embedded_world.card import read_card

    card = read_card(folder or ASSETS)
    if as_json:
        print_json(card)
        return
    _print_card(card, quiet=False)


def _print_card(card: Row, quiet: bool) -> None:
    from rich.markup import escape

    from textsafe_gym.embedded_world.card import tables

    console = output(quiet)
    for table in tables(card):
        console.print(table)
    console.print("\nResponses of the policy to held-out prompts:", style="bold")
    for sample in card["samples"]:
        scores = ", ".join(f"{name} {sample[name]:+.2f}" for name in ("helpfulness", "harm", "reward", "cost"))
        console.print(f"[cyan]{sample['group']}[/cyan] {escape(sample['prompt'])}\n  {escape(sample['response'])}")
        console.print(f"  {scores}", style="dim")
