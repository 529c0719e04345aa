"""IPO, a class of the user's own on labelled pairs: its closed form, `train`, `compare` and `--resume`."""

from pathlib import Path

import pytest

from tests.helpers import cli_world
from tests.helpers.commands import printed
from tests.helpers.example_loader import load
from textsafe_gym.files import read_rows, write_rows

pytestmark = pytest.mark.usefixtures("as_a_user")
EXAMPLES = Path(__file__).parents[2] / "examples"
# The optimum is 0.39 nats from the reference. Seeds 0 to 4 end at most 0.0035 nats from it; with twice the margin as
# the aim, with labels swapped, or with DPO's loss, training ends 0.36, 1.5 and 4.3 nats from it.
NEAR, FAR = 0.02, 0.1
SMALL = ("--set", "rows_per_iteration=8", "--set", "learning_rate=0.01", "--quiet", "--json")


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    pairs = [
        {"prompt": prompt["prompt"], "chosen": "yes first water", "rejected": "no sorry"}
        for _ in range(10)
        for prompt in cli_world.PROMPTS
    ]
    write_rows(world / "pairs.jsonl", pairs)
    return world


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ipo_reaches_its_closed_form(seed: int) -> None:
    kl, start = load("offline_algorithm").main(seed=seed)
    assert kl < NEAR < FAR < start


def test_its_optimum_is_not_that_of_dpo(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.functional import logsigmoid

    example = load("offline_algorithm")
    losses = example.preference_losses
    monkeypatch.setattr(example, "preference_losses", lambda loss, tau: losses(lambda x: -logsigmoid(x), tau))
    assert example.main()[0] > FAR


@pytest.mark.long
def test_the_command_trains_it_from_a_file_and_continues(world: Path, tmp_path: Path) -> None:
    request = ("train", "offline_algorithm:IPO", "--env", world / "env.yaml", "--data", world / "pairs.jsonl", *SMALL)
    request = (*request, "--set", "epochs=3", "--set", "kl_coefficient=0.5")
    whole = printed(*request, "--out", tmp_path / "whole")
    assert (whole["episodes"], whole["pairs"]) == (0, 30)
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert len(rows) == 12
    assert rows[0]["actor_loss"] == pytest.approx(1.0, abs=0.5)  # (0 - 1/(2·0.5))² at the start
    assert rows[-1]["margin"] == pytest.approx(0.5, abs=0.2)  # τ·h, whose aim is 1/2
    cli_world.killed_at(11, *request[:-1], "kl_coefficient=0.5", "--out", tmp_path / "killed")
    printed("train", "offline_algorithm:IPO", "--out", tmp_path / "killed", "--resume", "--quiet", "--json")
    both = [(tmp_path / name / "evaluation.jsonl").read_text() for name in ("whole", "killed")]
    assert both[0] == both[1]


def test_it_stands_in_a_comparison_next_to_dpo_and_ppo(world: Path, tmp_path: Path) -> None:
    request = ("compare", "ppo", "dpo", "offline_algorithm:IPO", "behaviour_cloning:BehaviourCloning")
    request = (*request, "--env", world / "env.yaml", "--data", world / "pairs.jsonl", "--episodes", "16", *SMALL)
    request = (*request, "--set", "episodes_per_iteration=8", "--seeds", "1", "--workers", "1")
    found = printed(*request, "--out", tmp_path / "out")
    budgets = {
        label: (entry["episodes"], entry["pairs"], entry["demonstrations"])
        for label, entry in found["settings"].items()
    }
    assert budgets == {
        "initial": (0, 0, 0),
        "ppo": (16, 0, 0),
        "dpo": (0, 30, 0),
        "offline_algorithm:IPO": (0, 30, 0),
        "behaviour_cloning:BehaviourCloning": (0, 0, 30),  # the preferred responses
    }
    report = (tmp_path / "out" / "report.html").read_text()
    assert "16 responses or 30 demonstrations or 30 labelled pairs a run" in report
