"""What the figures draw, read off matplotlib's own objects."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from textsafe_gym.evaluation import figures
from textsafe_gym.evaluation.report import comparison_tables
from textsafe_gym.evaluation.summaries import Run, compare_runs, points_of


class Trained(Run):
    """With rows of `metrics.jsonl` that no file holds."""

    metrics = ()  # set on each


def run(label: str, seed: int, limit: float, iterations: int, text: bool) -> Run:
    rows = [{"reward": 1.0 + seed, "cost": 0.5, **({"response": "hi"} if text else {})}] * 2
    summary = {"algorithm": label.split("[")[0], "label": label, "seed": seed, "cost_limit": limit}
    made = Trained(Path(label), {**summary, "episodes": 8 * iterations}, rows)
    numbers = range(1, iterations + 1)
    object.__setattr__(made, "metrics", [{"episodes": 8 * i, "reward": i + seed, "cost": 0.1 * i} for i in numbers])
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws by a function of `figures` and returns the figure in place of a file."""

    def draw(how: Any, runs: list[Run]) -> Figure:
        kept: list[Figure] = []
        monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
        how(runs, compare_runs(runs), Path("x.png"))
        return kept[0]

    return draw


def legend(figure: Figure) -> dict[str, Any]:
    (found,) = figure.legends
    return dict(zip((text.get_text() for text in found.get_texts()), found.legend_handles, strict=True))


@pytest.mark.parametrize(("text", "unit"), [(True, "response"), (False, "episode")])
def test_axes_speak_of_the_tasks_own_unit(drawn: Any, text: bool, unit: str) -> None:
    runs = [run("ppo", 0, 0.0, 2, text)]
    curves, plane = drawn(figures.learning_curves, runs), drawn(figures.comparison_planes, runs)
    assert [axis.get_ylabel() for axis in curves.axes] == [f"reward per {unit}", f"cost per {unit}"]
    assert {axis.get_xlabel() for axis in curves.axes} == {f"{unit}s so far"}
    (axis,) = plane.axes
    assert axis.get_xlabel() == f"mean cost per {unit} (lower is safer)"
    assert axis.get_ylabel() == f"mean reward per {unit}"


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_single_iteration_is_a_marker_with_its_interval(drawn: Any, iterations: int) -> None:
    axis = drawn(figures.learning_curves, [run("ppo", seed, 0.0, iterations, True) for seed in (0, 1)]).axes[0]
    assert (axis.lines[0].get_marker() == "o") == (iterations == 1)
    if iterations == 1:  # of the rewards 1 and 2: 1.5 and Student's 12.706 times 0.5
        bottom, top = axis.collections[0].get_segments()[0][:, 1]
        assert (bottom, top) == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=5e-5)


def test_what_samples_nothing_is_named_in_the_learning_curves(drawn: Any) -> None:
    runs = [run("initial", 0, 0.0, 0, True), run("ppo", 0, 0.0, 2, True), run("dpo", 0, 0.0, 0, True)]
    names = legend(drawn(figures.learning_curves, runs))
    assert list(names) == ["ppo", "dpo: samples no responses, so no curve", "cost limit"]
    assert figures.learning_curves([runs[2]], compare_runs([runs[2]]), Path("none.png")) == []


@pytest.mark.parametrize("how", [figures.learning_curves, figures.comparison_planes])
def test_every_limit_is_drawn_in_its_own_colour(drawn: Any, how: Any) -> None:
    limits = {"ppo": -2.0, "cpo": -2.0, "cup[cost_limit=-1]": -1.0, "cup[cost_limit=0]": 0.0}
    runs = [run(label, 0, limit, 2, True) for label, limit in limits.items()]
    look = legend(drawn(how, runs))
    lines = {name: line for name, line in look.items() if name.startswith("cost limit")}
    assert list(lines) == ["cost limit -2", "cost limit -1", "cost limit 0"]
    owners = {"cost limit -1": "cup[cost_limit=-1]", "cost limit 0": "cup[cost_limit=0]"}
    assert to_rgb(lines["cost limit -2"].get_color()) == (0, 0, 0)  # of two
    for name, label in owners.items():
        assert to_rgb(lines[name].get_color()) == to_rgb(look[label].get_color())
    (name,) = (name for name in legend(drawn(how, runs[:2])) if name.startswith("cost limit"))
    assert name == "cost limit"


def limited(label: str, seed: int, harm: float, words: float, limits: dict[str, float]) -> Run:
    rows = [{"reward": 1.0, "cost": harm + words, "costs": {"harm": harm, "words": words}}] * 2
    summary = {"algorithm": label, "label": label, "seed": seed, "cost_limit": None, "episodes": 8}
    return Run(Path(label), {**summary, **({"cost_limits": limits} if limits else {})}, rows)


def test_every_named_cost_has_its_columns_and_its_plane(tmp_path: Path) -> None:
    limits = {"harm": -1.0, "words": 1.5}
    runs = [limited("initial", 0, 0.5, 1.0, {}), *(limited("a", seed, -0.75, 1.0 + seed, limits) for seed in (0, 1))]
    comparison = compare_runs(runs)
    trained = comparison["settings"]["a"]
    assert trained["cost_limits"] == limits
    assert trained["costs"]["harm"]["cost_violation"]["mean"] == 0.25
    assert trained["costs"]["words"]["cost_violation"]["values"] == [0.0, 0.5]
    assert trained["metrics"]["cost_violation"]["values"] == [0.25, 0.5]  # of the one that is violated most
    table = comparison_tables(comparison)[0]
    shown = {row[0].text: dict(zip(table.columns, (own.text for own in row), strict=True)) for row in table.rows}
    wanted = {"violation": "0.38", "cost harm": "-0.75", "limit harm": "-1", "violation harm": "0.25"}
    assert wanted.items() <= shown["a"].items()
    assert {"cost words": "1.50", "limit words": "1.5", "violation words": "0.25"}.items() <= shown["a"].items()
    assert {"cost harm": "0.50", "limit harm": "–", "violation harm": "–"}.items() <= shown["initial"].items()
    assert table.columns.index("violation harm") < table.columns.index("cost words")
    planes = figures.comparison_planes(runs, comparison, tmp_path / "pareto.png")
    assert {name: path.name for name, path in planes.items()} == {
        "": "pareto.png", "harm": "pareto_harm.png", "words": "pareto_words.png"
    }  # fmt: skip
    assert all(path.stat().st_size > 10_000 for path in planes.values())
    harmless = run("b", 0, 0.0, 1, False)  # reported no cost by name: of each it had none
    assert [point.cost for point in points_of([*runs, harmless], "harm")] == [0.5, -0.75, -0.75, 0.0]


def test_the_plane_of_a_named_cost_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    runs = [limited("a", 0, -0.75, 1.0, {"harm": -1.0})]
    figures.comparison_planes(runs, compare_runs(runs), Path("pareto.png"))
    (whole,), (harm,), (words,) = (figure.axes for figure in kept)
    assert harm.get_xlabel() == "mean cost 'harm' per episode (lower is safer)"
    at = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] for axis in (whole, harm, words)]
    assert at == [[], [-1.0], []]
