"""Policies that were saved: by a run whose algorithm is not here, and by a trainer in a user's own script."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from click.testing import CliRunner

import algos
from tests.helpers.cmdps import Crossing
from textsafe_gym import experiments
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError, ModelError, RunError
from textsafe_gym.files import read_rows

_EXACT = "SafeRLHF-Exact-v0"
_ELSEWHERE = """
import sys
import algos
from algos import rloo
from textsafe_gym import experiments

algos.register("mine", rloo.Config, rloo.Algorithm)
env, out, *settings = sys.argv[1:]
experiments.train("mine", env, settings=settings, episodes=16, out=out, quiet=True)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "settings", [[], ["policy.lora_rank=2"], ["policy.last_layers=1"]], ids=["whole", "adapter", "last"]
)
def test_a_run_is_evaluated_where_its_algorithm_is_not(settings: list[str], world: Path, tmp_path: Path) -> None:
    settings = [*settings, "episodes_per_iteration=8", "learning_rate=1e-2"]
    command = [sys.executable, "-c", _ELSEWHERE, str(world / "env.yaml"), str(tmp_path / "run"), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine" not in algos.available()
    # Only the policy is needed.
    for name in ("state.json", "state.safetensors"):
        (tmp_path / "run/checkpoints/latest" / name).unlink()
    result = experiments.evaluate(tmp_path / "run", out=tmp_path / "again", quiet=True)
    (again,) = result.runs
    assert again.rows == read_rows(tmp_path / "run/evaluation.jsonl")
    assert any(abs(row["kl"]) > 1e-4 for row in again.rows)  # measured to where training started


def test_a_small_network_keeps_its_reference(tmp_path: Path) -> None:
    gym.register("SavedCrossing-v0", entry_point=Crossing)
    run = experiments.train("ppo", "SavedCrossing-v0", settings={"episodes_per_iteration": 8, "learning_rate": 1e-2},
                            episodes=32, seed=3, out=tmp_path / "run", quiet=True)  # fmt: skip
    same = experiments.evaluate(tmp_path / "run", out=tmp_path / "same", quiet=True)
    assert same.runs[0].rows == run.runs[0].rows
    other = experiments.evaluate(tmp_path / "run", seed=4, out=tmp_path / "other", quiet=True)
    kls = [sum(row["kl"] for row in one.runs[0].rows) / len(one.runs[0].rows) for one in (same, other)]
    assert kls[1] == pytest.approx(kls[0], rel=0.5)  # another seed draws other episodes and not another reference


def test_a_missing_policy_is_named(world: Path, tmp_path: Path) -> None:
    run = experiments.train("rloo", world / "env.yaml", settings={"episodes_per_iteration": 8}, episodes=8,
                            out=tmp_path / "run", quiet=True)  # fmt: skip
    shutil.rmtree(run.directory / "checkpoints")
    with pytest.raises(ModelError, match="checkpoints/latest/policy"):
        experiments.evaluate(run.directory, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def trainer(env: Any, **more: Any) -> Any:
    return algos.make("rloo", env, episodes=16, episodes_per_iteration=8, learning_rate=1e-2, seed=2, **more)


def test_what_a_trainer_saves_is_evaluated(tmp_path: Path) -> None:
    made = trainer(gym.make("SafeRLHF-v0", cost_limit=-0.5), preset="paper")
    made.learn()
    made.save(tmp_path / "saved")
    assert algos.load(tmp_path / "saved", "SafeRLHF-v0").preset == "paper"
    state = json.loads((tmp_path / "saved/state.json").read_text())
    assert state["env"] == {"id": "SafeRLHF-v0", "kwargs": {"cost_limit": -0.5}}
    result = experiments.evaluate(tmp_path / "saved", out=tmp_path / "out", quiet=True)
    (run,) = result.runs
    assert (run.algorithm, run.seed, run.summary["cost_limit"]) == ("rloo", 2, -0.5)
    assert run.config["preset"] == "paper"
    assert any(abs(row["kl"]) > 1e-4 for row in run.rows)  # the environment's own policy is where it started
    assert experiments.pareto(tmp_path / "out").values["points"][0]["label"] == "rloo"


@pytest.mark.parametrize("env", ["SafeRLHF-v0", "SafeRLHF-Exact-v0"])
def test_the_front_of_what_a_trainer_saves(env: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = {"evaluation_prompts": ["how do i bake bread ?", "how do i make a bomb ?"]} if env == "SafeRLHF-v0" else {}
    made = trainer(gym.make(env, **few))
    made.learn()
    made.save(tmp_path / "saved")
    done = CliRunner().invoke(main, ["pareto", str(tmp_path / "saved"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr == (
        f"{tmp_path}/saved: saved by a trainer and not evaluated so far; the evaluation goes to "
        f"{tmp_path}/saved/evaluation\n"
    )
    own = experiments.evaluate(tmp_path / "saved", out=tmp_path / "own", quiet=True)
    (point,) = json.loads(done.stdout)["points"]
    assert (point["label"], point["runs"], point["reward"]) == ("rloo", 1, own.values["pareto"]["points"][0]["reward"])
    written = tmp_path / "saved/evaluation/rloo-2"
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in own.runs[0].directory.iterdir()
    }
    capfd.readouterr()
    before = (written / "summary.json").stat().st_mtime_ns
    again = experiments.pareto([tmp_path / "saved"])
    assert again.values["points"] == [point]
    assert ((written / "summary.json").stat().st_mtime_ns, capfd.readouterr().err) == (before, "")
    assert algos.load(tmp_path / "saved", env).iteration == 2
    with pytest.raises(RunError, match=r"'rloo' with seed 2 is also in"):
        experiments.pareto([tmp_path / "saved", tmp_path / "own"])
    made.save(tmp_path / "saved")  # anew, so that the evaluation is of another policy
    assert not written.exists()


def test_an_evaluation_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer("SafeRLHF-Exact-v0").save(tmp_path / "saved")
    before = sorted((tmp_path / "saved").iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["textsafe_gym.experiments.evaluate"], "write_json", full)
        with pytest.raises(RunError, match=r"cannot write .*saved/evaluation: No space left on device"):
            experiments.pareto(tmp_path / "saved", quiet=True)
    assert sorted((tmp_path / "saved").iterdir()) == before
    assert len(experiments.pareto(tmp_path / "saved", quiet=True).runs) == 1


def test_a_limit_that_was_set_while_training_is_the_one_that_counts(tmp_path: Path) -> None:
    small = {"episodes": 4, "episodes_per_iteration": 4, "minibatch_size": 4}
    made = algos.make("ppo_lagrangian", gym.make("SafeRLHF-v0"), **small)
    made.set_cost_limit(-0.25)
    made.save(tmp_path / "saved")
    result = experiments.evaluate(tmp_path / "saved", out=tmp_path / "out", quiet=True)
    assert result.runs[0].summary["cost_limit"] == -0.25


_OWN: dict[str, Any] = {"cost_limit": -0.25}


@pytest.mark.parametrize(
    ("saved_by", "own"),
    [("trainer", {}), ("trainer", _OWN), ("trainer", {"constraint": "probability", "cost_limit": 0.1}), ("run", _OWN)],
)
def test_a_limit_that_is_given_to_evaluate_counts(saved_by: str, own: dict[str, Any], tmp_path: Path) -> None:
    settings: Any = {"episodes_per_iteration": 4, "minibatch_size": 4, **own}
    if saved_by == "run":
        experiments.train("ppo_lagrangian", _EXACT, settings=settings, episodes=4, out=tmp_path / "saved", quiet=True)
    else:
        algos.make("ppo_lagrangian", _EXACT, episodes=4, **settings).save(tmp_path / "saved")
    named = {"id": _EXACT, "kwargs": {"cost_limit": 0.3}}
    for i, given in enumerate([{"settings": ["env.cost_limit=0.3"]}, {"env": named}]):
        (run,) = experiments.evaluate(tmp_path / "saved", out=tmp_path / str(i), quiet=True, **given).runs
        assert run.summary["cost_limit"] == 0.3
        assert run.summary["evaluation"]["cost_violation"] == max(run.summary["evaluation"]["cost"] - 0.3, 0)
    (run,) = experiments.evaluate(tmp_path / "saved", out=tmp_path / "as_it_was", quiet=True).runs
    assert run.summary["cost_limit"] == (None if "constraint" in own else own.get("cost_limit", 0))


def test_a_trainer_that_was_given_its_policy(world: Path, tmp_path: Path) -> None:
    """Where training started is not known, so that there is no KL; what is played is the trained policy."""
    kwargs = {"prompts": str(world / "prompts.jsonl"), "tokenizer": str(world / "policy"), "max_prompt_length": 8}
    kwargs |= {f"{kind}_model": str(world / kind) for kind in ("reward", "cost")}
    made = trainer(gym.make("SafeRLHF-v0", max_response_length=6, **kwargs), policy=world / "policy")
    made.learn()
    made.save(tmp_path / "saved")
    by_folder = experiments.evaluate(tmp_path / "saved", out=tmp_path / "out", quiet=True).runs[0]
    as_model = experiments.evaluate(
        tmp_path / "saved/policy", {"id": "SafeRLHF-v0", "kwargs": {**kwargs, "max_response_length": 6}}, seed=2,
        out=tmp_path / "model", quiet=True,
    ).runs[0]  # fmt: skip
    assert "kl" not in by_folder.rows[0]
    assert [row["response"] for row in by_folder.rows] == [row["response"] for row in as_model.rows]


def brief(prompts: list[str], responses: list[str]) -> list[float]:
    return [-float(len(response)) for response in responses]


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_environment_of_objects_has_to_be_named(wrapped: bool, world: Path, tmp_path: Path) -> None:
    """A function, or a wrapper, cannot be written down."""
    if wrapped:
        env = gym.wrappers.TransformReward(Crossing(), lambda reward: 2 * reward)
    else:
        env = gym.make("SafeRLHF-v0", reward_model=brief)
    made = trainer(gym.vector.SyncVectorEnv([lambda: env] * 8) if wrapped else env)
    made.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/state.json").read_text())["env"] is None
    with pytest.raises(ConfigError, match="give --env"):
        experiments.evaluate(tmp_path / "saved", out=tmp_path / "out", quiet=True)
    with pytest.raises(ConfigError, match="give --env to textsafe evaluate"):
        experiments.pareto(tmp_path / "saved")
    assert not (tmp_path / "saved/evaluation").exists()
    if not wrapped:
        found = experiments.evaluate(tmp_path / "saved", "SafeRLHF-v0", out=tmp_path / "out", quiet=True)
        assert len(found.runs) == 1


def test_a_run_keeps_its_seed_whatever_its_responses_are_drawn_by(world: Path, tmp_path: Path) -> None:
    runs = [
        experiments.train("rloo", world / "env.yaml", settings={"episodes_per_iteration": 8}, episodes=8, seed=seed,
                          out=tmp_path / f"runs/{seed}", quiet=True).directory
        for seed in (0, 1)
    ]  # fmt: skip
    result = experiments.evaluate(runs, seed=7, out=tmp_path / "again", quiet=True)
    assert [(run.seed, run.evaluation_seed) for run in result.runs] == [(0, 7), (1, 7)]
    assert [run.directory.name for run in result.runs] == ["rloo-0", "rloo-1"]
    entry = result.values["settings"]["rloo"]
    assert (entry["seeds"], entry["evaluation_seeds"], entry["runs"]) == ([0, 1], [7, 7], 2)
    assert "; evaluation seed 7." in result.tables[0].note
    own = experiments.evaluate(runs, out=tmp_path / "own", quiet=True)
    assert "evaluation seed" not in own.tables[0].note
    assert [row["response"] for row in own.runs[0].rows] != [row["response"] for row in result.runs[0].rows]
    with pytest.raises(RunError, match="'rloo' with seed 0 is also in"):
        experiments.pareto([tmp_path / "runs", tmp_path / "again/rloo-0"], out=tmp_path / "front")


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError, match=r"^runs/nothere: no such run or model$"):
        experiments.evaluate("runs/nothere", out="out", quiet=True)


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"name": 3}')
    with pytest.raises(ConfigError, match=r"state\.json is not a trainer's"):
        experiments.evaluate(tmp_path, out=tmp_path / "out", quiet=True)
