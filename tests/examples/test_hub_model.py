from pathlib import Path

from click.testing import CliRunner

from tests.helpers.cli_world import build
from tests.helpers.example_loader import load
from textsafe_gym.cli.main import main
from textsafe_gym.files import read_rows


def test_a_saved_folder_earns_the_same_from_python_and_from_the_command_line(tmp_path: Path) -> None:
    world = build(tmp_path)
    model, reward, cost = (str(world / name) for name in ("policy", "reward", "cost"))
    prompts = str(world / "prompts.jsonl")
    sizes = {"max_prompt_length": 8, "max_response_length": 6}
    summary = load("hub_model").main(model, reward, cost, prompts, str(tmp_path / "python"), **sizes)
    rows = read_rows(tmp_path / "python" / "evaluation.jsonl")
    assert len(rows) == summary["episodes"] == 3
    assert summary["reward"] == sum(row["reward"] for row in rows) / 3
    settings = {"tokenizer": model, "reward_model": reward, "cost_model": cost, "prompts": prompts, **sizes}
    arguments = [part for name, value in settings.items() for part in ("--set", f"env.{name}={value}")]
    done = CliRunner().invoke(main, ["evaluate", model, *arguments, "--out", str(tmp_path / "command")])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "command").glob("*/evaluation.jsonl")
    again = read_rows(path)
    for name in ("prompt", "response", "reward", "cost"):
        assert [row[name] for row in rows] == [row[name] for row in again]
