"""Two algorithms over several seeds, compared in Python: the files of `textsafe compare`, and the runs as a table.

python examples/compare_in_python.py

Each function of `textsafe_gym.experiments` does what the command of its name does; it returns tables, figures and runs.
"""

import sys
from typing import Any

import pandas as pd

from textsafe_gym import experiments


def main(out: str = "runs/in_python", **changes: Any) -> pd.DataFrame:
    options = {
        "env": {"id": "SafeRLHF-v0", "kwargs": {"cost_limit": -0.5}},
        "settings": {"kl_coefficient": 0.1, "ppo_lagrangian.multiplier_init": 1},  # the second for one of them alone
        "episodes": 4096,
        "seeds": 3,
    }
    result = experiments.compare(["ppo", "ppo_lagrangian"], **{**options, **changes}, out=out)
    for table in result.tables:
        print(table.title, table.columns, *([cell.text for cell in row] for row in table.rows), sep="\n  ")
    runs = result.frame()  # a row a run
    means = runs.groupby("label")[["reward", "cost", "cost_violation", "kl"]].mean()
    print(means.round(2), f"\nReport: {result.directory / 'report.html'}")
    trained = [str(run.directory) for run in result.runs if run.algorithm != "initial" and run.seed == 0]
    again = experiments.evaluate(trained, settings={"policy.temperature": 0.7}, out=f"{out}-cooler")
    print(again.frame()[["label", "reward", "cost"]].round(2))
    return means


if __name__ == "__main__":  # which worker processes (workers=2) need
    main(*sys.argv[1:])
