"""Kinds of offline data: what each makes of texts, which there are, and one from outside the package."""

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import algos
import textsafe_gym  # noqa: F401 (registers the environments)
from tests.helpers import cli_world
from tests.helpers.commands import done, printed
from tests.helpers.rounding import EXACT_LM
from textsafe_gym import experiments
from textsafe_gym.data import readers
from textsafe_gym.errors import ConfigError, UnknownNameError
from textsafe_gym.evaluation.summaries import budget_of, compare_runs, load_runs, tables_of
from textsafe_gym.files import write_rows
from textsafe_gym.models import make_actor
from textsafe_gym.offline import KINDS
from textsafe_gym.offline.demonstrations import Demonstrations
from textsafe_gym.offline.labelled import Labelled
from textsafe_gym.offline.preferences import Preferences

pytestmark = pytest.mark.usefixtures("one_thread")

HELPERS = Path(__file__).parents[1] / "helpers"
RATED = "rated:Method"


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`helpers/rated.py` as a module of a user's own folder; nothing is known of it before or after."""
    monkeypatch.syspath_prepend(str(HELPERS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    yield
    sys.modules.pop("rated", None)
    if "rated" in KINDS:
        KINDS.remove("rated")


def start() -> tuple[Any, Any]:
    env = gym.make_vec("SafeRLHF-Exact-v0", num_envs=1, vocabulary=5, max_response_length=2, prompts=2, seed=10)
    return env, make_actor(env)


def test_the_files_of_the_folder_are_the_kinds() -> None:
    assert dict(KINDS) == {"demonstrations": Demonstrations, "labelled": Labelled, "preferences": Preferences}
    units = {kind.unit for kind in KINDS.values()}
    assert len(units) == len(KINDS), "two kinds would be one column"


def test_names_and_units_are_known_without_torch() -> None:
    program = "from textsafe_gym.offline import KINDS; print([kind.counted for kind in KINDS.values()])"
    program += "; import sys; assert not {'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['demonstrations', 'labelled responses', 'labelled pairs']"


def test_labelled_responses_in_the_actors_form(caplog: pytest.LogCaptureFixture) -> None:
    _, actor = start()
    rows = [("ab eb", "ib ob", True), ("ab eb ib", "ib", False), ("ab", "ib ob ib", True)]
    data = Labelled.encode([readers.Labelled(*row) for row in rows], actor, 2, 2, actor.reference())
    assert "2 of 3 labelled responses are too long and were cut" in caplog.text
    assert data.actions.tolist() == [[3, 4], [3, 0], [3, 4]]
    assert data.observations["input_ids"][1, :2].tolist() == [2, 3]
    assert data.good.tolist() == [True, False, True]
    said = actor.evaluate(*data.inputs).log_probs.sum(1).detach()
    torch.testing.assert_close(said, data.reference_log_probs, atol=math.sqrt(2) * EXACT_LM, rtol=0)
    part = data[torch.tensor([2, 1])]
    assert (len(part), part.good.tolist(), part.lengths.tolist()) == (2, [True, False], [2, 2])
    assert part.reference_log_probs.tolist() == data.reference_log_probs[[2, 1]].tolist()
    assert part.observations["input_ids"].tolist() == data.observations["input_ids"][[2, 1]].tolist()
    assert (part.actions.tolist(), part.mask.all().item()) == ([[3, 4], [3, 0]], True)


def test_demonstrations_have_their_references_log_probs_where_it_is_asked() -> None:
    _, actor = start()
    rows = [("ab eb", "ib ob"), ("ab", "ib")]
    assert Demonstrations.encode(rows, actor, 2, 2).reference_log_probs is None
    data = Demonstrations.encode(rows, actor, 2, 2, actor.reference())
    said = actor.evaluate(*data.inputs).log_probs.sum(1).detach()
    assert data.reference_log_probs is not None
    torch.testing.assert_close(said, data.reference_log_probs, atol=math.sqrt(2) * EXACT_LM, rtol=0)
    second = data[torch.tensor([1])].reference_log_probs
    assert second is not None
    assert second.tolist() == data.reference_log_probs[1:].tolist()


def test_a_pair_is_two_labelled_responses_of_which_one_is_good() -> None:
    env, _ = start()
    task: Any = env.unwrapped
    rows = Labelled.simulated(task, 4001, 3)
    assert len(rows) == 4001
    assert list(rows) == list(Labelled.simulated(task, 4001, 3)) != list(Labelled.simulated(task, 4001, 4))
    pairs = task.preferences(2001, 3)
    kept = 0
    for pair, first, second in zip(pairs, rows[::2], rows[1::2], strict=False):
        assert (first.prompt, first.response, second.response) == (pair.prompt, pair.better, pair.worse)
        assert first.label != second.label
        kept += first.label
    # Each label is a coin of the pair's own probability: within four standard deviations.
    spread = math.sqrt(sum(pair.probability * (1 - pair.probability) for pair in pairs[:2000]))
    assert abs(kept - sum(pair.probability for pair in pairs[:2000])) < 4 * spread
    with pytest.raises(ConfigError, match="simulates no labelled responses"):
        Labelled.simulated(object(), 2, 0)  # type: ignore[arg-type]


def test_a_kind_of_ones_own_trains_in_python(rated: None) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of data 'rated'; known: demonstrations"):
        KINDS["rated"]
    module = importlib.import_module("rated")
    env, actor = start()
    texts = [("ab", "eb", 1.0), ("ab", "ib", 0.0), ("eb", "ob", 2.0)] * 8
    data = module.Rated.encode(texts, actor, 2, 2, actor.reference())
    before = actor.evaluate(*data.inputs).log_probs.sum(1).detach()
    settings: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 4, "rows_per_iteration": 12, "minibatch_size": 6}
    rows = algos.make(RATED, env, actor, data=data, **settings).learn()
    assert [row["ratings"] for row in rows] == [12] + [24] * 7
    risen = (actor.evaluate(*data.inputs).log_probs.sum(1).detach() - before).tolist()
    assert risen[0] > 0.5
    assert risen[2] > 0.5
    assert risen[1] < risen[0]
    with pytest.raises(ConfigError, match=r"rated:Method learns from rated responses; give data=<Rated>"):
        algos.make(RATED, env, actor, data=Demonstrations(*data.inputs))


def test_a_kind_of_ones_own_trains_from_the_command_line_and_is_counted(rated: None, tmp_path: Path) -> None:
    world = cli_world.build(tmp_path / "world")
    texts = [{"prompt": row["prompt"], "response": "yes first water", "rating": 0.5} for row in cli_world.PROMPTS]
    write_rows(world / "rated.jsonl", texts * 5)
    request = ["--env", str(world / "env.yaml"), "--data", str(world / "rated.jsonl"), "--quiet"]
    request += ["--set", "rows_per_iteration=5"]
    summary = printed("train", RATED, *request, "--out", tmp_path / "run")
    assert (summary["episodes"], summary["pairs"], summary["ratings"]) == (0, 0, 15)
    done("train", RATED, "--out", tmp_path / "run", "--resume", "--quiet")
    settings = {"episodes_per_iteration": 8, "rows_per_iteration": 5}
    found = experiments.compare(
        ["ppo", RATED], world / "env.yaml", episodes=16, data=[world / "rated.jsonl"], settings=settings, seeds=1,
        out=tmp_path / "both", quiet=True,
    )  # fmt: skip
    assert {label: (entry["episodes"], entry["ratings"]) for label, entry in found.values["settings"].items()} == {
        "initial": (0, 0),
        "ppo": (16, 0),
        RATED: (0, 15),
    }
    KINDS.remove("rated")  # who reads the runs later need not know the kind
    comparison = compare_runs(load_runs([tmp_path / "both"]))
    assert budget_of(comparison) == "16 responses or 15 rated responses"
    assert tables_of(comparison)[0].columns[:3] == ["algorithm", "responses", "ratings"]


def test_a_source_that_is_no_kind_is_refused() -> None:
    class Odd:
        source, critics = "ratings", ()

        def update(self) -> None: ...

    with pytest.raises(ConfigError, match="one of 'rollouts', 'demonstrations', 'labelled', 'preferences', and"):
        algos.register("odd", object, Odd)
