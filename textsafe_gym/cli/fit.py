"""`textsafe fit`: a policy, reward or cost model from a file of data."""

from pathlib import Path

import click

from textsafe_gym.cli import values
from textsafe_gym.cli.options import Seed, output_options, print_json
from textsafe_gym.cli.terminal import is_quiet, output
from textsafe_gym.files import Row

_EXAMPLE = """\b
Examples:
  textsafe fit sft --data harmless-base-test.jsonl.gz --model tiny --out models/sft
  textsafe fit cost --data train.json --prompt-column context --model models/sft --out models/cost
  textsafe fit reward --data gpt4.csv --response-column completion --label-column final_label \\
      --positive 1_full_compliance --model models/sft --out models/reward
  textsafe fit reward --data train.json --model models/sft --lora-rank 8 --out models/reward
  textsafe fit cost --data hub:PKU-Alignment/PKU-SafeRLHF:train --model gpt2 --skip-inconsistent --out models/cost
"""


@click.command(epilog=_EXAMPLE)
@click.argument("kind", type=click.Choice(["sft", "reward", "cost"]), metavar="sft|reward|cost")
@click.option(
    "--data",
    "sources",
    metavar="FILE",
    multiple=True,
    required=True,
    shell_complete=values.files,
    help="Rows; repeatable.",
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="M",
    shell_complete=values.directories,
    help="Folder or hub id to start from.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for model and metrics.json.")
@click.option("--prompt-column", default="prompt", show_default=True, metavar="NAME")
@click.option("--response-column", default="response", show_default=True, metavar="NAME")
@click.option("--label-column", default="label", show_default=True, metavar="NAME")
@click.option("--positive", multiple=True, metavar="LABEL", help="Label that means good (reward) or unsafe (cost).")
@click.option("--skip-inconsistent", is_flag=True, help="Leave out pairs whose labels contradict their order.")
@click.option("--loss", type=click.Choice(["sequence", "token"]), default="sequence", show_default=True)
@click.option("--regularization", type=float, default=0.001, show_default=True, help="Weight of squared scores.")
@click.option("--epochs", type=int, help="Passes over the data. [sft 3, reward and cost 2]")
@click.option(
    "--learning-rate", type=float, help="Peak learning rate. [2e-5; 2e-4 with --lora-rank; 1e-3 for a tiny model]"
)
@click.option("--lora-rank", type=click.IntRange(1), metavar="N", help="Fit a LoRA (and the head) alone.")
@click.option("--minibatch-size", type=int, default=16, show_default=True)
@click.option("--max-length", type=int, default=512, show_default=True, help="Tokens of prompt and response.")
@click.option("--test-fraction", type=float, default=0.1, show_default=True, help="Share of prompts held out.")
@click.option("--seed", type=Seed(), default=0, show_default=True)
@click.option("--device", metavar="D", help="Torch device. [cuda if there is one, else cpu]")
@output_options
def fit(
    kind: str,
    sources: tuple[str, ...],
    model: str,
    out: Path,
    prompt_column: str,
    response_column: str,
    label_column: str,
    as_json: bool,
    **settings: object,
) -> None:
    """Fits a policy to demonstrations, or a reward or cost model to preferences or labels.

    FILE is .jsonl, .json or .csv (gzipped or not), or hub:NAME[:SPLIT], with PKU-SafeRLHF columns, hh-rlhf dialogues
    (chosen, rejected), or single answers (prompt, response, label). M may also be "tiny" or
    "tiny:hidden=128,layers=4,heads=4,vocab=4096,length=512": a new model, with a tokenizer learned from the data.

    With --lora-rank the model stays as it is and DIR gets a LoRA in PEFT's format, to be used where the model is:
    a policy with policy.lora_rank and such reward and cost models of one M share one copy of its weights.
    """
    from textsafe_gym.data.readers import Columns
    from textsafe_gym.fitting.from_files import fit as fit_files

    columns = Columns(prompt_column, response_column, label_column)
    metrics = fit_files(kind, sources, model, out=out, columns=columns, progress=not is_quiet(), **settings)  # type: ignore[arg-type]
    if as_json:
        print_json(metrics)
    else:
        _print(metrics, out)


def _print(metrics: Row, out: Path) -> None:
    from rich.table import Table

    console = output()
    if "held_out" in metrics:
        table = Table(
            title=f"{metrics['kind']}: {metrics['rows']['held_out']} held-out rows of "
            f"{metrics['prompts']['held_out']} prompts",
            caption="in brackets: 95 % intervals over prompts" if "intervals" in metrics else None,
            title_justify="left",
            caption_justify="left",
        )
        names = list(metrics["held_out"]["transformer"])
        table.add_column("")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for judge, values in metrics["held_out"].items():
            table.add_row(judge, *(_cell(values[name], metrics.get("intervals", {}), judge, name) for name in names))
        if "train" in metrics:
            trained = metrics["train"]["transformer"]
            table.add_row("transformer, training rows", *(f"{trained[n]:.3f}" if n in trained else "" for n in names))
        for source, judges in metrics.get("by_source", {}).items():
            table.add_section()
            for judge, values in judges.items():
                cells = (f"{values[n]:.3f}" if n in values else "" for n in names)
                table.add_row(f"{source}: {judge}", *cells)
        console.print(table)
        for sentence in metrics["verdicts"]:
            console.print(sentence, soft_wrap=True)
    if metrics["rows"].get("skipped_inconsistent"):
        console.print(f"{metrics['rows']['skipped_inconsistent']} inconsistent rows were left out.")
    if "normaliser" in metrics:
        mean, std = metrics["normaliser"]["mean"], metrics["normaliser"]["std"]
        console.print(f"Normaliser: mean {mean:.3f}, std {std:.3f}.")
    console.print(
        f"{metrics['parameters'] / 1e6:.1f} M parameters, {metrics['rows']['train']} training rows, "
        f"{metrics['seconds']:.0f} s. Saved to {out}",
        soft_wrap=True,
    )


def _cell(value: float, intervals: Row, judge: str, name: str) -> str:
    if judge not in intervals:
        return f"{value:.3f}"
    low, high = intervals[judge][name]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("[", r"\[")
