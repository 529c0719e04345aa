"""What a user can get wrong. The command line prints the message as one line and exits with code 2."""


class TextsafeError(Exception):
    """Base of all errors that a user can cause; the message names what, where and what to do."""


class ConfigError(TextsafeError, ValueError):
    """A key, a value or a combination of values is wrong."""


class UnknownNameError(TextsafeError, LookupError):
    """A name is not registered; the message offers the nearest one."""


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
