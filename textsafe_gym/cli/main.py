"""The command `textsafe`: finds subcommands, and turns every failure into one line and an exit code.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
"""

import logging
import os
import shlex
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from textsafe_gym.cli.options import quiet_option
from textsafe_gym.cli.terminal import is_quiet
from textsafe_gym.console import quiet_libraries
from textsafe_gym.errors import ConfigError, ExecutionError, RunInterrupted, TextsafeError
from textsafe_gym.extras import version
from textsafe_gym.installation import working_directory_importable
from textsafe_gym.registry import Lazy, Registry, nearest

# A module is imported when its command runs, so that --help stays fast.
COMMANDS: Registry[click.Command] = Registry(
    "command",
    [
        ("envs", Lazy("textsafe_gym.cli.envs:envs"), "List the environments and the shipped configurations of them."),
        ("algos", Lazy("textsafe_gym.cli.algos:algos"), "List the algorithms, or the settings of one."),
        ("train", Lazy("textsafe_gym.cli.train:train"), "Train a policy with one algorithm."),
        (
            "compare",
            Lazy("textsafe_gym.cli.compare:compare"),
            "Train several algorithms over several seeds and report.",
        ),
        (
            "study",
            Lazy("textsafe_gym.cli.study:study"),
            "Hold the algorithms to a known optimum, over limits and seeds.",
        ),
        ("evaluate", Lazy("textsafe_gym.cli.evaluate:evaluate"), "Evaluate saved policies."),
        ("frontier", Lazy("textsafe_gym.cli.frontier:frontier"), "Estimate what is attainable, before any training."),
        ("pareto", Lazy("textsafe_gym.cli.pareto:pareto"), "Front and hypervolume of the runs below some directories."),
        ("fit", Lazy("textsafe_gym.cli.fit:fit"), "Fit a policy (SFT), a reward model or a cost model to data."),
        (
            "push",
            Lazy("textsafe_gym.cli.push:push"),
            "Upload a policy or a score model with its card to the Hugging Face hub.",
        ),
        (
            "chat",
            Lazy("textsafe_gym.cli.chat:chat"),
            "Talk to a policy; each answer comes with its reward and cost.",
        ),
        ("bench", Lazy("textsafe_gym.cli.bench:bench"), "Time rollouts, iterations and steps on this machine."),
        (
            "embedded-world",
            Lazy("textsafe_gym.cli.embedded_world:embedded_world"),
            "Rebuild or inspect the embedded world.",
        ),
        ("doctor", Lazy("textsafe_gym.cli.doctor:doctor"), "Say what is installed here and whether it works."),
        (
            "completion",
            Lazy("textsafe_gym.cli.completion:completion"),
            "Print the script that completes commands in your shell.",
        ),
    ],
)

_EXAMPLE = """\b
Example:
  textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo
"""


def fail(kind: str, message: object, code: int) -> NoReturn:
    """Ends the command with one line on stderr."""
    click.echo(f"{kind}: {' '.join(str(message).split())}", err=True)
    sys.exit(code)


class TextsafeGroup(click.Group):
    """Loads subcommands when they are asked for and reports failures in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module; None for an unknown name."""
        try:
            return COMMANDS.get(cmd_name)
        except ConfigError as error:
            if isinstance(error.__cause__, TextsafeError):  # one that says all, as of an extra that is not installed
                raise error.__cause__ from None
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name for an unknown one."""
        if args and args[0] not in COMMANDS:
            raise click.UsageError(f"unknown command '{args[0]}'; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, without importing them, or options."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=COMMANDS.about(name)) for name in COMMANDS if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS.about(name)) for name in COMMANDS])

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command; click would forget the message of one that was interrupted, or that the user's code ended."""
        try:
            return super().invoke(ctx)
        except RunInterrupted as error:
            fail("interrupted", error, 130)
        except SystemExit as error:  # no command raises it
            frames = traceback.extract_tb(error.__traceback__)
            # argparse, say, or a library's hook on sys.exit, on behalf of what called it; and what is ours.
            others = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]), "<")
            where = ([frame for frame in frames if not frame.filename.startswith(others)] or frames)[-1]
            raise ConfigError(
                f"{where.filename}:{where.lineno} ends the program (SystemExit: {error.code}); raise another error"
            ) from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs a command; every failure becomes one line on stderr and an exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra |= {"standalone_mode": False, "prog_name": "textsafe"}
        extra["obj"] = shlex.join(["textsafe", *arguments])
        debug = bool(os.environ.get("TEXTSAFE_DEBUG"))
        quiet_libraries(OneLine)
        if "_TEXTSAFE_COMPLETE" in os.environ:
            import textsafe_gym.cli.completion  # noqa: F401 (whose classes click is to use)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with working_directory_importable():
                code = super().main(arguments, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "textsafe"
            fail("error", f"{error.format_message()} (see '{command} --help')", 2)
        except click.ClickException as error:
            fail("error", error.format_message(), 2)
        except TextsafeError as error:
            if debug:
                raise
            fail("error", error, 2)
        except (click.Abort, KeyboardInterrupt):
            fail("interrupted", "nothing more was done", 130)
        except ExecutionError as error:
            fail("failed", error, 1)
        except BrokenPipeError:
            # The reader of stdout, such as `head`, has gone; the interpreter must not complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if debug:
                raise
            fail("failed", f"{type(error).__name__}: {error} (TEXTSAFE_DEBUG=1 shows the traceback)", 1)
        sys.exit(code if isinstance(code, int) else 0)


class OneLine(logging.Handler):
    """Prints the project's own warnings as single lines, the first of each kind."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes to whatever stderr is now."""
        if not is_quiet() and record.msg not in self._seen:
            self._seen.add(record.msg)
            click.echo(f"warning: {' '.join(record.getMessage().split())}", err=True)


@click.group(cls=TextsafeGroup, epilog=_EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="textsafe")
@quiet_option
@click.option("--local_rank", type=int, hidden=True, expose_value=False)  # of deepspeed's launcher; LOCAL_RANK counts
def main() -> None:
    """Safe RLHF as a Gymnasium suite: train, compare and judge policies under a cost constraint."""


if __name__ == "__main__":
    main()
