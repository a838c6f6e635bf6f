"""Tables as text, no wider than the terminal, with the best value of each column marked."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PIPED = 120  # width in characters without a terminal
BEST = "*"
LONGEST = 40  # characters of a cell when a table is too wide
SHORT = (
    ("_never_planted", "_non_members"),
    ("percent_", ""),
    ("memorized", "mem"),
    ("accuracy", "acc"),
    ("perplexity", "ppl"),
)


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Return rows as aligned text. Floats have up to four decimals; missing values are "-"."""
    rows = list(rows)
    columns = list(columns) if columns else list(dict.fromkeys(name for row in rows for name in row))
    return _aligned(columns, [[cell(row.get(name)) for name in columns] for row in rows])


def fitted_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    better: Mapping[str, str],
    is_rival: Sequence[bool] | None = None,
    width: int | None = None,
    more: str = "--columns all shows them",
) -> str:
    """Return rows as aligned text, no wider than the terminal, with short column names. Long cells are cut to fit.

    columns    most important first; the last ones are left out until the table fits, and listed below it
    better     column -> "lower" or "higher": the best value is marked with *
    is_rival   selects the rows that compete for the mark; default: all
    more       says where to find the columns that are left out
    """
    width = width or shutil.get_terminal_size((PIPED, 24)).columns
    present = [name for name in columns if any(row.get(name) is not None for row in rows)]
    cells = {name: _marked(rows, name, better.get(name), is_rival or [True] * len(rows)) for name in present}
    if _width(present, cells) > width:
        cells = {name: [_cut(text) for text in some] for name, some in cells.items()}
    kept = list(present)
    while len(kept) > 1 and _width(kept, cells) > width:
        kept.pop()
    text = _aligned([short(name) for name in kept], [[cells[name][i] for name in kept] for i in range(len(rows))])
    hidden = [short(name) for name in present if name not in kept]
    notes = [f"{BEST} best in its column"] * any(text.endswith(BEST) for name in kept for text in cells[name])
    notes += [f"left out: {', '.join(hidden)} ({more})"] * bool(hidden)
    return text + "".join(f"\n{note}" for note in notes)


def brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with short column names for a terminal; files have the full names."""
    return {short(name): value for name, value in row.items()}


def short(name: str) -> str:
    """Return a column's short name for a terminal."""
    name = "method" if name == "method.name" else name.removeprefix("method.").removeprefix("cost.")
    for long, shorter in SHORT:
        name = name.replace(long, shorter)
    return name


def cell(value: Any) -> str:
    """Return a value as text for a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1000 else f"{value:.4g}"
    return str(value)


def _cut(text: str) -> str:
    """Return a text, cut if it is too long, to leave room for the numbers next to it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _marked(rows: Sequence[Mapping[str, Any]], name: str, better: str | None, is_rival: Sequence[bool]) -> list[str]:
    """Return the cells of a column. If the rivals' values differ, the best one is marked."""
    values = [row.get(name) for row in rows]
    rivals = [value for value, rival in zip(values, is_rival) if rival and isinstance(value, (int, float))]
    if better not in ("lower", "higher") or len(set(rivals)) < 2:
        return [cell(value) for value in values]
    best = min(rivals) if better == "lower" else max(rivals)
    return [cell(value) + (BEST if rival and value == best else "") for value, rival in zip(values, is_rival)]


def _width(names: Sequence[str], cells: Mapping[str, Sequence[str]]) -> int:
    return sum(max(len(short(name)), *map(len, cells[name]), 1) for name in names) + 2 * (len(names) - 1)


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines with cells of equal width per column; a mark follows its number, so that digits stay aligned."""
    columns = list(zip(*lines)) if lines else [()] * len(head)
    marked = [any(text.endswith(BEST) for text in column) for column in columns]
    padded = [
        [text if text.endswith(BEST) or not some else text + " " for text in column]
        for column, some in zip(columns, marked)
    ]
    widths = [max(len(name), *map(len, column), 1) for name, column in zip(head, padded)]
    text = ["  ".join(name.rjust(width) for name, width in zip(head, widths))]
    text += ["  ".join(value.rjust(width) for value, width in zip(line, widths)) for line in zip(*padded)]
    return "\n".join(text)
