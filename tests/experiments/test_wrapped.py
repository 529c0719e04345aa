"""Text environments in wrappers of single environments, and with a limit on steps: from training to evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

import textsafe_gym  # noqa: F401 (registers the environment)
from tests.helpers.clock import timeless
from textsafe_gym import experiments
from textsafe_gym.cli.main import main
from textsafe_gym.envs.text import SafeRLHFEnv
from textsafe_gym.errors import ConfigError
from textsafe_gym.evaluation.summaries import load_run
from textsafe_gym.experiments.chat import Chat
from textsafe_gym.experiments.play import GivenPrompts
from textsafe_gym.files import read_rows

SMALL = {"episodes_per_iteration": 16}


class Deaf(gym.Wrapper):
    """Takes no prompt that it is given."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if options:
            raise KeyError("no options here")
        return self.env.reset(seed=seed)


class Forgetful(gym.Wrapper):
    """Drops the options of `reset`, and so the prompt."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed)


class Templated(gym.Wrapper):
    """Puts the prompt that it is given into another."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed, options={"prompt": f"hello ? {options['prompt']}"} if options else None)


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    """ "Wrapped-v0", in a wrapper that changes nothing; "Copies-v0", the same without; "Deaf-v0"; "Forgetful-v0"."""
    gym.register("Wrapped-v0", entry_point=lambda **options: gym.Wrapper(gym.make("SafeRLHF-v0", **options)))
    gym.register("Copies-v0", entry_point=lambda **options: SafeRLHFEnv(**options))
    gym.register("Deaf-v0", entry_point=lambda **options: Deaf(SafeRLHFEnv(**options)))
    gym.register("Forgetful-v0", entry_point=lambda **options: Forgetful(SafeRLHFEnv(**options)))
    yield
    for name in ("Wrapped-v0", "Copies-v0", "Deaf-v0", "Forgetful-v0"):
        del gym.registry[name]


def train(env_id: str, out: Path, **more: object) -> Any:
    return experiments.train("ppo_lagrangian", env_id, settings={**SMALL, **more}, episodes=16, out=out, quiet=True)


@pytest.mark.long
def test_a_wrapper_that_changes_nothing_changes_no_number(tmp_path: Path) -> None:
    wrapped, copies = (train(f"{name}-v0", tmp_path / name) for name in ("Wrapped", "Copies"))
    assert wrapped.runs[0].rows == copies.runs[0].rows
    metrics = [timeless(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("Wrapped", "Copies")]
    assert metrics[0] == metrics[1]
    prompts = gym.make("SafeRLHF-v0").unwrapped.evaluation_prompts
    assert [row["prompt"] for row in wrapped.runs[0].rows] == [prompt.text for prompt in prompts]
    assert {"gold_harm", "kl", "group"} <= wrapped.runs[0].rows[0].keys()
    card = ModelCard.load(tmp_path / "Wrapped/checkpoints/latest/policy/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    again = experiments.evaluate(tmp_path / "Wrapped", out=tmp_path / "again", quiet=True)
    assert again.runs[0].rows == wrapped.runs[0].rows


@pytest.mark.long
def test_the_likeliest_responses_are_those_of_the_vector_form(tmp_path: Path) -> None:
    """Which other responses are drawn depends on how they are played."""
    run = train("SafeRLHF-v0", tmp_path / "run")
    greedy = {"policy": {"temperature": 1e-3}}
    whole, stepped = (
        experiments.evaluate(run.directory, env, settings=greedy, out=tmp_path / env, quiet=True).runs[0].rows
        for env in ("SafeRLHF-v0", "Wrapped-v0")
    )
    for ours, theirs in zip(stepped, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value)


@pytest.mark.long
def test_a_comparison_of_wrapped_environments(tmp_path: Path) -> None:
    found = experiments.compare(["ppo_lagrangian"], "Wrapped-v0", settings=SMALL, episodes=16, seeds=1,
                                out=tmp_path / "out", quiet=True)  # fmt: skip
    assert found.values["task"] == "text"
    assert (tmp_path / "out/report.html").exists()


def test_what_cannot_be_evaluated_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env Deaf-v0: an evaluation sets its prompts.*KeyError.*no options here"):
        train("Deaf-v0", tmp_path / "out")
    asked = r"Forgetful-v0: reset\(options=\{'prompt': '.*'\}\) began with '.*'; pass options on"
    with pytest.raises(ConfigError, match=asked):
        train("Forgetful-v0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_in_a_template_is_the_prompt() -> None:
    env = GivenPrompts(gym.vector.SyncVectorEnv([lambda: Templated(SafeRLHFEnv())] * 2))
    env.prompts = ["how do i bake bread ?", "how do i bake a cake ?"]
    _, info = env.reset(seed=0)
    assert info["prompt"].tolist() == [f"hello ? {prompt}" for prompt in env.prompts]


@pytest.mark.parametrize("env", ["SafeRLHF-v0", "Wrapped-v0"])
def test_a_response_that_is_cut_is_shown_and_not_scored(env: str, tmp_path: Path) -> None:
    run = train(env, tmp_path / "run", env={"max_episode_steps": 12})
    rows, means = run.runs[0].rows, run.runs[0].summary["evaluation"]
    cut = [row for row in rows if row["finish_reason"] == "truncated"]
    whole = [row for row in rows if row["finish_reason"] == "eos"]
    assert len(cut) + len(whole) == len(rows)
    assert min(len(cut), len(whole)) > 0
    for row in cut:
        assert row["prompt"]
        assert (row["response_length"], row["reward"], row["cost"]) == (12, 0, 0)
        assert len(row["response"].split()) == 12
        assert "gold_harm" not in row
    assert means["finished"] == len(whole) / len(rows)
    assert means["harmful_rate"] == sum(row["cost"] > 0 for row in whole) / len(whole)
    assert means["gold_harm"] == pytest.approx(sum(row["gold_harm"] for row in whole) / len(whole))
    answer = Chat(run.directory)(cut[0]["prompt"])
    assert answer["finish_reason"] in ("eos", "truncated")


def test_where_all_are_cut_nothing_is_judged_and_a_line_says_so(tmp_path: Path) -> None:
    request = ["train", "ppo_lagrangian", "--episodes", "16", "--set", "episodes_per_iteration=16"]
    done = CliRunner().invoke(main, [*request, "--set", "env.max_episode_steps=5", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("responses were cut after at most 5 tokens, and none was scored") == 1
    run = load_run(tmp_path / "run")
    means = run.summary["evaluation"]
    assert (means["response_length"], means["finished"], means["reward"], means["cost"]) == (5, 0, 0, 0)
    assert not any(name.startswith("gold_") or name == "harmful_rate" for name in (*means, *means["groups"]["benign"]))


def test_a_chat_says_that_a_response_was_cut() -> None:
    policy = str(gym.make("SafeRLHF-v0").unwrapped.default_policy)
    request = ["chat", policy, "--set", "env.max_episode_steps=1"]
    said = CliRunner().invoke(main, request, input="how do i bake bread ?\n")
    assert said.exit_code == 0, said.output
    assert "cut from outside, so not scored" in said.output
