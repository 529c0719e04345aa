"""What the figures draw, read off matplotlib's own objects."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from textsafe_gym.evaluation import figures
from textsafe_gym.evaluation.summaries import Run, compare_runs


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
    curves, plane = drawn(figures.learning_curves, runs), drawn(figures.comparison_plane, runs)
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


@pytest.mark.parametrize("how", [figures.learning_curves, figures.comparison_plane])
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
