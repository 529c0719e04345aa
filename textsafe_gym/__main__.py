"""The command `textsafe`, and `python -m textsafe_gym`: the command line, where what it needs is installed."""

import sys

from textsafe_gym.errors import MissingExtraError
from textsafe_gym.extras import require


def main() -> None:
    """Runs a command; exit code 2 and one line where the extra is missing, of which click itself is a part."""
    try:
        require("train")
    except MissingExtraError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    from textsafe_gym.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
