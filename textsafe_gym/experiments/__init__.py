"""Experiments: a run from its specification to its files, and many runs with the report on them.

The commands of the same names do nothing else, so that a call here and a command with the same arguments write the same
directories. Importing this loads no model library.
"""

from textsafe_gym.extras import require
from textsafe_gym.installation import check_not_hidden

require("train")
check_not_hidden()

from textsafe_gym.experiments.compare import compare  # noqa: E402 (what is missing is said before anything else fails)
from textsafe_gym.experiments.evaluate import evaluate  # noqa: E402
from textsafe_gym.experiments.frontier import frontier  # noqa: E402
from textsafe_gym.experiments.pareto import pareto  # noqa: E402
from textsafe_gym.experiments.result import Result  # noqa: E402
from textsafe_gym.experiments.study import study  # noqa: E402
from textsafe_gym.experiments.train import train  # noqa: E402

__all__ = ["Result", "compare", "evaluate", "frontier", "pareto", "study", "train"]
