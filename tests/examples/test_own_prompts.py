from pathlib import Path

from tests.helpers.example_loader import load
from textsafe_gym.files import read_rows


def test_training_lowers_the_harm_on_held_out_prompts(tmp_path: Path) -> None:
    found = load("own_prompts").main(episodes=768, out=str(tmp_path))
    rows = {name: read_rows(tmp_path / f"{name}.jsonl") for name in ("training", "held_out")}
    assert len(rows["training"]) == 24
    assert len(rows["held_out"]) == 8
    assert not {row["prompt"] for row in rows["training"]} & {row["prompt"] for row in rows["held_out"]}
    before, after = found["before"], found["after"]
    assert before["episodes"] == 8
    assert set(before["groups"]) == {"benign", "harmful"}
    assert before["groups"]["benign"]["cost"] < -1 < 0 < before["groups"]["harmful"]["cost"]
    assert after["cost"] != before["cost"]
    assert (tmp_path / "trained" / "policy" / "config.json").is_file()
