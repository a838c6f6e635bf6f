"""Tables of a page: what cells show, and how they are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinymem.records.interval import fixed

NONE = "–"


@dataclass(frozen=True)
class Column:
    """The head of a column.

    meaning   its tooltip
    better    "lower" or "higher": a first click puts the best row on top; "": neither
    number    whether cells are sorted as numbers and aligned at the right
    """

    name: str
    unit: str = ""
    meaning: str = ""
    better: str = ""
    number: bool = True


@dataclass(frozen=True)
class Badge:
    """A short remark after a cell's text. tone: "", "good" or "warn"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    value: the sort key; None: always last. below: a smaller line, such as an interval. link: the id of a place in the
    page. meaning: its tooltip.
    """

    text: str = NONE
    value: float | str | None = None
    below: str = ""
    badges: tuple[Badge, ...] = ()
    link: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Row:
    """A row. kind: "", "winner", "anchor" (a reference) or "out" (not a candidate). group, case: for filtering."""

    cells: tuple[Cell, ...]
    kind: str = ""
    group: str = ""
    case: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered.

    name: for screen readers. groups: the groups to choose from. search: whether it can be filtered at all.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    groups: tuple[str, ...] = ()
    search: bool = True

    @property
    def filter(self) -> bool:
        """Whether the table has a filter. Short tables need none."""
        return self.search and len(self.rows) > 3


def words(
    text: str | None, badges: Sequence[Badge] = (), link: str = "", meaning: str = "", below: str | None = None
) -> Cell:
    """Return a cell that is sorted by its text. below: a second, smaller line."""
    return Cell(text or NONE, text, below or "", tuple(badges), link, meaning)


def number(value: float | None, unit: str = "", below: str = "") -> Cell:
    """Return a cell of a number, rounded according to its unit, sorted by its full value."""
    return Cell() if value is None else Cell(rounded(value, unit), float(value), below)


def rounded(value: float, unit: str = "") -> str:
    """Return a number for display, with decimals according to its unit and size."""
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.2g}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    decimals = min(decimals, {"%": 1, "s": 1, "GB": 2}.get(unit, 3))
    return "0" if not value else fixed(value, decimals)
