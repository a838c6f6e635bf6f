"""The leaderboard's page: its tables, curves and examples, as `tinymem.pages.leaderboard` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinymem.leaderboard.board import ABSENT, TWIN, UNEDITED, Row, averaged_under_attack
from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.entrants import SUBMISSION
from tinymem.leaderboard.evidence import Evidence
from tinymem.leaderboard.names import COMMAND, MEANINGS, NAMES, within
from tinymem.metrics.examples import Span
from tinymem.metrics.registry import describe
from tinymem.pages import leaderboard as shown
from tinymem.pages.side_by_side import Text, Written
from tinymem.records.identity import NEVER_PLANTED, record_digest

NOTE = (
    "Every mitigation gets the same models and the same number of settings to try. It is judged on sequences that it "
    "never saw, then attacked. The never-planted twin, which was never trained on the sequences to forget, scores 1.",
    "Intervals: 95 %, from a hierarchical bootstrap over seeds and sequences. Ranks ignore differences that may be 0.",
)
LOWER = ("seconds", "peak_memory_gb")


@dataclass
class Page:
    """Collects the tables of a leaderboard and writes them as one page."""

    cases: list[shown.Case] = field(default_factory=list)
    columns: dict[str, shown.Measure] = field(default_factory=dict)
    rows: dict[str, list[shown.Entry]] = field(default_factory=dict)

    def add(self, case: Case, limit: float, board: Sequence[Row], found: Evidence, remarks: Sequence[str]) -> None:
        """Add the table of a case at a limit. remarks: sentences on it."""
        bound = within(case, limit)
        name = f"{case.name}, {bound}"
        about = f"{case.description}. Each row: the mitigation's trial that forgets most {bound}."
        self.cases.append(shown.Case(name, " ".join([about, *remarks]), "relative to the twin's"))
        bounds = {row.name: averaged_under_attack(row, found) for row in board if row.name in (TWIN, UNEDITED)}
        self.rows[name] = [self._entry(row, board, bounds, found) for row in board if row.note not in ABSENT]

    def write(self, path: Path) -> None:
        """Write the page, a single file that needs no network."""
        board = shown.Board(
            "Leaderboard", NOTE, self.cases, list(self.columns.values()), self.rows, (COMMAND,), "forget", "useful"
        )
        shown.write_leaderboard(board, path)

    def _entry(self, row: Row, board: Sequence[Row], bounds: Mapping[str, Any], found: Evidence) -> shown.Entry:
        values = {}
        for name, figure in row.figures.items():
            self._column(name)
            if figure:
                values[NAMES.get(name, name)] = shown.Value(figure.value, figure.low, figure.high)
        for name, value in (*row.plain.items(), ("trials", float(row.trials) if row.trials else None)):
            self._column(name)
            if value is not None:
                values[NAMES.get(name, name)] = shown.Value(value)
        marks = [*([row.note] if row.note else []), *["cost given by hand"] * (row.group == SUBMISSION)]
        setting = "; ".join(filter(None, [row.setting, f"needs: {row.needs}" if row.needs else ""]))
        rank = None if row.rank is None else "–".join(map(str, dict.fromkeys(row.rank)))
        name = NEVER_PLANTED if row.name == TWIN else row.name
        return shown.Entry(
            name,
            row.group,
            setting,
            values,
            rank,
            not row.note,
            marks,
            _curves(row, bounds, found),
            _texts(row, board, found),
        )

    def _column(self, name: str) -> None:
        """Add a column. For metrics, the registry gives its meaning, unit and direction."""
        metric, label = describe(name), NAMES.get(name, name)
        if metric:
            better = metric.better if metric.better in ("lower", "higher") else None
            measure = shown.Measure(label, metric.meaning, "" if "%" in label else metric.unit, better)
        else:
            better = None if name == "trials" else "lower" if name in LOWER else "higher"
            measure = shown.Measure(label, MEANINGS.get(name, ""), "s" if name == "seconds" else "", better)
        self.columns.setdefault(label, measure)


def _curves(row: Row, bounds: Mapping[str, Any], found: Evidence) -> dict[str, shown.Recovered]:
    """Return what each attack brings back, mean over seeds, also for the twin and the unedited model."""
    model = averaged_under_attack(row, found)
    if model is None or row.name in bounds:
        return {}

    def points(other: Any, curve: Any) -> tuple[tuple[float | None, float], ...]:
        same = other.curve(curve) if other else None
        return tuple(same.points) if same else ()

    return {
        curve.attack: shown.Recovered(
            curve.points, points(bounds.get(TWIN), curve), points(bounds.get(UNEDITED), curve), curve.strength
        )
        for curve in model.curves
    }


def _texts(row: Row, board: Sequence[Row], found: Evidence) -> list[Text]:
    """Return what the first seed's models write: the unedited model, the row's, and the twin."""
    if not row.records or row.name in (TWIN, UNEDITED):
        return []
    ends = {other.name: other.records[0] for other in board if other.name in (TWIN, UNEDITED)}
    models = {"before": ends[UNEDITED], "after": row.records[0], "twin": ends[TWIN]}
    kept = {column: found.examples.get(record_digest(record), []) for column, record in models.items()}
    return [
        Text(
            after["prompt"],
            after["planted"],
            {column: _written(some[place]) for column, some in kept.items() if len(some) > place},
        )
        for place, after in enumerate(kept["after"])
    ]


def _written(example: Mapping[str, Any]) -> Written:
    about = example["written"]
    spans = tuple(Span(text, differs) for text, differs in about["spans"])
    return Written(spans, about["first"], about["agreeing"], about["length"])
