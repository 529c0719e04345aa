"""`textsafe push`: a policy or a score model, with its card, to the Hugging Face hub."""

from pathlib import Path

import click

from textsafe_gym.cli.options import json_option, print_json

_EXAMPLE = """\b
Examples:
  textsafe push runs/demo/ppo_lagrangian/seed_0 ORG/careful --private
  textsafe push models/cost ORG/harm --dry-run
  textsafe evaluate ORG/careful --set env.cost_model=ORG/harm
"""


@click.command(epilog=_EXAMPLE)
@click.argument("source", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Into a private repository, which is made if it is new.")
@click.option("--dry-run", is_flag=True, help="List what would be uploaded, and stop.")
@json_option
def push(source: Path, repo_id: str, private: bool, dry_run: bool, as_json: bool) -> None:
    """Uploads the policy of a finished RUN, or a MODEL's folder, to ORG/NAME, which is made if it is new.

    Weights, settings, tokenizer and card are uploaded and nothing else. Needs `hf auth login` or HF_TOKEN.
    """
    from textsafe_gym.experiments.push import push as upload

    result = upload(source, repo_id, private=private, dry_run=dry_run)
    if as_json:
        print_json(result)
        return
    for name in result["files"]:
        click.echo(f"{Path(result['folder'], name).stat().st_size:>12,}  {name}")
    if dry_run:
        click.echo(f"Not uploaded: --dry-run. The files are in {result['folder']}")
    else:
        click.echo(f"Uploaded to {result['url']}")
