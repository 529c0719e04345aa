"""Turns the public files into rows for `textsafe fit` and prompts for `textsafe compare`.

    python examples/real_data/prepare.py [--plain] DATA OUT

DATA holds `hh_rlhf/harmless-base-test.jsonl.gz`, `diasafety/{train,val,test}.json` and
`xstest/model_completions/*.csv`. Everything is brought into one shape, a dialogue of human and assistant, so that the
policy and both score models see prompts alike; with --plain, for models with a chat template, prompts stay bare and
hh-rlhf, whose prompts are dialogues, is left out. XSTest prompts are divided once, by prompt: `PROMPTS_HELD_OUT` of
them appear in no row that anything is fitted on, and are what the policies are evaluated on.
"""

import argparse
import re
from pathlib import Path

from textsafe_gym.data.files import read_table
from textsafe_gym.data.readers import read_demonstrations
from textsafe_gym.data.splits import prompt_position
from textsafe_gym.files import write_rows

PROMPTS_HELD_OUT = 0.3
# `textsafe fit` holds prompts out by the same hash: with its seed, none of those left here would be among them.
DIVISION_SEED = 1_000_003
WORDS = 32  # a policy that writes 48 tokens is judged on beginnings: all answers are cut to one


def is_held_out(prompt: str) -> bool:
    return prompt_position(dialogue(prompt), DIVISION_SEED) < PROMPTS_HELD_OUT


def dialogue(prompt: str) -> str:
    return f"\n\nHuman: {prompt.strip()}\n\nAssistant:"


def beginning(text: str) -> str:
    """Whole sentences while they fit into WORDS words, at least the first sentence or as much of it as fits."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(text.split())):
        words = sentence.split(" ")
        if kept and len(kept) + len(words) > WORDS:
            break
        kept += words[:WORDS]
    return " ".join(kept)


def write(path: Path, rows: list[dict]) -> None:
    write_rows(path, rows)
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    data, out = arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)

    def exchange(prompt: str, answer: str) -> dict[str, str]:
        if arguments.plain:
            return {"prompt": prompt.strip(), "response": beginning(answer)}
        return {"prompt": dialogue(prompt), "response": " " + beginning(answer)}

    demonstrations = []
    if not arguments.plain:
        for prompt, answer in read_demonstrations(data / "hh_rlhf" / "harmless-base-test.jsonl.gz"):
            if answer.strip():
                demonstrations.append({"prompt": prompt, "response": " " + beginning(answer)})
    reward, cost, prompts = [], [], {}
    for file in sorted((data / "xstest" / "model_completions").glob("*.csv")):
        for row in read_table(file):
            given = row.values
            shown = exchange(given["prompt"], given["completion"])
            unsafe_prompt = given["type"].startswith("contrast")
            held_out = is_held_out(given["prompt"])
            prompts[shown["prompt"]] = ("unsafe" if unsafe_prompt else "safe", held_out)
            if held_out:
                continue
            complies = given["final_label"] == "1_full_compliance"
            demonstrations.append(shown)
            reward.append({**shown, "label": "good" if complies else "bad"})
            harmful = complies and unsafe_prompt
            cost.append({**shown, "label": "unsafe" if harmful else "safe"})
    diasafety = [
        {**exchange(row.values["context"], row.values["response"]), "label": row.values["label"].lower()}
        for part in ("train", "val", "test")
        for row in read_table(data / "diasafety" / f"{part}.json")
    ]
    write(out / "sft.jsonl", demonstrations)
    write(out / "reward.jsonl", reward)
    write(out / "cost_xstest.jsonl", cost)
    write(out / "cost_diasafety.jsonl", diasafety)
    for name, wanted in [("prompts_train", False), ("prompts_held_out", True)]:
        rows = [{"prompt": prompt, "group": group} for prompt, (group, held) in prompts.items() if held is wanted]
        write(out / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
