"""What a person expects of any command: completion, hints, one-line faults, colours, quiet, JSON, and no noise."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from pydantic import TypeAdapter

import algos
from tests.helpers.commands import textsafe
from tests.helpers.speed import python, times_as_long
from textsafe_gym.cli.main import COMMANDS, main
from textsafe_gym.cli.values import algorithm_choices, algorithm_keys, algorithm_names, env_keys
from textsafe_gym.files import write_rows

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "textsafe_gym.cli.main"]
SMALL = ["--set", "episodes_per_iteration=8", "--episodes", "16"]


def complete(words: str, position: int) -> list[str]:
    """What the protocol of click's shell scripts answers, without the kinds."""
    variables = {"_TEXTSAFE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    done = subprocess.run(PROGRAM, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


# Completion.


@pytest.mark.parametrize(
    ("words", "position", "some", "none"),
    [
        ("textsafe ", 1, ["plain,train", "plain,doctor", "plain,completion"], ["plain,ppo"]),
        ("textsafe train pp", 2, ["plain,ppo", "plain,ppo_lagrangian"], ["plain,cpo"]),
        ("textsafe compare ppo c", 3, ["plain,cpo", "plain,crpo"], ["plain,ppo"]),
        ("textsafe algos rl", 2, ["plain,rloo", "plain,rloo_lagrangian"], []),
        ("textsafe train ppo --set clip", 4, ["plain,clip_range_ratio="], ["plain,multiplier_init=", "plain,env."]),
        ("textsafe train ppo_lagrangian --set mult", 4, ["plain,multiplier_init="], []),
        (
            "textsafe train ppo --set env.c",
            4,
            ["plain,env.cost_limit=", "plain,env.cost_model="],
            ["plain,env.prompts="],
        ),
        ("textsafe train ppo --env SafeRLHF-Exact-v0 --set env.k", 6, ["plain,env.kl_coefficient="], []),
        ("textsafe train ppo --set policy.lo", 4, ["plain,policy.lora_rank="], []),
        (
            "textsafe compare ppo cpo --set ",
            5,
            ["plain,ppo.", "plain,cpo.", "plain,env.", "plain,epochs="],
            ["plain,ipo."],
        ),
        ("textsafe compare ppo --vary ppo.env.cost_l", 4, ["plain,ppo.env.cost_limit="], []),
        (
            "textsafe train ppo_lagrangian --set constraint=",
            4,
            ["plain,constraint=mean", "plain,constraint=cvar"],
            ["plain,constraint="],
        ),
        ("textsafe train cppo_pid --set multiplier_update=", 4, ["plain,multiplier_update=pid"], []),
        ("textsafe train ppo --set policy.dtype=b", 4, ["plain,policy.dtype=bfloat16"], ["plain,policy.dtype=float32"]),
        ("textsafe evaluate runs --set policy.compile=", 4, ["plain,policy.compile=true"], []),
        ("textsafe compare ppo --set ppo.policy.critics=s", 4, ["plain,ppo.policy.critics=separate"], []),
        ("textsafe compare cpo --vary cpo.constraint=", 4, ["plain,cpo.constraint=probability"], []),
        ("textsafe train ppo --set epochs=", 4, [], ["plain,epochs=", "plain,epochs=true"]),
        ("textsafe evaluate runs --set ", 4, ["plain,env.", "plain,policy."], ["plain,epochs="]),
        ("textsafe train ppo --env ", 4, ["plain,SafeRLHF-v0", "plain,SafeRLHF-Exact-v0", "plain,embedded_world"], []),
        ("textsafe train ppo --env min", 4, ["file,min"], []),
        ("textsafe train ppo --config rou", 4, ["plain,round1", "plain,round3"], []),
        ("textsafe train ppo --deepspeed zero", 4, ["plain,zero1", "plain,zero3_stream"], []),
        ("textsafe study ", 2, ["plain,exact"], []),
        ("textsafe evaluate runs/", 2, ["dir,runs/"], []),
        ("textsafe fit ", 2, ["plain,sft", "plain,reward", "plain,cost"], []),
        ("textsafe embedded-world sh", 2, ["plain,show"], []),
        ("textsafe train --epi", 2, ["plain,--episodes"], []),
    ],
)
def test_completion(words: str, position: int, some: list[str], none: list[str]) -> None:
    offered = complete(words, position)
    assert set(some) <= set(offered)
    assert not set(none) & set(offered)


@pytest.mark.parametrize("name", algos.available())
def test_values_read_from_the_source_are_those_that_the_class_takes(name: str) -> None:
    from textsafe_gym.experiments.spec import config_class

    fields = config_class(name).model_fields
    known = algorithm_choices(name)
    for key, field in fields.items():
        if key in known:
            for text in known[key]:
                TypeAdapter(field.annotation).validate_python(yaml.safe_load(text))
        assert (key in known) == bool(re.search(r"Literal|bool|OneOf", f"{field.annotation}{field.metadata}")), key


@pytest.mark.parametrize("name", algos.available())
def test_keys_read_from_the_source_are_those_of_the_class(name: str) -> None:
    from textsafe_gym.experiments.spec import config_class

    fields = config_class(name).model_fields
    assert algorithm_keys(name) == {key: field.description or "" for key, field in fields.items()}


def test_keys_of_the_environments_are_what_they_take() -> None:
    import inspect

    from textsafe_gym.envs.exact import ExactEnv
    from textsafe_gym.envs.task import Task

    assert set(inspect.signature(Task).parameters) <= set(env_keys(None)) == set(env_keys("mine.yaml"))
    assert set(inspect.signature(ExactEnv).parameters) <= set(env_keys("SafeRLHF-Exact-v0"))
    assert "prompt_truncation" not in env_keys("SafeRLHF-Exact-v0")
    assert env_keys("CartPole-v1") == []


@pytest.mark.timing
def test_completion_is_fast() -> None:
    """It took 1.9 times as long as the imports that no command does without, half a second in all."""
    completion = times_as_long(
        lambda: complete("textsafe compare ppo cpo --set ppo.policy.", 5), python("import click, gymnasium")
    )
    assert completion < 2.25


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_printed_with_how_to_install_them(shell: str) -> None:
    script = textsafe("completion", shell).stdout
    assert f"_TEXTSAFE_COMPLETE={shell}_complete" in script
    assert f"textsafe completion {shell}" in textsafe("completion", "--help").stdout


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**kept, "TERM": "xterm-256color", "COLUMNS": "100", **variables})

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read(self, until: str = "", seconds: float = 20.0) -> str:
        """All that it prints until a text comes, or to its end."""
        said, limit = b"", time.monotonic() + seconds
        while time.monotonic() < limit and not (until and until in said.decode(errors="replace")):
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    said += os.read(self.fd, 65536)
                except OSError:  # the other end is closed
                    os.waitpid(self.pid, 0)
                    break
        return said.decode(errors="replace")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_keys_up_to_the_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "textsafe").write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    (tmp_path / "textsafe").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    shell = Terminal(["bash", "--norc", "-i"], PATH=path, PS1="READY ", TERM="dumb", COLUMNS="300")
    shell.read("READY ")
    shell.type(
        'bind \'set horizontal-scroll-mode off\'; stty cols 300; eval "$(textsafe completion bash)"; echo DO""NE\n'
    )
    shell.read("DONE")
    shell.type("textsafe trai\t")
    shell.read("train ")
    shell.type("ppo_l\t")
    shell.read("ppo_lagrangian ")
    shell.type("--set env.cost_lim\t")
    assert "env.cost_limit=" in shell.read("limit=")
    shell.type("0 --set kl\t")  # the `=` and the `:` above are where bash parts words
    said = shell.read("kl_coefficient=")
    assert "0 --set kl_coefficient=" in said
    shell.type("0 --set policy.dtype=\tbf\t")
    said = shell.read("bfloat16 ").replace("\a", "")
    assert "--set policy.dtype=bfloat16 " in said
    shell.type("--set=policy.crit\th\t")
    assert "--set=policy.critics=heads " in shell.read("heads ").replace("\a", "")
    shell.end()


# Hints.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "ppo", "--episods", "3"], "'--episodes'"),
        (["embedded-world", "shwo"], "'show'"),
        (["train", "ppo", "--set", "lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["train", "ppo", "--set", "polcy.temperature=1"], "(--set polcy.temperature=1); did you mean 'policy'?"),
        (["train", "ppo", "--set", "enve.cost_limit=1"], "did you mean 'env'?"),
        (["train", "ppo", "--set", "policy.temprature=1"], "did you mean 'temperature'?"),
        (["train", "ppo", "--set", "env.cost_limt=1"], "(--set env.cost_limt=1); did you mean 'cost_limit'?"),
        (["train", "ppo", "--env", "SafeRLHF-Exact-v0", "--set", "env.kl_coef=1"], "did you mean 'kl_coefficient'?"),
        (["train", "ppo", "--env", "CartPole-v1", "--set", "env.sutton_barto_rewad=1"], "'sutton_barto_reward'?"),
        (["train", "ppo", "--env", "embeded_world"], "did you mean 'embedded_world'?"),
        (["train", "ppo", "--config", "raund1"], "did you mean 'round1'?"),
        (["train", "ppo", "--deepspeed", "zerro1"], "did you mean 'zero1'?"),
        (["train", "ppo_lagrangian", "--set", "lr=3e-4"], "did you mean 'learning_rate'?"),
        (
            ["compare", "ppo", "cpo", "--set", "multiplier_init=2", "--set", "learning_rate=x"],
            "error: unknown key 'multiplier_init' (--set multiplier_init=2): none of ppo, cpo has it; the nearest are ",
        ),
        (
            ["compare", "ppo", "cpo", "--set", "multiplier_init=2", "--set", "learning_rate=x"],
            "; ppo: learning_rate = ",
        ),
        (["compare", "ppo", "--set", "pppo.epochs=2"], "did you mean 'ppo'?"),
        (["compare", "ppo", "--set", "cpo.epochs=2"], "'cpo' is not compared"),
        (["compare", "ppo", "--set", "ppo.epoch=2"], "did you mean 'epochs'?"),
        (["compare", "ppo", "--vary", "pppo.epochs=1,2"], "did you mean 'ppo'?"),
        (["compare", "ppo", "--vary", "ppo.env.cost_limt=1,2"], "did you mean 'cost_limit'?"),
        (["study", "exakt"], "did you mean 'exact'?"),
        (["evaluate", "runs/x", "--set", "plicy.temperature=1"], "did you mean 'policy'?"),
    ],
)
def test_the_nearest_name_is_offered(arguments: list[str], expected: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = textsafe(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert not any(tmp_path.iterdir())


# Files.


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("--config", "epochs: many\nenv: 3\n", ["f:1", "epochs = 'many'", "f:2: 'env' is a section of keys"]),
        ("--config", "a: 1\nb: 2\na: 3\nb: 4\n", ["f:3: the key 'a' stands twice", "f:4: the key 'b' stands twice"]),
        ("--config", "epochs: 1\n\tseed: 2\n", ["f:2: not valid YAML: a tab"]),
        ("--config", "- 1\n", ["f:1: expected keys and values, found list"]),
        ("--config", "a\0b", ["f: not a text file"]),
        ("--config", "? [a]\n: 1\n", ["f:1: the key of type sequence is not a string"]),
        (
            "--env",
            "id: SafeRLHF-v0\nkwargs:\n  cost_limt: 1\n  promts: x\npolicy:\n  temprature: 3\n",
            ["'cost_limt' (f:3); did you mean 'cost_limit'?", "'promts' (f:4)", "'temprature' (f:6)"],
        ),
        ("--env", "kwargs: 3\npolicy: {}\n", ["kwargs = 3 (f:1)"]),
        ("study", "", ["'env' is missing", "'seeds' is missing"]),
        (
            "study",
            "env: {}\nseeds: x\nbudgets: {}\nsettings: {}\nalgorithms:\n  cpo: {setings: {}}\n",
            ["seeds = 'x' (f:2)", "budgets = {} (f:3)", "'algorithms.cpo.setings' (f:6); did you mean 'settings'?"],
        ),
        ("--deepspeed", '{\n"zero_optimization": {"stage": 2},\n}', ["f:3: not valid JSON"]),
        ("--deepspeed", '{"a": 1,\n"a": 2}', ["f:2: the key 'a' stands twice"]),
        ("--deepspeed", "[1]", ["f:1: expected an object, found list"]),
        ("--deepspeed", '{"zero_optimisation": {"stage": 2}}', ["f:1", "did you mean 'zero_optimization'?"]),
        (
            "--deepspeed",
            '{\n\t"zero_optimization": {"stage": 2,\n\t "offload_optimizer": {"devise": "cpu"},\n"overlap_comm": 7},\n'
            '"gradient_clipping": 1\n}',
            ["overlap_comm = 7 (f:4)", "(f:3); did you mean 'device'?", "f:5: 'gradient_clipping' is set by textsafe"],
        ),
    ],
)
def test_faults_in_files_are_told_at_once_by_line(
    option: str, text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "f.json" if option == "--deepspeed" else "f.yaml"
    Path(name).write_text(text)
    result = textsafe("study", name) if option == "study" else textsafe("train", "ppo", option, name)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for part in expected:
        assert part.replace("f:", f"{name}:") in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_shipped_configuration_goes_by_its_name() -> None:
    from textsafe_gym.experiments.spec import build_spec

    options = {"env": None, "assignments": [], "episodes": None, "seed": None}
    by_name = build_spec("ppo_lagrangian", config="round1", **options)
    assert by_name == build_spec("ppo_lagrangian", config=str(ROOT / "configs/paper/round1.yaml"), **options)
    assert by_name.config["warmup_ratio"] == 0.03


# Help.


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def examples(command: click.Command) -> list[list[str]]:
    """The arguments of every example of `textsafe` in a command's help."""
    text = re.sub(r"\\?\n {3,}", " ", command.epilog or "")
    lines = [line.strip() for line in text.splitlines()[1:] if "Example" not in line and line.strip()]
    found = [re.search(r"(?:^|\| |-m )textsafe(?:_gym\.cli\.main)? (.*)$", line) for line in lines]
    assert all(found), lines
    return [shlex.split(match[1]) for match in found if match]


ALL = dict(commands(main))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_examples_that_parse(path: tuple[str, ...]) -> None:
    given = examples(ALL[path])
    assert any(tuple(arguments[: len(path)]) == path for arguments in given)
    for arguments in given:
        assert not any(argument.startswith("configs/") for argument in arguments)  # which lie where the package does
        command: click.Command = main
        context: click.Context | None = None
        while isinstance(command, click.Group):
            context = command.make_context("textsafe", list(arguments), parent=context)
            name, inner, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
            assert inner is not None
            command = inner
        context = command.make_context(name, list(arguments), parent=context)
        chosen = context.params.get("algorithms") or [context.params.get("algorithm") or "ppo"]
        assert {name for name in chosen if not name.startswith("my_package:")} <= set(algorithm_names())


def test_keys_of_omnisafes_are_those_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["algos", "omnisafe:CPO", "--json"])
    listed = {row["key"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert algorithm_keys("omnisafe:CPO") == listed
    assert listed["algo_cfgs.cg_iters"] == "Number of conjugate gradient iterations"
    assert all(listed.values())


def test_no_arguments_show_help_and_the_version_is_told() -> None:
    for arguments in ([], ["embedded-world"]):
        result = textsafe(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == textsafe(*arguments, "--help").stdout
    assert re.fullmatch(r"textsafe, version \d+\.\d+\.\d+\n", textsafe("--version").stdout)
    assert set(COMMANDS) <= {path[0] for path in ALL if path}


# Colours.

COLOUR = re.compile(r"\x1b\[[\d;]*m")
SHOW = [*PROGRAM, "embedded-world", "show"]


def test_colours_are_for_terminals() -> None:
    assert "\x1b[36m" in Terminal(SHOW).read()  # cyan
    plain = Terminal(SHOW, NO_COLOR="1").read()
    assert "helpfulness" in plain
    assert not {"31", "32", "36"} & {code for found in COLOUR.findall(plain) for code in found[2:-1].split(";")}
    assert not COLOUR.search(Terminal(SHOW, TERM="dumb").read())
    piped = subprocess.run(SHOW, capture_output=True, text=True, check=True)
    assert not COLOUR.search(piped.stdout)
    forced = subprocess.run(SHOW, capture_output=True, text=True, check=True, env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b[36m" in forced.stdout


@pytest.mark.long
def test_bars_are_for_terminals(world: Path, tmp_path: Path) -> None:
    train = [*PROGRAM, "train", "ppo", "--env", str(world / "env.yaml"), *SMALL, "--out"]
    assert "\x1b[2K" in Terminal([*train, str(tmp_path / "bars")]).read(seconds=60)
    dumb = Terminal([*train, str(tmp_path / "dumb")], TERM="dumb").read(seconds=60)
    assert "\x1b" not in dumb
    assert "The run and its policy are in" in dumb


# Quiet, JSON, noise.


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    out = world / "run"
    result = textsafe("train", "ppo", "--env", world / "env.yaml", *SMALL, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_quiet_stands_before_or_after_the_command(run: Path, tmp_path: Path) -> None:
    for number, arguments in enumerate([["-q", "evaluate", run], ["evaluate", run, "--quiet"]]):
        result = textsafe(*arguments, "--out", tmp_path / str(number))
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
        assert (tmp_path / str(number) / "ppo-0/evaluation.jsonl").exists()
    result = textsafe("-q", "evaluate", tmp_path / "none")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "ppo" in textsafe("-q", "algos").stdout  # a list is what was asked for


IN_TURN = """
import json, sys
from textsafe_gym.cli.main import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code, arguments
    print("\\f", flush=True)
"""


def in_turn(*requests: list[object], text: str = "") -> tuple[list[str], str]:
    """What several commands say, one after another in a process of their own: stdout of each, and stderr."""
    requested = json.dumps([[str(argument) for argument in arguments] for arguments in requests])
    done = subprocess.run([sys.executable, "-c", IN_TURN, requested], capture_output=True, text=True, input=text)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\f\n")[:-1], done.stderr


def test_commands_print_one_document_and_libraries_nothing(run: Path, world: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "mpl"))  # without its cache of fonts
    write_rows(
        tmp_path / "data.jsonl", [{"prompt": f"how do i bake {i} ?", "response": "mix it well ."} for i in range(24)]
    )
    (tmp_path / "study.yaml").write_text(
        "env: {id: SafeRLHF-Exact-v0, kwargs: {kl_coefficient: 0.2}}\nseeds: 1\nlimits: [0.0]\n"
        "settings: {episodes: 32, episodes_per_iteration: 16}\n"
        "algorithms: {rloo_lagrangian: {}}\n"
    )
    env = ["--env", world / "env.yaml"]
    sizes = ["--batch", 4, "--hidden", 16, "--layers", 1, "--mlp", 16, "--vocab", 64, "--response-length", 4]
    said, noise = in_turn(
        ["-q", "fit", "sft", "--data", tmp_path / "data.jsonl", "--epochs", 1, "--out", tmp_path / "sft", "--json"],
        ["compare", "ppo", *env, *SMALL, "--seeds", 1, "--out", tmp_path / "compare", "--json", "-q"],
        ["pareto", run, "--out", tmp_path, "--json", "-q"],
        ["bench", "rollout", *sizes, "--repeats", 1, "--json", "-q"],
        ["study", tmp_path / "study.yaml", "--out", tmp_path / "study", "--json", "-q"],
        ["chat", run, "--json"],
        ["train", "ppo", *env, *SMALL, "--set", "env.cost_limit=5", "--out", tmp_path / "quiet", "-q"],
        text="make tea\nbake bread\n",
    )
    assert noise == ""
    *documents, answers, nothing = said
    first_keys = [next(iter(json.loads(text))) for text in documents]
    assert first_keys == ["kind", "directory", "directory", "job", "directory"]
    assert [json.loads(line)["prompt"] for line in answers.splitlines()] == ["make tea", "bake bread"]
    assert nothing == ""


@pytest.mark.long
def test_json_leaves_warnings_and_progress_on_stderr(world: Path, tmp_path: Path) -> None:
    train = ["train", "ppo_lagrangian", "--env", world / "env.yaml", *SMALL, "--set", "env.cost_limit=5", "--json"]
    said, noise = in_turn([*train, "--out", tmp_path / "out"])
    assert json.loads(said[0])["algorithm"] == "ppo_lagrangian"
    warning, progress = noise.splitlines()
    assert warning.startswith("warning: the cost limit 5 is slack")
    assert progress.startswith("[1/1, ")


def test_the_library_is_silent(tmp_path: Path) -> None:
    program = """
import sys
import gymnasium as gym
import textsafe_gym
import algos

for name in ("SafeRLHF-v0", "SafeRLHF-Exact-v0"):
    env = gym.make(name)
    env.reset(seed=0)
    env.step(3)
    env.close()
envs = gym.make_vec("SafeRLHF-v0", num_envs=2)
envs.reset(seed=0)
envs.close()
trainer = algos.make("ppo_lagrangian", "SafeRLHF-v0", episodes=8, episodes_per_iteration=8)
trainer.learn()
trainer.save(sys.argv[1])
algos.load(sys.argv[1], "SafeRLHF-v0")
"""
    command = [sys.executable, "-W", "default", "-c", program, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "the cost limit" not in line]
    assert (done.stdout, lines) == ("", [])
