"""The page of a leaderboard: methods compared on several models, with what attacks recover and what models write.

This module only shows the values of a `Board`, which are computed elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinymem.pages import charts, render
from tinymem.pages.charts import EDITED, Axis, Chart, Mark
from tinymem.pages.names import display_name, plain
from tinymem.pages.report_charts import Point, recovery_chart
from tinymem.pages.side_by_side import LEGEND, Text
from tinymem.pages.tables import Badge, Cell, Column, Row, Table, number, rounded, words
from tinymem.records.choose import pareto_front
from tinymem.records.identity import NEVER_PLANTED, UNEDITED

ANCHOR = "anchor"  # the group of rows that are references, not rivals
TEXTS = 3  # prompts shown per row: a page of hundreds of rows must stay readable


@dataclass(frozen=True)
class Case:
    """A model with a task. description: sentences. unit: of utility, such as "accuracy"."""

    name: str
    description: str
    unit: str


@dataclass(frozen=True)
class Measure:
    """A column. unit: such as "%", "0 to 1", "s". direction: "lower", "higher", or None if neither is better."""

    name: str
    meaning: str
    unit: str = ""
    direction: str | None = None


@dataclass(frozen=True)
class Value:
    """A value with the ends of its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Recovered:
    """What an attack recovers: (strength, percent), weak to strong; a strength of None is no attack.

    strength: the name of the varied setting; None: the attack has no strength. original: the unedited model's, if
    known.
    """

    points: Sequence[Point]
    twin: Sequence[Point] = ()
    original: Sequence[Point] = ()
    strength: str | None = None

    @property
    def worst(self) -> tuple[Point, float | None]:
        """The point that exceeds the twin most, and by how much; without a twin the highest point, and None."""
        bounds = dict(self.twin)
        over = [
            (percent - bounds[strength], (strength, percent)) for strength, percent in self.points if strength in bounds
        ]
        if not over:
            return max(self.points, key=lambda point: point[1]), None
        excess, point = max(over, key=lambda pair: pair[0])
        return point, excess


@dataclass(frozen=True)
class Entry:
    """A row: a method, or an anchor, on one case.

    method     its name; `unedited` and `never_planted` are the original and its twin
    group      study, objective, curvature, submission ..., or ANCHOR
    setting    the chosen hyper-parameters, as text
    values     by the name of the column; missing ones are shown as missing
    rank       such as "1" or "2–4"; None for an anchor
    qualified  whether a trial kept the utility limit
    marks      short remarks, such as "given by hand"
    curves     by the name of the attack
    texts      what the models write; the first TEXTS are shown
    """

    method: str
    group: str
    setting: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    rank: str | None = None
    qualified: bool = True
    marks: Sequence[str] = ()
    curves: Mapping[str, Recovered] = field(default_factory=dict)
    texts: Sequence[Text] = ()


@dataclass(frozen=True)
class Board:
    """A leaderboard. Rows are shown in the given order.

    note      paragraphs of plain text
    rows      by the name of the case
    commands  commands that make the leaderboard
    forget, utility    the names of the columns in the scatter
    """

    title: str
    note: Sequence[str]
    cases: Sequence[Case]
    columns: Sequence[Measure]
    rows: Mapping[str, Sequence[Entry]]
    commands: Sequence[str] = ()
    forget: str = "forget"
    utility: str = "utility"

    def __post_init__(self) -> None:
        columns, cases = [one.name for one in self.columns], [case.name for case in self.cases]
        for what, names, known in (
            ("scatter", (self.forget, self.utility), columns),
            ("rows", self.rows, cases),
            ("values", (name for rows in self.rows.values() for row in rows for name in row.values), columns),
        ):
            if wrong := [name for name in names if name not in known]:
                raise ValueError(f"{what}: unknown {', '.join(dict.fromkeys(wrong))}; known are {', '.join(known)}")

    @property
    def entries(self) -> Iterator[tuple[Case, Entry]]:
        """Every row with its case."""
        for case in self.cases:
            for row in self.rows.get(case.name, ()):
                yield case, row


@dataclass(frozen=True)
class Detail:
    """A method on one case: what attacks recover, and what the models write."""

    case: Case
    entry: Entry
    attacks: Table | None
    panels: Sequence[Chart]
    texts: Sequence[Text]


def write_leaderboard(board: Board, path: str | Path) -> Path:
    """Write the page, a single file that needs no network. The same board gives the same bytes."""
    scatters = {case.name: _scatter(board, case) for case in board.cases}
    methods: dict[str, list[Detail]] = {}
    for number_, (case, entry) in enumerate(board.entries):
        methods.setdefault(entry.method, []).append(_detail(f"row-{number_}", case, entry))
    panels = [chart for details in methods.values() for detail in details for chart in detail.panels]
    return render.write_page(
        path,
        "leaderboard.html",
        charts=[*(chart for chart in scatters.values() if chart), *panels],
        board=board,
        table=_table(board),
        scatters=scatters,
        methods=methods,
        place=place,
        display_name=display_name,
        legend=LEGEND,
    )


def place(method: str) -> str:
    """Return the id of a method's section."""
    return "method-" + re.sub(r"\W+", "-", method)


def _table(board: Board) -> Table:
    several = len(board.cases) > 1
    columns = [
        Column("method", number=False),
        Column("rank", meaning="on its model; ties share a range", better="lower"),
    ]
    columns += [Column(plain(one.name), one.unit, one.meaning, one.direction or "") for one in board.columns]
    columns += [Column("group", number=False)]
    columns += [Column("model", number=False)] if several else []
    rows = []
    for case, entry in board.entries:
        badges = [Badge(mark) for mark in entry.marks]
        badges += [] if entry.qualified else [Badge("does not qualify", "warn")]
        cells = [words(display_name(entry.method), badges, place(entry.method), below=entry.setting), _rank(entry.rank)]
        cells += [*(_cell(entry.values.get(one.name), one.unit) for one in board.columns), words(entry.group)]
        cells += [words(case.name.replace("_", " "))] if several else []
        rows.append(Row(tuple(cells), _kind(entry), entry.group, case.name))
    groups = tuple(dict.fromkeys(entry.group for _, entry in board.entries))
    return Table("the leaderboard", tuple(columns), tuple(rows), groups)


def _rank(rank: str | None) -> Cell:
    first = re.match(r"\d+", rank or "")
    return Cell(rank, int(first[0]) if first else None) if rank else Cell()


def _kind(entry: Entry) -> str:
    """Return the kind of a row. All rows that share the first rank lead."""
    if entry.group == ANCHOR or not entry.qualified:
        return "anchor" if entry.group == ANCHOR else "out"
    return "winner" if re.match(r"1\b", entry.rank or "") else ""


def _cell(value: Value | None, unit: str) -> Cell:
    if value is None:
        return Cell()
    known = value.low is not None and value.high is not None
    return number(value.value, unit, _interval(value, unit) if known else "")


def _interval(value: Value, unit: str) -> str:
    return f"{rounded(value.low or 0.0, unit)} to {rounded(value.high or 0.0, unit)}"


def _scatter(board: Board, case: Case) -> Chart | None:
    """Return utility against forgetting on one case; right and up is better. None if no row has both."""
    columns = {one.name: one for one in board.columns}
    ends, marks, rivals = (columns[board.forget], columns[board.utility]), [], []
    for entry in board.rows.get(case.name, ()):
        x, y = (entry.values.get(end.name) for end in ends)
        if x is None or y is None:
            continue
        about = {"setting": entry.setting, "rank": entry.rank or ""}
        about |= {plain(n): rounded(v.value, columns[n].unit) for n, v in entry.values.items()}
        anchor = entry.group == ANCHOR
        known = {name: text for name, text in about.items() if text}
        marks.append(Mark(entry.method, x.value, y.value, known, _kind(entry) == "winner", anchor))
        rivals += [] if anchor or not entry.qualified else [(x.value, y.value)]
    if not marks:
        return None
    signs = [-1 if end.direction == "lower" else 1 for end in ends]
    front = [(-signs[0] * x, signs[1] * y) for x, y in pareto_front([(-signs[0] * x, signs[1] * y) for x, y in rivals])]
    x_axis = _axis(plain(board.forget), [mark.x for mark in marks], signs[0])
    y_axis = _axis(f"{plain(board.utility)} ({case.unit})", [mark.y for mark in marks], signs[1])
    alternative = (
        f"{plain(board.utility)} against {plain(board.forget)} of {len(marks)} models on {case.name}; "
        "the table has the numbers"
    )
    caption = (
        "Right and up is better. Ring: first or tied for first. Named: these, and qualified rows that no other beats. "
        "Grey: references."
    )
    among = {entry.method: entry.group == ANCHOR for _, entry in board.entries}
    return charts.scatter(f"scatter-{case.name}", marks, x_axis, y_axis, alternative, caption, front, among=among)


def _axis(label: str, values: Sequence[float], sign: int) -> Axis:
    """Return an axis with margins around its values, inverted if lower is better."""
    low, high = min(values), max(values)
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return Axis(label, low - room, high + room) if sign > 0 else Axis(label, high + room, low - room)


def _detail(name: str, case: Case, entry: Entry) -> Detail:
    panels, rows = [], []
    for number_, (attack, found) in enumerate(entry.curves.items()):
        lines = {UNEDITED: found.original, NEVER_PLANTED: found.twin, EDITED: found.points}
        drawn = {series: list(points) for series, points in lines.items() if points}
        panels.append(recovery_chart(f"{name}-{number_}", attack, found.strength, drawn))
        (strength, percent), excess = found.worst
        at = "no attack" if strength is None else f"{plain(found.strength or '')} {strength:g}".strip()
        rows.append(Row((words(plain(attack)), number(percent, "%"), number(excess, "%"), words(at))))
    columns = (
        Column("attack", number=False),
        Column("recovered", "%", "at the strength that exceeds the twin most", "lower"),
        Column("over the twin", "points", "at the same strength", "lower"),
        Column("at", number=False),
    )
    table = Table(f"attacks on {display_name(entry.method)}", columns, tuple(rows), search=False) if rows else None
    return Detail(case, entry, table, panels, entry.texts[:TEXTS])
