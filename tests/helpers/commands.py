"""`textsafe` in this process."""

import json
from typing import Any

from click.testing import CliRunner, Result

from textsafe_gym.cli.main import main


def textsafe(*arguments: object, text: str | None = None) -> Result:
    """What a command prints, and its exit code; `text` is its input."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)


def done(*arguments: object, text: str | None = None) -> Result:
    """A command that does what it was asked."""
    result = textsafe(*arguments, text=text)
    assert result.exit_code == 0, result.stderr
    return result


def printed(*arguments: object) -> Any:
    """The document that such a command prints with --json."""
    return json.loads(done(*arguments, "--json").stdout)
