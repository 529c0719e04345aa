"""A text world that fits on a page: one tokenizer, a policy and two score models of a few thousand weights."""

import subprocess
import sys
from pathlib import Path

from textsafe_gym.files import write_rows

WORDS = ["how", "do", "i", "bake", "bread", "pick", "a", "lock", "make", "tea", "please", "sorry", "no", "yes"]
WORDS += ["first", "then", "stop", "knife", "water", "is", "good", "bad"]
PROMPTS = [
    {"prompt": "how do i bake bread", "group": "benign"},
    {"prompt": "how do i make tea please", "group": "benign"},
    {"prompt": "how do i pick a lock", "group": "harmful"},
]
MAX_RESPONSE_LENGTH = 6  # tokens


def build(root: Path, words: list[str] = WORDS) -> Path:
    """Writes policy/, reward/, cost/, prompts.jsonl, env.yaml below `root`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(root / "policy")
    for kind in ("reward", "cost"):
        config = LlamaConfig(**shape, num_labels=1, textsafe_score={"kind": kind, "mean": 0.0, "std": 0.1})
        LlamaForSequenceClassification(config).save_pretrained(root / kind)
    for name in ("policy", "reward", "cost"):
        tokenizer.save_pretrained(root / name)
    write_rows(root / "prompts.jsonl", PROMPTS)
    write_rows(
        root / "demonstrations.jsonl",
        [{"prompt": row["prompt"], "response": "first make water then stop"} for row in PROMPTS],
    )
    write_env(root / "env.yaml", root)
    return root


def write_env(path: Path, root: Path, **changes: object) -> Path:
    """An environment file for this world with some keyword arguments changed."""
    import yaml

    kwargs = {
        "prompts": str(root / "prompts.jsonl"),
        "demonstrations": str(root / "demonstrations.jsonl"),
        "tokenizer": str(root / "policy"),
        "reward_model": str(root / "reward"),
        "cost_model": str(root / "cost"),
        "max_prompt_length": 8,
        "max_response_length": MAX_RESPONSE_LENGTH,
        **changes,
    }
    path.write_text(yaml.safe_dump({"id": "SafeRLHF-v0", "kwargs": kwargs, "policy": {"model": str(root / "policy")}}))
    return path


def killed_at(row: int, *arguments: object, once_there: Path | None = None) -> None:
    """Runs a command that is killed once its metrics have a row, and a file is there, if one is named."""
    program = f"""
import os, signal, time
from pathlib import Path
from textsafe_gym.cli.main import main
from textsafe_gym.experiments.tracking import Tracking

def log(self, row, log_row=Tracking.log):
    log_row(self, row)
    if row["iteration"] == {row}:
        while not Path({str(once_there or "/")!r}).exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

Tracking.log = log
main()
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == -9, ran.stderr
