"""What the README and the page on adding an algorithm show works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "textsafe_gym" / "docs"


def test_the_first_steps_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (step,) = (block for block in blocks if "action_space.sample()" in block)
    (exact,) = (block for block in blocks if "SafeRLHF-Exact-v0" in block)
    names: dict[str, Any] = {}
    exec(step, names)
    assert names["info"]["cost"] == 0 or names["terminated"]
    exec(exact, names)
    assert len(names["env"].enumerate()) == 6220
    assert len(names["env"].frontier(n=20)) == 20


def test_training_as_shown_is_a_valid_request() -> None:
    code = re.search(r"^```python\n(import algos.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].partition("trainer.learn()")[0], names)
    assert names["trainer"].config.episodes == 4096


def test_the_added_algorithm_trains_saves_and_resumes(tmp_path: Path) -> None:
    code = re.search(r"```python\n(\"\"\"Quadratic penalty.*?)```", (DOCS / "new_algorithm.md").read_text(), re.DOTALL)
    assert code is not None
    assert code[1].count("\n") < 60
    shutil.copytree(ROOT / "algos", tmp_path / "algos", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "algos" / "quadratic_penalty.py").write_text(code[1])
    program = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from tests.helpers.cmdps import Crossing, vector
import algos

print(algos.available()["quadratic_penalty"])
config = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "learning_rate_schedule": "constant", "epochs": 4}
config |= {"minibatch_size": 16, "episodes_per_iteration": 32, "episodes": 1600, "kl_coefficient": 0.0}
trainer = algos.make("quadratic_penalty", vector(Crossing, 32), preset="paper", **config)
rows = trainer.learn()
trainer.save(sys.argv[1] + "/saved")
assert algos.load(sys.argv[1] + "/saved", vector(Crossing, 32)).iteration == len(rows)
print(sum(row["cost"] for row in rows[-10:]) / 10)
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(ROOT / "tests")]
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    about, cost = done.stdout.splitlines()
    assert about.startswith("Quadratic penalty")
    assert float(cost) < 1.0  # 3.4 without a constraint
