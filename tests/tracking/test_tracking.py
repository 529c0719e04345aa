"""What the trackers hold after a run, read back from their own stores."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from tests.helpers import cli_world
from tests.helpers.commands import done, textsafe
from tests.helpers.rounding import FLOAT32
from textsafe_gym.errors import ConfigError, DataError
from textsafe_gym.tracking import OPTIONAL, Background, MLflow, TensorBoard, Tracker, Wandb, check_installed

FAST = ["--set", "episodes_per_iteration=8", "--set", "learning_rate=0.003"]
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library's store in a folder of the test's own, and nobody logged in anywhere."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = sys.modules.get("trackio.sqlite_storage")  # it reads the variable when it is imported
    if trackio is not None:
        monkeypatch.setattr(trackio, "TRACKIO_DIR", tmp_path / "trackio")


def metrics(directory: Path) -> Points:
    """What the run's own files say, in the form that the trackers' stores are read into."""
    points: Points = {}
    for row in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()):
        for key, value in row.items():
            if value is not None:
                points.setdefault(key, []).append((row["episodes"], value))
    evaluation = json.loads((directory / "summary.json").read_text())["evaluation"]
    points["evaluation/cost"] = [(points["episodes"][-1][0], evaluation["cost"])]
    return points


def in_tensorboard(directory: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: a LevelDB log of protocol buffers behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, records, parts, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little of a block for a header is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def in_wandb(directory: Path) -> Points:
    (place,) = (directory / "wandb").glob("offline-run-*")
    points: Points = {}
    # W&B's own process closes the file some time after `finish` has returned.
    deadline = time.monotonic() + 30
    while not any(record.HasField("exit") for record in wandb_records(next(place.glob("*.wandb")))):
        assert time.monotonic() < deadline, "the file has no end"
        time.sleep(0.1)
    for record in wandb_records(next(place.glob("*.wandb"))):
        for item in record.history.item:
            key = item.key or item.nested_key[0]
            if record.history.step.num >= 0 and not key.startswith("_"):
                points.setdefault(key, []).append((record.history.step.num, json.loads(item.value_json)))
    return points


def in_mlflow(directory: Path) -> Points:
    from mlflow import MlflowClient

    client, run_id = MlflowClient(), json.loads((directory / "trackers.json").read_text())["mlflow"]
    keys = client.get_run(run_id).data.metrics
    return {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys}


def in_trackio(directory: Path, project: str = "textsafe-gym") -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for row in SQLiteStorage.get_logs(project, json.loads((directory / "trackers.json").read_text())["trackio"]):
        for key in row.keys() - {"step", "timestamp"}:
            points.setdefault(key, []).append((row["step"], row[key]))
    return points


READ = {"wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


def assert_same(found: Points, wanted: Points, but: str = "no such key") -> None:
    assert wanted.keys() <= found.keys()
    for key, points in wanted.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        if but not in key:
            assert [x for _, x in found[key]] == pytest.approx([x for _, x in points], rel=FLOAT32), key


@pytest.mark.parametrize("tracker", OPTIONAL)
def test_a_tracker_holds_every_row_once_and_the_evaluation(tracker: str, world: Path, tmp_path: Path):
    out = tmp_path / "run"
    options = ["--env", world / "env.yaml", *FAST, "--episodes", 24, "--seed", 3]
    plain = done("train", "ppo", *options, "--out", tmp_path / "plain")
    result = done("train", "ppo", *options, "--out", out, "--track", tracker)
    # The libraries are silent.
    assert result.stderr.count("\n") == plain.stderr.count("\n")
    assert result.stdout.count("\n") == plain.stdout.count("\n")
    wanted = metrics(out)
    assert [step for step, _ in wanted["reward"]] == [8, 16, 24]
    assert_same(READ[tracker](out), wanted)
    assert_same(in_tensorboard(out), wanted)
    assert (tmp_path / "plain/evaluation.jsonl").read_bytes() == (out / "evaluation.jsonl").read_bytes()
    assert (tmp_path / "plain/config.yaml").read_bytes() == (out / "config.yaml").read_bytes()


def test_tensorboard_knows_the_settings(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracker = TensorBoard(tmp_path, config={"algorithm": "ppo", "config": {"seed": 3, "limits": None}})
    tracker.finish()
    content = EventAccumulator(str(tmp_path)).Reload().PluginTagToContent("hparams")
    hparams = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert hparams["algorithm"].string_value == "ppo"
    assert hparams["config.seed"].number_value == 3
    assert hparams["config.limits"].string_value == "None"


@pytest.mark.long
@pytest.mark.parametrize("tracker", OPTIONAL)
def test_a_killed_run_is_continued_under_its_id_and_doubles_nothing(tracker: str, world: Path, tmp_path: Path):
    out = tmp_path / "run"
    options = ["--env", world / "env.yaml", *FAST, "--episodes", 8 * 40, "--out", out]
    cli_world.killed_at(14, "train", "ppo", *options, "--track", tracker, once_there=out / "trackers.json")
    assert not (out / "summary.json").exists()
    before = json.loads((out / "trackers.json").read_text())
    done("train", "ppo", "--out", out, "--resume", "--track", tracker)
    assert json.loads((out / "trackers.json").read_text()) == before
    wanted = metrics(out)
    assert [step for step, _ in wanted["reward"]] == list(range(8, 328, 8))
    assert_same(in_tensorboard(out), wanted)
    # An MLflow or trackio run keeps what it was given first, whose times are others but whose results are the same.
    assert_same(READ[tracker](out), wanted, but="second")


@pytest.mark.long
def test_a_comparison_is_one_experiment_of_groups(world: Path, tmp_path: Path):
    from mlflow import MlflowClient

    options = ["--env", world / "env.yaml", *FAST, "--episodes", 16, "--seeds", 1, "--workers", 2]
    done("compare", "ppo", *options, "--out", tmp_path / "both", "--track", "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("both")
    runs = client.search_runs([experiment.experiment_id])
    named = sorted((run.data.tags["group"], run.info.run_name) for run in runs)
    assert named == [("initial", "initial seed 0"), ("ppo", "ppo seed 0")]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["algorithm"] for run in runs} == {"initial", "ppo"}
    directory = tmp_path / "both/ppo/seed_0"
    assert_same(in_mlflow(directory), metrics(directory))
    assert_same(in_tensorboard(directory), metrics(directory))


def test_a_tracker_that_is_not_installed_is_refused_at_once(world: Path, tmp_path: Path):
    blocked = (
        "import importlib.util as u; found = u.find_spec; u.find_spec = lambda n: None if n == 'trackio' else found(n);"
    )
    call = "from textsafe_gym.cli.main import main; main()"
    options = ["train", "ppo", "--env", world / "env.yaml", "--out", tmp_path / "run", "--track", "trackio"]
    result = subprocess.run(
        [sys.executable, "-c", blocked + call, *map(str, options)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert 'pip install "textsafe-gym[trackio]"' in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert textsafe("train", "ppo", "--track", "tensorflow", "--out", tmp_path / "run").exit_code == 2


def test_a_tracker_that_fails_costs_a_line(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/no.db")
    options = ["--env", world / "env.yaml", *FAST, "--episodes", 16]
    result = done("train", "ppo", *options, "--out", tmp_path / "run", "--track", "mlflow")
    assert "warning: tracking by mlflow has stopped: " in result.stderr
    assert len(in_tensorboard(tmp_path / "run")["reward"]) == 2


def test_a_server_that_never_answers_leaves_a_run_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("textsafe_gym.tracking.wandb._REACH", 1)
        tracker = Wandb(tmp_path, name="mine")
        tracker.log({"episodes": 8, "reward": 0.5, "cost": None})
        tracker.finish()
    assert "kept on disk for `wandb sync`" in caplog.text
    assert in_wandb(tmp_path) == {"episodes": [(8, 8.0)], "reward": [(8, 0.5)]}


@pytest.mark.parametrize(
    ("host", "entries", "key"),
    [
        ("https://wandb.example", "machine api.wandb.ai login user password public", None),
        ("https://wandb.example", "default login user password anything", None),
        ("https://wandb.example", "machine wandb.example login user password own", "own"),
        (None, "machine api.wandb.ai login user password public", "public"),
        (None, "machine wandb.example login user password own", None),
    ],
)
def test_a_key_goes_to_its_own_server_alone(
    host: str | None, entries: str, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server as `wandb login --host` notes it, the keys as it stores them; no server is asked."""
    home = tmp_path / "home"
    (home / ".config/wandb").mkdir(parents=True)
    if host is not None:
        (home / ".config/wandb/settings").write_text(f"[default]\nbase_url = {host}\n")
    (home / ".netrc").write_text(entries + "\n")
    monkeypatch.delenv("NETRC", raising=False)
    program = (
        "import os, sys\nfrom textsafe_gym.tracking import wandb as own\nfound = []\n"
        "class Made(Exception): pass\n"
        "def init(self, wandb, mode):\n    found.append(mode)\n    raise Made\n"
        "own.Wandb._init = init\n"
        "try:\n    own.Wandb(sys.argv[1])\nexcept Made:\n    print(found[0], os.environ.get('WANDB_API_KEY'))\n"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (asked.stdout, asked.stderr) == (f"{'online' if key else 'offline'} {key}\n", "")


def test_an_evaluation_behind_the_last_step_is_kept(tmp_path: Path):
    tracker = Wandb(tmp_path)
    tracker.log({"episodes": 24, "reward": 0.5})
    tracker._run.log({"other": 1.0}, step=25)  # a server that holds all rows has the continued run begin here
    tracker.finish({"cost": -1.0})
    assert in_wandb(tmp_path)["evaluation/cost"] == [(25, -1.0)]


def test_mlflow_takes_whatever_a_group_is_called(tmp_path: Path):
    groups = {name: {"cost": 1.0} for name in ("hate_speech,offensive_language", "Größe (x)", "a/../../b", "./", "")}
    tracker = MLflow(tmp_path / "run", config={"env": {"a, b": "é" * 9999}})
    tracker.log({"episodes": 8, "reward": 0.5})
    tracker.finish({"groups": groups})
    found = in_mlflow(tmp_path / "run")
    assert found["evaluation/groups/hate_speech-offensive_language/cost"] == [(8, 1.0)]
    assert found["evaluation/groups/Größe -x-/cost"] == [(8, 1.0)]
    assert found["evaluation/b/cost"] == [(8, 1.0)]  # as a file's name would be read
    assert found["evaluation/groups/cost"]


def test_a_run_is_ended_where_its_evaluation_is_refused(tmp_path: Path):
    from mlflow import MlflowClient

    tracker = MLflow(tmp_path / "run")
    tracker._write = lambda values, step: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        tracker.finish({"cost": 1.0})
    assert MlflowClient().get_run(tracker.remembered()).info.status == "FINISHED"


def test_the_lock_of_mlflow_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link that another user has put where the lock is made, in a folder that all may write to."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / f"textsafe-mlflow-{os.getuid()}.lock").symlink_to(tmp_path / "mine")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="lock"):
        MLflow(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "precious"


def test_damaged_ids_are_named(tmp_path: Path):
    for text in ("{", "3", "[1]"):
        (tmp_path / "trackers.json").write_text(text)
        with pytest.raises(DataError, match=r"trackers\.json:.* begins anew in its trackers$"):
            TensorBoard(tmp_path).remembered()


def test_greetings_are_dropped_and_results_are_not(capsys: pytest.CaptureFixture[str]):
    from textsafe_gym.tracking.trackio import _silent

    inside, printed = threading.Event(), threading.Event()

    def greet() -> None:
        with _silent():
            print("* greeting")
            inside.set()
            printed.wait(10)

    thread = threading.Thread(target=greet)
    thread.start()
    assert inside.wait(10)
    print("result")
    click.echo("another")
    printed.set()
    thread.join()
    print("last")
    assert capsys.readouterr().out == "result\nanother\nlast\n"


def test_a_folder_of_a_trackers_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "nowandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_spec("nowandb") is not None
    with pytest.raises(ConfigError, match="nowandb is not installed"):
        check_installed("nowandb")


def full(bytes_: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command whose files cannot grow beyond a size, which fails as a full disk does."""
    program = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}))\n"
        "from textsafe_gym.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_full_disk_ends_the_run_in_a_line_that_names_the_file(world: Path, tmp_path: Path):
    train = ["train", "ppo", "--env", world / "env.yaml", *FAST, "--episodes", 80, "--out"]
    result = full(100, *train, tmp_path / "a")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"File too large: '{tmp_path}/a/config.yaml'" in result.stderr
    assert not any((tmp_path / "a").iterdir())  # no half of a file
    result = full(2000, *train, tmp_path / "b")
    warning, failure = result.stderr.splitlines()
    assert result.returncode == 1
    assert warning.startswith("warning: TensorBoard has stopped: OSError")
    assert f"File too large: '{tmp_path}/b/metrics.jsonl'" in failure
    assert ("error.log" in failure) == (tmp_path / "b/error.log").exists()


class Stuck(Tracker):
    package = "stuck"
    open = threading.Event()

    def _open(self) -> None:
        self.open.wait()

    def _write(self, values: dict[str, float], step: int) -> None: ...

    def _close(self, complete: bool) -> None: ...


@pytest.mark.parametrize(("name", "complete"), [("_PATIENCE", True), ("_HURRY", False)])
def test_a_tracker_that_hangs_is_left_behind(
    name: str, complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    Stuck.open.clear()
    monkeypatch.setattr(f"textsafe_gym.tracking.background.{name}", 0.2)
    tracker = Background("stuck", lambda: Stuck(tmp_path))
    begun = time.monotonic()
    tracker.log({"episodes": 8, "reward": 0.5})
    tracker.finish(complete=complete)
    assert time.monotonic() - begun < 5
    assert "is left behind" in caplog.text
    Stuck.open.set()


def test_in_code_a_tracker_is_a_callback(tmp_path: Path):
    import algos

    trainer = algos.make("ppo", "SafeRLHF-Exact-v0", episodes=24, episodes_per_iteration=8, seed=0)
    tracker = TensorBoard(tmp_path, config=trainer.config.model_dump())
    rows = trainer.learn(on_iteration=tracker.log)
    tracker.finish({"cost": -1.0, "groups": {"harmful": {"cost": 0.5}}})
    found = in_tensorboard(tmp_path)
    assert_same(found, {"reward": [(int(row["episodes"]), row["reward"]) for row in rows]})
    assert found["evaluation/groups/harmful/cost"] == [(24, 0.5)]
