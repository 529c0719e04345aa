"""Learning curves and the reward-cost plane, as PNG files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from textsafe_gym.evaluation.attainable import share
from textsafe_gym.evaluation.frontier import TRUSTED
from textsafe_gym.evaluation.intervals import t_interval
from textsafe_gym.evaluation.pareto import RunPoint, analyse
from textsafe_gym.evaluation.report import UNITS, Units
from textsafe_gym.evaluation.summaries import Run, points_of
from textsafe_gym.files import Row, replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#5A5A5A")
_MARKERS = "osD^vP*X<>hpd"
_CURVES = {"reward": "reward per {}", "cost": "cost per {}", "multiplier": "multiplier λ"}
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
    alone: Look = {"marker": "o", "markersize": 5} if len(episodes) == 1 else {}  # a line of one point shows nothing
    axis.plot(episodes, [i.mean for i in intervals], color=colour, label=label, linewidth=1.6, **alone)
    if len(known) > 1 and band and alone:
        axis.vlines(episodes, [i.low or 0 for i in intervals], [i.high or 0 for i in intervals], color=colour)
    elif len(known) > 1 and band:
        axis.fill_between(
            episodes,
            [i.low or 0 for i in intervals],
            [i.high or 0 for i in intervals],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )


def _draw_limits(draw: Callable[..., object], limits: Mapping[str, float | None], look: Mapping[str, Look]) -> None:
    """A line for each cost limit: black, or where there are several the colour of the only label that has it."""
    for limit in sorted({value for value in limits.values() if value is not None}):
        own = [label for label, value in limits.items() if value == limit]
        several = len(set(limits.values())) > 1
        colour = look[own[0]]["color"] if several and len(own) == 1 else "black"
        name = f"cost limit {limit:g}" if several else "cost limit"
        draw(limit, color=colour, linestyle="--", linewidth=1, label=name)


def learning_curves(runs: Sequence[Run], comparison: Row, path: Path) -> list[Path]:
    """Reward, cost and multiplier against the episodes so far.

    Args:
        runs: of one comparison.
        comparison: of `summaries.compare_runs`.
        path: of the PNG.

    Returns:
        The path, or nothing where no run sampled: nothing is known of training responses then.
    """
    settings, units = comparison["settings"], UNITS[comparison["task"]]
    curves = {
        label: [run.metrics for run in runs if run.label == label]
        for label, entry in settings.items()
        if entry["episodes"]
    }
    if not curves:
        return []
    look = styles({label: entry["algorithm"] for label, entry in settings.items()})
    band = len(curves) <= _BANDS
    with mpl.rc_context(_STYLE):
        panels = {
            name: title.format(units.episode) for name, title in _CURVES.items()
            if any(name in row for rows in curves.values() for own in rows for row in own[:1])
        }  # fmt: skip
        figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr, call-arg]
        for axis, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for label, own in curves.items():
                _curve(axis, own, name, label, look[label]["color"], band)
            if name == "cost":
                limits = {label: settings[label]["cost_limit"] for label in curves}
                _draw_limits(axis.axhline, limits, look)
            axis.set_xlabel(f"{units.episodes} so far")
            axis.set_ylabel(title)
            axis.margins(x=0.01)
        for label in without_curve(comparison):
            figure.axes[0].plot([], [], " ", label=f"{label}: samples no {units.episodes}, so no curve")
        handles: dict[str, Artist] = {}
        for axis in figure.axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        columns = min(len(handles), 4 if len(panels) > 1 else 2)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
        counts = sorted({len(own) for own in curves.values()})
        seeds = f"mean{' and 95 % interval' if band else ''} over {'-'.join(map(str, counts))} seeds"
        seeds = "one seed" if counts == [1] else seeds
        figure.suptitle(f"Learning curves ({seeds})")
        _save(figure, path)
    return [path]


def without_curve(comparison: Row) -> list[str]:
    """The labels of methods that sampled nothing while training, so that they have no learning curve."""
    settings = comparison["settings"]
    return [label for label, entry in settings.items() if not entry["episodes"] and entry["algorithm"] != "initial"]


def comparison_planes(runs: Sequence[Run], comparison: Row, path: Path) -> dict[str, Path]:
    """`reward_cost_plane` of a comparison, with every setting's own limit, for all costs and for each that has a name.

    Args:
        runs: of one comparison.
        comparison: of `summaries.compare_runs`.
        path: of the PNG for all costs, the others' with "_NAME" at its end.

    Returns:
        By the name of the cost, "" for all, the paths.
    """
    settings, units = comparison["settings"], UNITS[comparison["task"]]
    limits = {label: entry["cost_limit"] for label, entry in settings.items()}
    shares = {label: entry["attainable"] for label, entry in settings.items()}
    points, frontier = comparison["pareto"]["points"], comparison["frontier"]
    reward_cost_plane(points, points_of(runs), limits, units, path, frontier, shares=shares)
    found = {"": path}
    for name in dict.fromkeys(name for entry in settings.values() for name in entry["costs"]):
        own = points_of(runs, name)
        limits = {label: entry["cost_limits"].get(name) for label, entry in settings.items()}
        found[name] = path.with_stem(f"{path.stem}_{quote(name, safe='')}")
        reward_cost_plane(analyse(own)["points"], own, limits, units, found[name], cost=name)
    return found


def reward_cost_plane(
    points: Sequence[Row],
    runs: Sequence[RunPoint],
    limits: Mapping[str, float | None],
    units: Units,
    path: Path,
    frontier: Row | None = None,
    attained: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] | None = None,
    cost: str = "",
    shares: Mapping[str, Row | None] | None = None,
) -> None:
    """Every run as a small dot, every setting's mean as a marker, the front, the limits, and what is attainable.

    Args:
        points: of `pareto.analyse`: label, algorithm, reward, cost, front.
        runs: of which the points are the means.
        limits: from label to cost limit, drawn as lines; the infeasible side is shaded where all have one.
        units: the task's words.
        path: of the PNG.
        frontier: what `frontier.json` holds, drawn as a band, with the best of 8 and of 16.
        attained: by algorithm, of `attainable.attainment`, drawn as a line for each share.
        cost: the name of the one that is drawn, for the axis.
        shares: from label to its `attainable.attained`, for the legend.
    """
    look = styles({point["label"]: point["algorithm"] for point in points})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
        axis = figure.subplots()
        for run in runs:
            axis.plot(run.cost, run.reward, ".", color=look[run.label]["color"], alpha=0.35, markersize=5)
        for point in points:
            name = point["label"] + _share_of(shares, point["label"])
            style = look[point["label"]] | {"linestyle": "", "markeredgecolor": "white", "label": name}
            axis.plot(point["cost"], point["reward"], markersize=13 if style["marker"] == "*" else 8, **style)
        front = sorted((point["cost"], point["reward"]) for point in points if point["front"])
        axis.step(
            [cost for cost, _ in front], [reward for _, reward in front], where="post", color="grey", linewidth=1.2,
            zorder=0, label="front",
        )  # fmt: skip
        for name, surfaces in (attained or {}).items():
            colour = next(look[point["label"]]["color"] for point in points if point["algorithm"] == name)
            for part, dashes in (("25", ":"), ("50", "-"), ("75", "--")):
                steps = sorted((cost, reward) for reward, cost in surfaces[part])
                axis.step(*zip(*steps, strict=True), dashes, where="post", color=colour, linewidth=0.7, alpha=0.7)
        if frontier:
            _draw_frontier(axis, frontier, [8, 16])
        low, high = axis.get_xlim()
        _draw_limits(axis.axvline, limits, look)
        known = [limit for limit in limits.values() if limit is not None]
        if known:
            margin = 0.05 * (max(high, *known) - min(low, *known))
            low, high = min(low, min(known) - margin), max(high, max(known) + margin)
            if len(set(limits.values())) == 1:
                axis.axvspan(known[0], high, color="#D55E00", alpha=0.06, linewidth=0, zorder=-1)
            axis.set_xlim(low, high)
        named = f"cost '{cost}'" if cost else "cost"
        axis.set_xlabel(f"mean {named} per {units.episode} (lower is safer)")
        axis.set_ylabel(f"mean reward per {units.episode}")
        axis.set_title("Marker: mean over seeds; dot: one run", fontsize=11)
        figure.legend(loc="outside right upper", fontsize=9)
        _save(figure, path)


def _share_of(shares: Mapping[str, Row | None] | None, label: str) -> str:
    found = (shares or {}).get(label)
    if found is None:
        return ""
    return ": above the limit" if found["above_limit"] else f": {found['mean']:.0f} % of attainable"


def attained_bars(rows: Mapping[str, Sequence[Row]], frontier: Row, path: Path) -> None:
    """How much of what is attainable each algorithm attains, next to the best of 8 and of 16 untrained answers.

    Args:
        rows: from the name of a budget to the rows of `ranking.rank`.
        frontier: what `frontier.json` holds.
        path: of the PNG.
    """
    names = list(dict.fromkeys(row["algorithm"] for own in reversed([*rows.values()]) for row in own))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.4 + 0.28 * len(names)), layout="constrained")
        axis = figure.subplots()
        for number, (budget, own) in enumerate(rows.items()):
            kept = [row for row in own if row["shares"]]
            means = [row["attainable"]["mean"] for row in kept]
            ends = [[row["attainable"][end] for row in kept] for end in ("low", "high")]
            known = bool(kept) and None not in (*ends[0], *ends[1])
            axis.errorbar(
                means, [names.index(row["algorithm"]) + 0.15 * number for row in kept],
                xerr=np.abs(np.array(ends) - means) if known else None,
                fmt=_MARKERS[number], color=_COLOURS[number], elinewidth=1.0, label=budget,
            )  # fmt: skip
            above = [names.index(row["algorithm"]) + 0.15 * number for row in own if not row["shares"]]
            axis.plot([0.0] * len(above), above, "x", color=_COLOURS[number])
        axis.plot([], [], "kx", label="above the cost limit, no share")
        for row, dashes in zip(
            (row for row in frontier["best_of_n"] if row["n"] in (8, 16)), (":", "--"), strict=False
        ):
            axis.axvline(
                share(row, frontier), color="black", linestyle=dashes, linewidth=1, label=f"best of {row['n']}"
            )
        axis.axvline(100, color="black", linewidth=1, label="the best at the limit")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("share of what is attainable at the cost limit, % (mean and 95 % interval over seeds)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)
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


def _draw_frontier(axis: Axes, frontier: Row, sizes: Sequence[int]) -> None:
    """The front with its band, dotted where too few samples tell of it, and the best of n of `sizes` that are there."""
    rows, best = frontier["front"], [row for row in frontier["best_of_n"] if row["n"] in sizes]
    low, high = zip(*(row["intervals"]["reward"] for row in rows), strict=True)
    costs, rewards = np.array([(row["cost"], row["reward"]) for row in rows]).T
    trusted = np.array([row["effective_sample_size"] >= TRUSTED for row in rows])
    grey, name = _COLOURS[-1], f"attainable (β = {frontier['kl_coefficient']:g})"
    axis.fill_between(costs, low, high, color=grey, alpha=0.2, linewidth=0)
    doubted = None if trusted.all() else f"{name}, too few samples"
    axis.plot(costs, rewards, ":", color=grey, linewidth=1.6, label=doubted)
    known = name if trusted.any() else None
    axis.plot(costs, np.where(trusted, rewards, np.nan), color=grey, linewidth=1.6, label=known)
    if not best:
        return
    axis.plot(
        [row["cost"] for row in best], [row["reward"] for row in best], "s", color="black", markersize=5,
        label="untrained, best of n",
    )  # fmt: skip
    judged = frontier["constraint"] == "mean" and frontier["at_limit"]["feasible"]
    for row in best:
        note = f"{row['n']}: {share(row, frontier):.0f} %" if judged and row["feasible"] else str(row["n"])
        axis.annotate(note, (row["cost"], row["reward"]), (5, -3), textcoords="offset points", fontsize=8)


def frontier_plane(frontier: Row, path: Path) -> None:
    """What is attainable, in the reward-cost plane: the front with its band, best of n, and the untrained policy.

    Args:
        frontier: what `frontier.json` holds.
        path: of the PNG.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.8, 4.6), layout="constrained")
        axis = figure.subplots()
        _draw_frontier(axis, frontier, [row["n"] for row in frontier["best_of_n"] if row["n"] > 1])
        axis.plot(
            frontier["reference"]["cost"], frontier["reference"]["reward"], "k*", markersize=12, label="untrained"
        )
        if frontier["constraint"] in ("mean", "per_prompt") and "cost_limit" in frontier:  # others are not on this axis
            axis.axvline(frontier["cost_limit"], color="black", linestyle="--", linewidth=1, label="cost limit")
        axis.set_xlabel("mean cost per response (lower is safer)")
        axis.set_ylabel("mean reward per response")
        figure.legend(loc="outside right upper", fontsize=9)
        _save(figure, path)
