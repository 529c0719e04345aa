"""Tables over runs and the self-contained HTML report."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from textsafe_gym.errors import ConfigError
from textsafe_gym.extras import version
from textsafe_gym.files import Row, write_text

if TYPE_CHECKING:
    import pandas as pd

# Columns of the comparison: key in the summary, heading, digits, factor.
COLUMNS = (
    ("reward", "reward", 2, 1),
    ("cost", "cost", 2, 1),
    ("cost_violation", "violation", 2, 1),
    ("harmful_rate", "cost > 0, %", 1, 100),
    ("gold_helpfulness", "gold helpful", 2, 1),
    ("gold_harm", "gold harm", 2, 1),
    ("gold_harmful_rate", "gold harmful, %", 1, 100),
    ("kl", "KL, nats", 2, 1),
    ("tokens_per_second", "tokens/s", 0, 1),
)


@dataclass(frozen=True)
class Units:
    """What a task calls an episode, several, what they are counted by in an evaluation, and its steps a second."""

    episode: str
    episodes: str
    prompts: str
    rate: str


# By `comparison["task"]`.
UNITS = {
    "text": Units("response", "responses", "prompts", "tokens/s"),
    "other": Units("episode", "episodes", "episodes", "steps/s"),
}
GROUP_COLUMNS = tuple(
    column
    for column in COLUMNS
    if column[0] in {"gold_helpfulness", "gold_harm", "gold_harmful_rate", "reward", "cost", "harmful_rate"}
)


@dataclass(frozen=True)
class Cell:
    """A number as text, and below it in small letters its interval, if there is one."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table as both the terminal and the report show it.

    Attributes:
        title: heading.
        note: a line of explanation.
        columns: their headings.
        rows: of as many cells each.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]

    def frame(self) -> "pd.DataFrame":
        """The table as pandas has it: numbers as they are shown, and an interval in two more columns, "low" and "high".

        Raises:
            ConfigError: pandas is not installed.
        """
        rows = []
        for row in self.rows:
            entry: Row = {}
            for head, shown in zip(self.columns, row, strict=True):
                entry[head] = _value(shown.text)
                if shown.small:
                    entry |= zip((f"{head}, low", f"{head}, high"), map(_value, shown.small.split(" … ")), strict=True)
            rows.append(entry)
        return data_frame(rows)


def _value(text: str) -> int | float | str | None:
    """What a cell's text stands for."""
    if text == "–":
        return None
    number = re.fullmatch(r"-?\d+(\.\d+)?(e[-+]\d+)?", text)
    return text if not number else float(text) if number[1] or number[2] else int(text)


def data_frame(rows: Sequence[Row]) -> "pd.DataFrame":
    """A DataFrame of rows with the same keys, or some of them.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ConfigError("frame() needs pandas: pip install pandas") from None
    return pd.DataFrame(rows)


def cell(interval: Row | None, digits: int, factor: float = 1) -> Cell:
    """A mean with its interval; a dash where there is none."""
    if interval is None:
        return Cell("–")
    text = f"{interval['mean'] * factor:z.{digits}f}"
    if interval["low"] is None:
        return Cell(text)
    return Cell(text, f"{interval['low'] * factor:z.{digits}f} … {interval['high'] * factor:z.{digits}f}")


def _table(title: str, note: str, head: str, named: Mapping[str, Row], columns: Sequence[tuple]) -> Table:
    used = [column for column in columns if any(column[0] in entry for entry in named.values())]
    rows = [
        [Cell(name), *(cell(entry.get(key), digits, factor) for key, _, digits, factor in used)]
        for name, entry in named.items()
    ]
    return Table(title, note, [head, *(heading for _, heading, _, _ in used)], rows)


def comparison_tables(comparison: Row) -> list[Table]:
    """The overall table, one over groups of prompts where there are any, and the hypervolumes.

    Args:
        comparison: what `comparison.json` holds.
    """
    units = UNITS[comparison["task"]]
    settings = comparison["settings"]
    counts = sorted({entry["runs"] for entry in settings.values()})
    spread = "mean, and below it the 95 % t interval over "
    alone = f"{units.prompts}: how this policy does, not how training does"
    spread += alone if counts == [1] else f"seeds, of one seed over {alone}" if 1 in counts else "seeds"
    limits = [entry["cost_limit"] for entry in settings.values()]
    limit = f"; cost limit {limits[0]:g}" if len(set(limits)) == 1 and limits[0] is not None else ""
    overall = {label: entry["metrics"] for label, entry in settings.items()}
    drawn = sorted({seed for entry in settings.values() for seed in entry["evaluation_seeds"]})
    own = all(entry["evaluation_seeds"] == entry["seeds"] for entry in settings.values())
    seed = "" if own else f"; evaluation seed {', '.join(map(str, drawn))}"
    note = f"Evaluation {units.prompts}; {spread}{limit}{seed}."
    if comparison.get("left_out"):
        note += f" {left_out_note(comparison['left_out'])}."
    note += environments_note(comparison["environments_differ_in"])
    columns = [(key, units.rate if key == "tokens_per_second" else heading, *rest) for key, heading, *rest in COLUMNS]
    tables = [_table("Comparison", note, "algorithm", overall, columns)]
    if len(set(limits)) > 1:  # each row's violation is of its own
        place = tables[0].columns.index("violation")
        tables[0].columns.insert(place, "cost limit")
        for row, value in zip(tables[0].rows, limits, strict=True):
            row.insert(place, Cell("–" if value is None else f"{value:g}"))
    place = tables[0].columns.index("violation" if "violation" in tables[0].columns else "cost") + 1
    for name in reversed(list(dict.fromkeys(name for entry in settings.values() for name in entry["costs"]))):
        tables[0].columns[place:place] = [f"cost {name}", f"limit {name}", f"violation {name}"]
        for row, entry in zip(tables[0].rows, settings.values(), strict=True):
            known, own = entry["cost_limits"].get(name), entry["costs"].get(name, {})
            row[place:place] = [
                cell(own.get("cost"), 2), Cell("–" if known is None else f"{known:g}"),
                cell(own.get("cost_violation"), 2),
            ]  # fmt: skip
    if frontier := comparison.get("frontier"):
        beta, place = frontier["kl_coefficient"], tables[0].columns.index("violation") + 1
        tables[0].columns[place:place] = ["attainable, %", "own problem, %"]
        for row, entry in zip(tables[0].rows, settings.values(), strict=True):
            row[place:place] = [attainable_cell(entry[key]) for key in ("attainable", "attainable_of_own")]
        note = f" Attainable: of reward - {beta:g}·KL from the untrained policy to the best that keeps the limit."
        note += " Own problem: to the best policy for the problem that the algorithm states."
        tables[0] = replace(tables[0], note=tables[0].note + note + attainable_doubt(frontier))
    read = {key for key in comparison["units"] for entry in settings.values() if entry.get(key)}
    for key, heading in (*((key, key) for key in reversed(comparison["units"])), ("episodes", units.episodes)):
        counts = [entry.get(key) or 0 for entry in settings.values()]
        if any(counts) or (key == "episodes" and read):  # both budgets are stated, the one of 0 as well
            tables[0].columns.insert(1, heading)
            for row, count in zip(tables[0].rows, counts, strict=True):
                row.insert(1, Cell(str(count)))
    groups = list(dict.fromkeys(group for entry in settings.values() for group in entry["groups"]))
    by_group = {
        f"{group} · {label}": entry["groups"][group]
        for group in groups
        for label, entry in settings.items()
        if group in entry["groups"]
    }
    if by_group:
        tables.append(
            _table("By group of prompts", f"As above: {spread}.", "group · algorithm", by_group, GROUP_COLUMNS)
        )
    tables.append(pareto_table(comparison["pareto"], units))
    return tables


def attainable_cell(share: Row | None) -> Cell:
    """A share of what is attainable in %; of a policy that is above the limit there is none."""
    if share is not None and share["above_limit"]:
        return Cell("above the limit")
    return cell(share, 0)


def attainable_doubt(frontier: Row) -> str:
    """A sentence to go on with, where the frontier rests on too few samples."""
    if frontier["trusted"]:
        return ""
    size = frontier["at_limit"]["effective_sample_size"]
    return f" That rests on {size:.1f} effective samples a prompt, too few: more may be attainable than 100 %."


def left_out_note(left_out: Mapping[str, Sequence[str]]) -> str:
    """One line about settings that were given for all algorithms and that some do not have.

    Args:
        left_out: from the setting to these algorithms.
    """
    return "; ".join(f"{key} is not a setting of {', '.join(names)}" for key, names in left_out.items())


def environments_note(arguments: Sequence[str]) -> str:
    """A sentence to go on with, about the environments' arguments that are not the same in all runs, if any."""
    return (
        f" The environments differ in {', '.join(arguments)}: rewards and costs may not compare." if arguments else ""
    )


def repeated_over(pareto: Row, units: Units) -> str:
    """What the intervals of `pareto.analyse` are over."""
    return units.prompts if pareto["over"] == "prompts" else "seeds"


def pareto_table(pareto: Row, units: Units) -> Table:
    """Each algorithm's hypervolume with its interval and the number of runs it rests on."""
    reference = pareto["reference"]
    note = (
        f"Area of (reward, cost) dominated by an algorithm's settings, up to the reference point reward "
        f"{reference['reward']:.2f}, cost {reference['cost']:.2f}; 95 % bootstrap interval over "
        f"{repeated_over(pareto, units)}. "
    )
    note += "Equal numbers of runs." if pareto["equal_runs"] else "The numbers of runs differ: compare with care."
    rows = [
        [
            Cell(name),
            cell({"mean": entry["hypervolume"], "low": entry["low"], "high": entry["high"]}, 3),
            Cell(str(entry["settings"])),
            Cell(str(entry["runs"])),
        ]
        for name, entry in pareto["algorithms"].items()
    ]
    columns = ["algorithm", "hypervolume", "settings", "runs"]
    if any("igd_plus" in entry for entry in pareto["algorithms"].values()):
        note += " IGD+: how far the settings fall short of what is attainable, on average over the frontier."
        columns.insert(2, "IGD+")
        for row, entry in zip(rows, pareto["algorithms"].values(), strict=True):
            row.insert(2, cell(entry["igd_plus"], 3))
    return Table("Hypervolume", note, columns, rows)


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[str, str, Path]],
    samples: Sequence[Row],
    command: str,
    settings: str,
) -> None:
    """One HTML file that needs no other.

    Args:
        path: of the file.
        title: heading.
        subtitle: one line below it.
        tables: shown first.
        figures: title, note and PNG of each.
        samples: rows with prompt, label, response, reward, cost, and group where prompts have groups.
        command: repeats the work.
        settings: YAML text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    versions = {name: metadata.version(name) for name in ("gymnasium", "torch", "transformers", "numpy")}
    html = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        tables=tables,
        figures=[
            {"title": name, "note": note, "data": base64.b64encode(png.read_bytes()).decode()}
            for name, note, png in figures
        ],
        samples=samples,
        command=command,
        settings=settings,
        versions=", ".join(f"{name} {number}" for name, number in {"textsafe-gym": version(), **versions}.items()),
    )
    write_text(path, html)
