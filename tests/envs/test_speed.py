"""The environment adds little: the time of a step with the scorers taken out, and of making it."""

from typing import Any

import numpy as np
import pytest

from tests.helpers.speed import python, times_as_long
from tests.helpers.texts import word_tokenizer
from textsafe_gym.envs.vector import SafeRLHFVectorEnv

pytestmark = pytest.mark.timing
LIMIT = 3.0  # times as long as what no such environment does without; it took 2.3 times as long, 20 µs


def zeros(prompts: list[str], responses: list[str]) -> np.ndarray:
    return np.zeros(len(prompts))


@pytest.fixture(scope="module")
def env() -> Any:
    sizes = {"max_prompt_length": 64, "max_response_length": 64}
    return SafeRLHFVectorEnv(
        64, prompts=["please"], tokenizer=word_tokenizer(), reward_model=zeros, cost_model=zeros, **sizes
    )


def test_a_step_of_64_rows(env: Any) -> None:
    actions = np.random.default_rng(0).integers(3, 25, (63, 64))
    ids, mask, rows = np.zeros((64, 128), np.int64), np.zeros((64, 128), np.int8), np.arange(64)

    def steps() -> None:
        for row in actions:
            env.step(row)

    def bare() -> None:
        """A token in every row, a copy for whoever looks, and arrays for reward, cost and the two ends."""
        for column, row in enumerate(actions):
            ids[rows, column], mask[rows, column] = row, 1
            ids.copy(), mask.copy(), np.zeros(64), np.zeros(64), row == 3, np.zeros(64, dtype=bool)

    longer = times_as_long(steps, bare, lambda: env.reset(seed=0), pairs=60)
    print(f"vector step: {longer:.2f} times the bare arrays")
    assert longer < LIMIT


def test_from_make_to_first_reset() -> None:
    """It took 4 to 6 times as long as the import of Gymnasium, 0.8 s after it; nine times are 2 s.

    The score models wait until they are needed.
    """
    program = (
        "import sys, gymnasium, textsafe_gym; gymnasium.make('SafeRLHF-v0').reset(seed=0);"
        "assert 'torch' not in sys.modules"
    )
    longer = times_as_long(python(program), python("import gymnasium"), pairs=5)
    print(f"to the first reset: {longer:.2f} times the import")
    assert longer < 9
