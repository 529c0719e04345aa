"""What a user can get wrong, and how work can end early. The command line prints the message as one line; a
`TextsafeError` is exit code 2."""


class TextsafeError(Exception):
    """Base of all errors that a user can cause; the message names what, where and what to do."""


class ConfigError(TextsafeError, ValueError):
    """A key, a value or a combination of values is wrong."""


class UnknownNameError(TextsafeError, KeyError):
    """A name is not registered; the message offers the nearest one."""

    __str__ = Exception.__str__  # a KeyError's would put the message in quotes


class DataError(TextsafeError, ValueError):
    """A data file is missing, malformed or inconsistent; the message names the file and the line."""


class ModelError(TextsafeError, ValueError):
    """A model or tokenizer is missing, corrupt, or does not fit the others."""


class ScoreError(TextsafeError, ValueError):
    """A reward or cost model returned something other than n finite numbers."""


class MissingExtraError(TextsafeError, ImportError):
    """Something is not installed that one of the package's extras installs."""


class RunError(TextsafeError, ValueError):
    """A run directory cannot be read, written or resumed."""


class ExecutionError(Exception):
    """The request was right but the work did not get done; the message says where to look. Exit code 1."""


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, during work that can be resumed; the message says how. Exit code 130."""
