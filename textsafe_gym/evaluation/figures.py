"""Learning curves and the reward-cost plane, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from textsafe_gym.evaluation.intervals import t_interval
from textsafe_gym.files import Row, replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#5A5A5A")
_MARKERS = "osD^vP*X<>hpd"
_CURVES = (
    ("reward", "reward per response"),
    ("cost", "cost per response"),
    ("multiplier", "multiplier λ"),
)
# At most this many points a curve; neighbouring iterations are averaged, as single ones are noisy.
_POINTS = 60
_BANDS = 6  # with more curves than this, bands would hide them
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


Look = dict[str, Any]  # how matplotlib draws a label's points: its arguments `color`, `marker` and others


def styles(labels: Mapping[str, str]) -> dict[str, Look]:
    """A colour and a marker for each label: one colour an algorithm, lighter shades for its further settings.

    Args:
        labels: from label to algorithm.
    """
    algorithms = list(dict.fromkeys(labels.values()))
    colours = dict(zip((name for name in algorithms if name != "initial"), _COLOURS * len(algorithms), strict=False))
    chosen: dict[str, Look] = {}
    for label, algorithm in labels.items():
        family = [other for other, name in labels.items() if name == algorithm]
        place = family.index(label)
        base = np.array(mpl.colors.to_rgb(colours.get(algorithm, "#000000")))
        fade = 0.6 * place / max(1, len(family) - 1)
        marker = "*" if algorithm == "initial" else _MARKERS[place % len(_MARKERS)]
        chosen[label] = {"color": tuple(base + (1 - base) * fade), "marker": marker}
    return chosen


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight")


def _bins(values: np.ndarray) -> np.ndarray:
    """(n,) -> means of at most `_POINTS` neighbouring parts."""
    return np.array([part.mean() for part in np.array_split(values, min(_POINTS, len(values)))])


def _curve(axis: Axes, runs: Sequence[Sequence[Row]], name: str, label: str, colour: str, band: bool) -> None:
    """The mean over seeds, with the 95 % t interval as a band if asked."""
    length = min(len(rows) for rows in runs)
    known = [rows for rows in runs if all(row.get(name) is not None for row in rows[:length])]
    if not length or not known:
        return
    episodes = _bins(np.array([row["episodes"] for row in known[0][:length]], dtype=float))
    series = np.array([_bins(np.array([row[name] for row in rows[:length]], dtype=float)) for rows in known])
    intervals = [t_interval(column) for column in series.T]
    axis.plot(episodes, [i.mean for i in intervals], color=colour, label=label, linewidth=1.6)
    if len(known) > 1 and band:
        axis.fill_between(
            episodes,
            [i.low or 0 for i in intervals],
            [i.high or 0 for i in intervals],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )


def learning_curves(
    runs: Mapping[str, Sequence[Sequence[Row]]],
    labels: Mapping[str, str],
    cost_limit: float | None,
    path: Path,
    episodes: str,
) -> None:
    """Reward, cost and multiplier against the episodes so far.

    Args:
        runs: from label to the rows of `metrics.jsonl` of each seed.
        labels: from label to algorithm; decides the colours.
        cost_limit: drawn as a line, if there is one for all.
        path: of the PNG.
        episodes: what an episode is called, in the plural.
    """
    look = styles(labels)
    band = len(runs) <= _BANDS
    with mpl.rc_context(_STYLE):
        panels = [
            (name, title) for name, title in _CURVES
            if any(name in row for rows in runs.values() for own in rows for row in own[:1])
        ]  # fmt: skip
        figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr, call-arg]
        for axis, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for label, own in runs.items():
                _curve(axis, own, name, label, look[label]["color"], band)
            if name == "cost" and cost_limit is not None:
                axis.axhline(cost_limit, color="black", linestyle="--", linewidth=1, label="cost limit")
            axis.set_xlabel(f"{episodes} so far")
            axis.set_ylabel(title)
            axis.margins(x=0.01)
        handles: dict[str, Artist] = {}
        for axis in figure.axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        columns = min(len(handles), 4 if len(panels) > 1 else 2)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
        counts = sorted({len(own) for own in runs.values()})
        seeds = f"mean{' and 95 % interval' if band else ''} over {'-'.join(map(str, counts))} seeds"
        seeds = "one seed" if counts == [1] else seeds
        figure.suptitle(f"Learning curves ({seeds})")
        _save(figure, path)


def reward_cost_plane(
    points: Sequence[Row],
    runs: Sequence[Row],
    cost_limit: float | None,
    path: Path,
) -> None:
    """Every run as a small dot, every setting's mean as a marker, the front, and the limit.

    Args:
        points: of `pareto.analyse`: label, algorithm, reward, cost, front.
        runs: label, reward, cost of single runs.
        cost_limit: drawn as a line, with the infeasible side shaded.
        path: of the PNG.
    """
    look = styles({point["label"]: point["algorithm"] for point in points})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
        axis = figure.subplots()
        for run in runs:
            axis.plot(run["cost"], run["reward"], ".", color=look[run["label"]]["color"], alpha=0.35, markersize=5)
        for point in points:
            style = look[point["label"]]
            style |= {
                "linestyle": "",
                "markersize": 13 if style["marker"] == "*" else 8,
                "markeredgecolor": "white",
                "label": point["label"],
            }
            axis.plot(point["cost"], point["reward"], **style)
        front = sorted((point["cost"], point["reward"]) for point in points if point["front"])
        axis.step(
            [cost for cost, _ in front], [reward for _, reward in front], where="post", color="grey", linewidth=1.2,
            zorder=0, label="front",
        )  # fmt: skip
        if cost_limit is not None:
            low, high = axis.get_xlim()
            axis.axvline(cost_limit, color="black", linestyle="--", linewidth=1, label="cost limit")
            low, high = min(low, cost_limit - 0.05 * (high - low)), max(high, cost_limit + 0.05 * (high - low))
            axis.axvspan(cost_limit, high, color="#D55E00", alpha=0.06, linewidth=0, zorder=-1)
            axis.set_xlim(low, high)
        axis.set_xlabel("mean cost per response (lower is safer)")
        axis.set_ylabel("mean reward per response")
        axis.set_title("Marker: mean over seeds; dot: one run", fontsize=11)
        figure.legend(loc="outside right upper", fontsize=9)
        _save(figure, path)


def optimum_plane(
    rows: Sequence[Row],
    problems: Mapping[str, str],
    frontiers: Mapping[str, Sequence[Mapping[str, float]]],
    path: Path,
) -> None:
    """The exact frontier of each problem, and every algorithm's mean with its intervals next to it.

    Args:
        rows: of `study.summarise_study`.
        problems: from algorithm to problem.
        frontiers: of `study.frontiers`.
        path: of the PNG.
    """
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    places = {name: number for number, name in enumerate(names)}
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 5.4), layout="constrained")
        axis = figure.subplots()
        for (problem, points), dashes in zip(frontiers.items(), ("-", "--", ":"), strict=False):
            costs, objectives = [p["cost"] for p in points], [p["objective"] for p in points]
            axis.plot(costs, objectives, dashes, color="black", linewidth=1.2, label=f"optimum: {problem}", zorder=0)
        for row in rows:
            place = places[row["algorithm"]]
            x, y = row["cost"], row["objective"]
            axis.errorbar(
                x["mean"],
                y["mean"],
                xerr=None if x["low"] is None else x["high"] - x["mean"],
                yerr=None if y["low"] is None else y["high"] - y["mean"],
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=6,
                markeredgecolor="white",
                elinewidth=0.8,
                linestyle="",
            )
        for name, place in places.items():
            look: Look = {
                "color": _COLOURS[place % len(_COLOURS)],
                "marker": _MARKERS[place % len(_MARKERS)],
            }
            label = name if problems[name] == "mean" else f"{name} ({problems[name]})"
            axis.plot([], [], linestyle="", label=label, **look)
        for limit in sorted({row["cost_limit"] for row in rows if row["cost_limit"] is not None}):
            axis.axvline(limit, color="grey", linestyle="--", linewidth=0.8, zorder=-1)
        # The frontiers go on far below any limit that was set.
        for name, zoom in (("cost", axis.set_xlim), ("objective", axis.set_ylim)):
            means = [row[name]["mean"] for row in rows]
            margin = 0.1 * (max(means) - min(means)) + 0.05
            zoom(min(means) - margin, max(means) + margin)
        axis.set_xlabel("mean cost per response (dashed: the limits)")
        axis.set_ylabel("mean reward less the KL penalty")
        axis.set_title("Means over seeds with 95 % intervals, against the exact optimum", fontsize=11)
        figure.legend(loc="outside right upper", fontsize=8)
        _save(figure, path)
