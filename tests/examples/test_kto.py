"""KTO, a class of the user's own on labelled responses: loss, closed form, `train`, `compare` and `--resume`."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import algos
from tests.helpers import cli_world
from tests.helpers.commands import printed, textsafe
from tests.helpers.example_loader import load
from tests.helpers.rounding import FLOAT32
from textsafe_gym.data.readers import Labelled as Row
from textsafe_gym.files import read_rows, write_rows
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.offline.labelled import Labelled

pytestmark = pytest.mark.usefixtures("as_a_user")
EXAMPLES = Path(__file__).parents[2] / "examples"
# The closed form is 1.2 nats from the reference. Seeds 0 to 2 end at most 0.01 nats from it.
NEAR, FAR = 0.03, 1.0
NAME = "kto:KTO"
SMALL = ("--set", "rows_per_iteration=8", "--set", "learning_rate=0.01", "--quiet")
BETA = 0.7


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    labelled, pairs = [], []
    for _ in range(5):
        for prompt in (row["prompt"] for row in cli_world.PROMPTS):
            labelled.append({"prompt": prompt, "response": "yes first water", "label": "good"})
            labelled.append({"prompt": prompt, "response": "no sorry", "label": "bad"})
            pairs.append({"prompt": prompt, "chosen": "yes first water", "rejected": "no sorry"})
    for name, rows in {"labelled": labelled, "pairs": pairs}.items():
        write_rows(world / f"{name}.jsonl", rows)
    return world


@pytest.mark.parametrize("seed", [0, 1])
def test_it_reaches_the_reference_among_the_good_responses(seed: int) -> None:
    kl, before = load("kto").main(seed=seed)
    assert kl < NEAR < FAR < before


def test_that_catches_swapped_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("kto")
    monkeypatch.setattr(example, "Row", lambda prompt, response, good: Row(prompt, response, not good))
    assert example.main()[0] > FAR


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_loss_and_gradient_are_as_stated(micro_batch_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against log-probabilities of one text after the other, and autograd of the sum that the docstring states."""
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vocabulary=5, max_response_length=2, prompts=2, seed=10)
    base: Any = env.unwrapped
    model, tokenizer = base.default_policy
    actor = CausalLMActor(model.double(), tokenizer)
    frozen: Any = actor.reference()._model
    texts = base.enumerate()[3::7]
    rows = [Row(text.prompt, text.response, i % 3 > 0) for i, text in enumerate(texts)]
    data = Labelled.encode(rows, actor, base.max_prompt_length, base.max_response_length, actor.reference())
    settings: dict[str, Any] = {"kl_coefficient": BETA, "minibatch_size": 6, "rows_per_iteration": 6}
    trainer: Any = algos.make(NAME, env, actor, data=data, **settings, micro_batch_size=micro_batch_size)
    torch.manual_seed(13)  # of a baseline that is not 0
    with torch.no_grad():  # so that the rewards are not 0
        for x in actor.trained_parameters():
            x += 0.1 * torch.randn_like(x)

    def log_ratio(prompt: str, response: str) -> torch.Tensor:
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
        said = [*said, tokenizer.eos_token_id][: base.max_response_length]
        both = [each(input_ids=torch.tensor([[*asked, *said]])).logits[0].log_softmax(-1) for each in (model, frozen)]
        new, old = (
            torch.stack([logits[len(asked) - 1 + t, token] for t, token in enumerate(said)]).sum() for logits in both
        )
        return new - old

    measured = rows[: micro_batch_size or len(rows)]
    crossed = [log_ratio(row.prompt, measured[i - 1].response).item() for i, row in enumerate(measured)]
    z = BETA * max(sum(crossed) / len(crossed), 0.0)
    terms = [
        torch.sigmoid(-(1 if row.label else -1) * (BETA * log_ratio(row.prompt, row.response) - z)) for row in rows
    ]
    loss = torch.stack(terms).mean()
    wanted = torch.autograd.grad(loss, actor.trained_parameters())
    found: list[torch.Tensor] = []
    engine = trainer.algorithm.optimizer.engine
    step = engine.step

    def seen(norm: float) -> Any:
        found.extend(x.grad.clone() for x in actor.trained_parameters())
        return step(norm)

    monkeypatch.setattr(engine, "step", seen)
    row = trainer.algorithm.update(data, torch.Generator().manual_seed(0))
    # The reference's log-probs were kept in float32; σ' and σ'' are at most a quarter.
    error = BETA * FLOAT32 * data.reference_log_probs.abs().max().item()
    assert z > 0.1
    assert row["baseline"] == pytest.approx(z, abs=error)
    assert row["actor_loss"] == pytest.approx(loss.item(), abs=error)
    assert max((x - y).abs().max().item() for x, y in zip(found, wanted, strict=True)) < error
    assert max(x.abs().max().item() for x in wanted) > 0.01


@pytest.mark.long
def test_the_command_trains_it_from_a_file_and_continues(world: Path, tmp_path: Path) -> None:
    request = ("train", NAME, "--env", world / "env.yaml", "--data", world / "labelled.jsonl", *SMALL)
    request = (*request, "--set", "epochs=3")
    whole = printed(*request, "--out", tmp_path / "whole")
    assert (whole["episodes"], whole["pairs"], whole["labels"]) == (0, 0, 30)
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert len(rows) == 12
    assert rows[0]["actor_loss"] == pytest.approx(0.5, abs=0.05)  # σ(0) at the start
    assert rows[-1]["label_accuracy"] == 1
    card = (tmp_path / "whole" / "checkpoints" / "latest" / "policy" / "README.md").read_text()
    assert f"30: {world / 'labelled.jsonl'}" in card
    cli_world.killed_at(11, *request, "--out", tmp_path / "killed")
    printed("train", NAME, "--out", tmp_path / "killed", "--resume", "--quiet")
    both = [(tmp_path / name / "evaluation.jsonl").read_text() for name in ("whole", "killed")]
    assert both[0] == both[1]


def test_it_stands_in_a_comparison_next_to_dpo_and_ppo(world: Path, tmp_path: Path) -> None:
    request = ("compare", "ppo", "dpo", NAME, "--env", world / "env.yaml", "--data", world / "pairs.jsonl", *SMALL)
    request = (*request, "--episodes", "16", "--set", "episodes_per_iteration=8", "--seeds", "1", "--workers", "1")
    found = printed(*request, "--out", tmp_path / "out")
    budgets = {
        label: (entry["episodes"], entry["pairs"], entry["labels"]) for label, entry in found["settings"].items()
    }
    assert budgets == {
        "initial": (0, 0, 0),
        "ppo": (16, 0, 0),
        "dpo": (0, 15, 0),
        NAME: (0, 0, 30),  # each pair is one good and one bad response
    }
    report = (tmp_path / "out" / "report.html").read_text()
    assert "16 responses or 30 labelled responses or 15 labelled pairs a run" in report


def test_the_enumerable_environments_own_labels(tmp_path: Path) -> None:
    request = ("train", NAME, "--env", "SafeRLHF-Exact-v0", "--set", "env.max_response_length=2", "--quiet")
    request = (*request, "--set", "env.vocabulary=4", "--set", "learning_rate=0.002", "--data", "simulated:511")
    summary = printed(*request, "--out", tmp_path / "run")
    assert summary["labels"] == 511
    env: Any = gym.make("SafeRLHF-Exact-v0", max_response_length=2, vocabulary=4).unwrapped
    assert summary["exact"]["reward"] > env.evaluate(env.default_policy[0]).reward + 0.1


def test_refusals(world: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        result = textsafe("train", NAME, "--env", world / "env.yaml", "--out", tmp_path / "never", *arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1, result.stderr
        return str(result.stderr)

    assert "--data simulated:4096: this environment has prompts of its own" in refused()
    assert "--data simulated:no: expected simulated:N, N labelled responses" in refused("--data", "simulated:no")
    assert "demonstrations.jsonl:1: no column 'label'" in refused("--data", world / "demonstrations.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "how", "response": "so", "label": "fine"}\n')
    odd = refused("--data", tmp_path / "odd.jsonl")
    assert "odd.jsonl:1: unknown label 'fine'; use words such as good and bad" in odd
    assert not (tmp_path / "never").exists()
