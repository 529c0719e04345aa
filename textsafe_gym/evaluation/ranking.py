"""Algorithms against each other, and against what is attainable, at one budget.

The unit of repetition is the run; runs of one seed draw their answers alike, so that they are compared in pairs. The
statistics are those that Agarwal et al. (arXiv 2108.13264) ask for. Percentiles of a bootstrap cover less than 95 %
with ten runs: 92 of an interquartile mean of normal values, 51 of a probability of 0.98. The intervals are Tukey and
McLaughlin's, of a trimmed mean, and Newcombe's, of a probability of improvement (Stat. Med. 2006, method 5).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import mannwhitneyu, norm, trim_mean, ttest_rel
from scipy.stats.mstats import trimmed_mean_ci

from textsafe_gym.evaluation.attainable import attained, attained_of_own, share
from textsafe_gym.evaluation.intervals import Interval, t_interval
from textsafe_gym.evaluation.records import data_units, summarise
from textsafe_gym.evaluation.report import Cell, Table, cell
from textsafe_gym.evaluation.summaries import Run
from textsafe_gym.files import Row

_TRIMMED = 0.25  # of the values, at each end


def interquartile_mean(values: Sequence[float]) -> Interval:
    """The mean without the lowest and the highest quarter, with its 95 % interval; at least five values for one."""
    mean = float(trim_mean(values, _TRIMMED))
    if len(values) < 5:
        return Interval(mean, None, None, len(values))
    low, high = trimmed_mean_ci(np.asarray(values), (_TRIMMED, _TRIMMED), alpha=0.05)
    return Interval(mean, float(low), float(high), len(values))


def improvement(values: Sequence[float], others: Sequence[float]) -> Interval:
    """P(X > Y) + P(X = Y) / 2 of independent runs X and Y, with its 95 % interval; at least two of each for one."""
    m, n = len(values), len(others)
    found = float(mannwhitneyu(values, others).statistic) / (m * n)
    if min(m, n) < 2:
        return Interval(found, None, None, m)
    more = (m + n) / 2 - 1

    def distance(share: float) -> float:
        """From `found`, less what is likely if `share` is true."""
        variance = share * (1 - share) * (1 + more * ((1 - share) / (2 - share) + share / (1 + share))) / (m * n)
        return abs(share - found) - float(norm.ppf(0.975)) * float(np.sqrt(variance))

    # Just inside of 0 and 1, where the variance is 0 and so the distance as well.
    low = 0.0 if found == 0 else float(brentq(distance, 0.0, found - 1e-9))
    high = 1.0 if found == 1 else float(brentq(distance, found + 1e-9, 1.0))
    return Interval(found, low, high, m)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p values, which hold for all of the tests together (Holm 1979), in the order given."""
    order, count = np.argsort(p_values, kind="stable"), len(p_values)
    steps = np.maximum.accumulate([(count - i) * p_values[j] for i, j in enumerate(order)]).clip(0, 1)
    return [float(steps[list(order).index(j)]) for j in range(count)]


def rank(groups: Mapping[str, Sequence[Run]], frontier: Row, baseline: str) -> list[Row]:
    """A row for each algorithm, those that attain most first, and those above the limit last.

    Args:
        groups: from algorithm to its runs of one budget.
        frontier: what `frontier.json` holds, of a limit on the mean cost.
        baseline: the algorithm that the others are compared with.

    Returns:
        `algorithm`, `runs`; of those means with 95 % t intervals: `reward`, `cost`, `kl`, those of gold, and
        `excess`, by how much the cost lies above the limit, as a share of the range of the reference's costs;
        `attainable` and `attainable_of_own`, see `attained`; `shares`, from seed to that run's own; `iqm`, the shares'
        interquartile mean; `improvement`, the probability that a run attains more than one of the baseline, and `p` of
        a paired t test over seeds that their means are equal, corrected for the number of algorithms; what a run took:
        `seconds`, `judge_calls`, and under `units` the rows that it read. What has no share has no statistics of it.
    """
    rows = [_row(name, runs, frontier) for name, runs in groups.items()]
    own = {row["algorithm"]: row["shares"] for row in rows if row["shares"]}
    others = [name for name in own if name != baseline] if baseline in own else []
    p_values: dict[str, float] = {}
    for name in others:
        seeds = [seed for seed in own[name] if seed in own[baseline]]
        pairs = np.array([(own[name][seed], own[baseline][seed]) for seed in seeds])
        if len(seeds) > 1 and np.ptp(pairs[:, 0] - pairs[:, 1]) > 0:
            p_values[name] = float(ttest_rel(*pairs.T).pvalue)
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    for row in rows:
        name = row["algorithm"]
        row["iqm"] = interquartile_mean([*row["shares"].values()]).as_dict() if row["shares"] else None
        row["improvement"] = (
            improvement([*own[name].values()], [*own[baseline].values()]).as_dict() if name in others else None
        )
        row["p"] = adjusted.get(name)
    return sorted(rows, key=lambda row: -row["attainable"]["mean"] if row["shares"] else np.inf)


def _row(name: str, runs: Sequence[Run], frontier: Row) -> Row:
    means = [summarise(run.rows, None) for run in runs]
    low, high = frontier["cost_range"]
    keys = [key for key in ("reward", "cost", "kl", *_GOLD) if all(key in mean for mean in means)]
    excess = [(mean["cost"] - frontier["cost_limit"]) / (high - low) for mean in means]
    found = attained(runs, frontier)
    judged = found is not None and not found["above_limit"]
    return {
        "algorithm": name,
        "runs": len(runs),
        **{key: t_interval([mean[key] for mean in means]).as_dict() for key in keys},
        "excess": t_interval(excess).as_dict(),
        "attainable": found,
        "attainable_of_own": attained_of_own(runs, frontier),
        "shares": {run.seed: share(mean, frontier) for run, mean in zip(runs, means, strict=True)} if judged else {},
        "seconds": float(np.mean([run.summary["seconds"] for run in runs])),
        "judge_calls": 2 * runs[0].summary["episodes"],
        "units": {
            what: runs[0].summary[key]
            for key, what in data_units([runs[0].summary]).items()
            if runs[0].summary.get(key)
        },
    }


_GOLD: dict[str, tuple[str, int, float]] = {
    "gold_helpfulness": ("gold helpful", 2, 1),
    "gold_harmful_rate": ("gold harmful, %", 1, 100),
}  # heading, digits, factor


def ranking_tables(rows: Sequence[Row], budget: str, frontier: Row, baseline: str) -> list[Table]:
    """The shares and how they compare, and what they are made of."""

    def of_best(row: Row | None) -> Cell:
        return Cell("above the limit") if row is not None and row["above_limit"] else cell(row, 0)

    gold = [key for key in _GOLD if all(key in row for row in rows)]
    shares = [
        [
            Cell(row["algorithm"]), of_best(row["attainable"]), cell(row["iqm"], 0), cell(row["improvement"], 2),
            Cell("–" if row["p"] is None else f"{row['p']:.3f}"), of_best(row["attainable_of_own"]),
        ]
        for row in rows
    ]  # fmt: skip
    parts = [
        [
            Cell(row["algorithm"]),
            *(cell(row[key], 2) for key in ("reward", "cost")),
            cell(row["excess"], 1, 100),
            cell(row["kl"], 2),
            *(cell(row[key], *_GOLD[key][1:]) for key in gold),
            Cell(f"{row['seconds']:.0f}"),
            Cell(", ".join([str(row["judge_calls"]), *(f"{n} {what}" for what, n in row["units"].items())])),
        ]
        for row in rows
    ]
    weight, limit, runs = frontier["kl_coefficient"], frontier["cost_limit"], rows[0]["runs"]
    return [
        Table(
            f"What is attained with {budget}",
            f"E[R] - {weight:g}·KL from the untrained policy, 0 %, to the best with E[C] <= {limit:g}, 100 %. Means "
            f"and interquartile means over {runs} seeds with 95 % intervals; P(better): that a run attains more than "
            f"one of {baseline}; p: of a paired t test against it, with Holm's correction.",
            ["algorithm", "attainable, %", "interquartile mean", "P(better)", "p", "own problem, %"],
            shares,
        ),
        Table(
            f"How it is attained with {budget}",
            "Excess: of the cost over the limit, in % of the range of costs. Seconds and calls of judges are a run's.",
            [
                "algorithm", "reward", "cost", "excess, %", "KL, nats", *(_GOLD[key][0] for key in gold), "seconds",
                "judge calls",
            ],
            parts,
        ),
    ]  # fmt: skip
