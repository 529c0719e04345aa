"""The environment adds little: the time of a step with the scorers taken out, and of making it."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from tests.helpers.texts import word_tokenizer
from textsafe_gym.envs.vector import SafeRLHFVectorEnv

pytestmark = pytest.mark.timing
LIMIT = 30e-6  # seconds for a vector step of 64 rows and a window of 128


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
    best = np.inf
    for _ in range(60):  # the least of many is what the code costs; the rest is what else the machine does
        env.reset(seed=0)
        begin = time.perf_counter()
        for row in actions:
            env.step(row)
        best = min(best, (time.perf_counter() - begin) / len(actions))
        if best <= LIMIT / 2:
            break
    print(f"vector step: {best * 1e6:.1f} µs")
    assert best <= LIMIT


def test_from_make_to_first_reset() -> None:
    program = (
        "import time, sys, gymnasium, textsafe_gym; begin = time.perf_counter();"
        "gymnasium.make('SafeRLHF-v0').reset(seed=0); print(time.perf_counter() - begin, 'torch' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    print("make to first reset, seconds:", runs)
    assert min(float(seconds) for seconds, _ in runs) <= 2
    assert {torch for _, torch in runs} == {"False"}  # the score models wait until they are needed
