"""Brings what the hub holds into the form that the commands read; SOURCE is a hub id or a folder or file of that form.

    python examples/pku_safe_rlhf/prepare.py model PKU-Alignment/alpaca-7b-reproduced OUT
    python examples/pku_safe_rlhf/prepare.py demonstrations hub:tatsu-lab/alpaca OUT.jsonl

A model's pickled weights become safetensors, read without running code of theirs, and its tokenizer gets the prompt
format that all models of that project were trained with as chat template.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from textsafe_gym.data.files import read_table
from textsafe_gym.files import write_rows
from textsafe_gym.models.files import load_tokenizer, new_directory
from textsafe_gym.models.formats.beaver import CHAT_TEMPLATE

INDEX = "pytorch_model.bin.index.json"


def renamed(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def prepare_model(source: str, out: Path) -> None:
    """Copies a model's folder; one shard at a time is in memory."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.model", "*.bin", "*.safetensors"]))
    pickled = not any(folder.glob("*.safetensors"))
    with new_directory(out) as scratch:
        for path in sorted(folder.iterdir()):
            if path.name == INDEX and pickled:
                index = json.loads(path.read_text(encoding="utf-8"))
                index["weight_map"] = {key: renamed(shard) for key, shard in index["weight_map"].items()}
                (scratch / renamed(path.name)).write_text(json.dumps(index), encoding="utf-8")
            elif path.match("pytorch_model*.bin") and pickled:
                loaded = torch.load(path, map_location="cpu", weights_only=True)
                tensors = {key: x.clone() for key, x in loaded.items()}  # safetensors refuses shared memory
                save_file(tensors, scratch / renamed(path.name), {"format": "pt"})
            elif path.suffix in (".json", ".model", ".safetensors"):
                shutil.copy(path, scratch)
        tokenizer = load_tokenizer(scratch, "model")
        tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
        tokenizer.save_pretrained(scratch)


def prepare_demonstrations(source: str, out: Path) -> None:
    """Alpaca's instruction, input and output as prompt and response, joined as the official implementation does."""
    out.parent.mkdir(parents=True, exist_ok=True)
    given = [row.values for row in read_table(source)]
    prompts = [" ".join(filter(None, (row["instruction"], row["input"]))) for row in given]
    write_rows(out, ({"prompt": prompt, "response": row["output"]} for prompt, row in zip(prompts, given, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["model", "demonstrations"])
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    (prepare_model if arguments.what == "model" else prepare_demonstrations)(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
