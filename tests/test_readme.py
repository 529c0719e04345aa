"""What the README shows works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_added_algorithm_trains_saves_and_resumes(tmp_path: Path) -> None:
    code = re.search(r"```python\n(\"\"\"Quadratic penalty.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    assert code[1].count("\n") < 60
    shutil.copytree(ROOT / "algos", tmp_path / "algos", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "algos" / "quadratic_penalty.py").write_text(code[1])
    program = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from cmdps import Crossing, vector
import algos

print(algos.available()["quadratic_penalty"])
config = {"learning_rate": 3e-3, "critic_learning_rate": 3e-3, "learning_rate_schedule": "constant", "epochs": 4}
config |= {"minibatch_size": 16, "episodes_per_iteration": 32, "episodes": 1600, "kl_coefficient": 0.0}
trainer = algos.make("quadratic_penalty", vector(Crossing, 32), **config)
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
