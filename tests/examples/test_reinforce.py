"""Learners of strangers, in another folder and from an installed wheel: REINFORCE and Stable-Baselines3's PPO.

Both are paid reward - cost and begin with random weights; an untrained policy earns 0.12. Measured over seeds 0 to 2,
as the gain from the first 96 episodes to the last 96, in the mean and from the least to the most:

- REINFORCE: 0.44 (0.38 to 0.47); with the advantages shuffled among episodes 0.01 (-0.04 to 0.08); with the sign of the
  loss flipped -0.59 (-0.75 to -0.44).
- PPO: 0.43 (0.35 to 0.52); with each episode paid what the one before earned 0.02 (-0.01 to 0.04); with the sign of the
  pay flipped -0.66 (-0.75 to -0.59).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.installs import ROOT, run

EPISODES = 32  # of an update
SEEDS = (0, 1, 2)
MARGIN = 0.25


def test_reinforce_learns_from_a_wheel(wheel_install: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "reinforce.py"
    assert len([line for line in example.read_text().splitlines() if line.strip()]) <= 40
    shutil.copy(example, tmp_path)
    program = (
        "import contextlib, json, os, reinforce, textsafe_gym\n"
        "with contextlib.redirect_stdout(open(os.devnull, 'w')):\n"
        f"    curves = [reinforce.main(updates=30, episodes={EPISODES}, seed=seed) for seed in {SEEDS}]\n"
        "print(json.dumps({'file': textsafe_gym.__file__, 'curves': curves}))"
    )
    done = run(wheel_install, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(wheel_install)
    curves = np.array(found["curves"])
    assert (curves[:, -3:].mean(1) - curves[:, :3].mean(1)).mean() > MARGIN


@pytest.mark.long
def test_ppo_of_stable_baselines3_learns_from_a_wheel(wheel_install: Path, tmp_path: Path) -> None:
    done = run(wheel_install, tmp_path, ROOT / "tests/helpers/stranger_ppo.py", 6144, *SEEDS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(wheel_install)
    few = 3 * EPISODES
    assert np.mean([np.mean(one[-few:]) - np.mean(one[:few]) for one in found["curves"]]) > MARGIN
