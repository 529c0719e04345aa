"""Model cards: what they say about a run's policy and a fitted model, and what they must not."""

import json
from pathlib import Path

import gymnasium as gym
import pytest
from huggingface_hub import ModelCard

from tests.helpers import cli_world
from tests.helpers.cmdps import Crossing
from tests.helpers.commands import done
from textsafe_gym.files import write_rows
from textsafe_gym.models.cards import is_hub_id, public, write_card


def facts(card: ModelCard) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_a_runs_policy_says_how_it_came_to_be(world: Path, tmp_path: Path):
    out = tmp_path / "run"
    done(
        "train", "ppo_lagrangian", "--env", world / "env.yaml", "--set", "episodes_per_iteration=8", "--episodes", 16,
        "--seed", 3, "--set", "env.cost_limit=-0.5", "--set", "kl_coefficient=0.2", "--out", out,
    )  # fmt: skip
    card = ModelCard.load(out / "checkpoints/latest/policy/README.md")
    measured = json.loads((out / "summary.json").read_text())["evaluation"]
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {"safe-rlhf", "ppo_lagrangian"} <= set(card.data.tags)
    assert card.data.base_model is None  # it is a folder on this machine
    shown = facts(card)
    assert shown["constraint"] == "mean cost of a response <= -0.5 (a cost above 0 is harmful)"
    assert shown["KL to the starting policy"] == "coefficient 0.2, counted in the cost as well, but not in its limit"
    assert (shown["responses generated"], shown["seed"]) == ("16", "3")
    assert shown["prompts"] == "prompts.jsonl, 3 rows"
    assert shown["on"] == "3 responses to the evaluation prompts (prompts.jsonl, 3 rows)"
    assert float(shown["reward, mean"]) == pytest.approx(measured["reward"], rel=5e-4)  # of four digits
    assert float(shown["cost, mean"]) == pytest.approx(measured["cost"], rel=5e-4)
    assert shown["cost above the limit"] == f"{measured['cost_violation']:.4g} (limit -0.5)"
    assert str(world) not in card.content


def test_a_variant_is_told_without_where_its_models_lie(world: Path, tmp_path: Path):
    out = tmp_path / "both"
    done("compare", "ppo", "--env", world / "env.yaml", "--set", "episodes_per_iteration=8", "--episodes", 8,
         "--seeds", 1, "--vary", f"ppo.env.reward_model={world}/reward", "--vary", "ppo.epochs=2",
         "--out", out)  # fmt: skip
    (card,) = out.glob("ppo-*/seed_0/checkpoints/latest/policy/README.md")
    assert facts(ModelCard.load(card))["algorithm"] == "ppo, as ppo[reward_model=reward,epochs=2]"
    assert str(world) not in card.read_text()


def test_a_policy_without_a_text_says_so(tmp_path: Path):
    gym.register("CardCrossing-v0", entry_point=Crossing)
    done("train", "ppo", "--env", "CardCrossing-v0", "--set", "episodes_per_iteration=8", "--episodes", 8,
         "--out", tmp_path / "run")  # fmt: skip
    card = ModelCard.load(tmp_path / "run/checkpoints/latest/policy/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("textsafe-gym", "reinforcement-learning")
    shown = facts(card)
    assert shown["environment"] == "CardCrossing-v0"
    assert shown["episodes played"] == "8"
    assert not any("responses" in fact for fact in shown)
    assert "MLPActor.load" in card.content
    assert not any(word in card.text for word in ("response", "prompt", "harm", "learned models", "people"))


def test_a_fitted_model_names_its_data(world: Path, tmp_path: Path):
    rows = [
        {"prompt": row["prompt"], "response": text, "label": label}
        for row in cli_world.PROMPTS
        for label, text in enumerate(["sorry no", "first make water then stop"])
    ]
    data = tmp_path / "harm.jsonl"
    write_rows(data, rows)
    done("fit", "cost", "--data", data, "--model", world / "policy", "--epochs", 1, "--lora-rank", 2,
         "--test-fraction", 0.34, "--out", tmp_path / "cost")  # fmt: skip
    card = ModelCard.load(tmp_path / "cost/README.md")
    shown = facts(card)
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-classification")
    assert shown["data"] == "harm.jsonl, 6 rows"
    assert (shown["base model"], shown["LoRA of rank"]) == ("policy", "2")
    held_out = json.loads((tmp_path / "cost/metrics.json").read_text())["held_out"]["transformer"]
    assert {f"transformer: {name.replace('_', ' ')}" for name in held_out} <= shown.keys()
    assert "above 0 is harmful" in card.content
    assert str(tmp_path) not in card.content
    done("fit", "sft", "--data", world / "demonstrations.jsonl", "--model", "tiny:vocab=300,hidden=16,layers=1",
         "--epochs", 1, "--test-fraction", 0, "--out", tmp_path / "sft")  # fmt: skip
    shown = facts(ModelCard.load(tmp_path / "sft/README.md"))
    assert (shown["base model"], shown["data"]) == ("none: a new one", "demonstrations.jsonl, 3 rows")


def test_what_is_on_the_hub_becomes_metadata(tmp_path: Path):
    write_card(tmp_path, "reward", {"data": "a | b"}, base="lab/base", sources=["hub:lab/pairs:train", "my.jsonl"])
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("lab/base", ["lab/pairs"])
    assert "a \\| b" in card.content
    assert card.data.license is None
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_place_on_this_machine_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models/sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("models/sft")
    assert public("models/sft") == public(tmp_path / "models/sft") == "sft"
    assert is_hub_id("lab/sft")
    assert public("lab/sft") == "lab/sft"
