"""Many runs as tables: means with intervals over seeds, and learning curves, by pandas.

make demo
python examples/read_runs.py runs/demo

A run's directory holds metrics.jsonl (a row an iteration) and evaluation.jsonl (a row a response; label and seed are in
each). Seeds are what is independent, so an interval is over the means of runs, never over responses.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats


def read(directory: str, name: str) -> pd.DataFrame:
    """All rows of the runs' files of that name, with the label and seed of their run."""
    tables = []
    for path in sorted(Path(directory).rglob(name)):
        run = json.loads((path.parent / "summary.json").read_text())
        tables.append(pd.read_json(path, lines=True).assign(label=run["label"], seed=run["seed"]))
    return pd.concat(tables, ignore_index=True)


def with_interval(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and 95 % t interval over the runs (rows) of each group."""
    groups = runs.groupby(by)
    mean, error, count = groups.mean(), groups.sem(), groups.size()
    half = error.mul(stats.t.ppf(0.975, count - 1), axis=0)
    return pd.concat({"mean": mean, "low": mean - half, "high": mean + half}, axis=1)


def main(directory: str = "runs/demo", out: str = "reward.png") -> pd.DataFrame:
    responses = read(directory, "evaluation.jsonl")
    runs = responses.groupby(["label", "seed"])[["reward", "cost"]].mean().reset_index("seed", drop=True)
    table = with_interval(runs, ["label"])
    print(table.round(2))
    metrics = read(directory, "metrics.jsonl")
    curves = with_interval(metrics[["label", "episodes", "reward"]], ["label", "episodes"])
    figure = Figure()
    axis = figure.subplots()
    for label, curve in curves.groupby(level="label"):
        episodes = curve.index.get_level_values("episodes")
        axis.plot(episodes, curve["mean", "reward"], label=label)
        axis.fill_between(episodes, curve["low", "reward"], curve["high", "reward"], alpha=0.2)
    axis.set(xlabel="responses generated", ylabel="reward per response")
    axis.legend()
    figure.savefig(out)
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
