"""All records as one table, for every kind of run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinymem.records.identity import KINDS, record_digest
from tinymem.records.strength import strength_in
from tinymem.records.table import columns_of, named_records, scalar, versions


def gather(folder: str | Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the tidy table (columns, rows) of all records under a folder, rows by kind, method, strength, then file.

    Copies of records, such as the leaderboard's copies of published ones, are left out. Raise UserError if there are no
    records or damaged ones.
    """
    return tidy_table(sorted(_without_copies(named_records(folder)), key=_place))


def _without_copies(named: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield pairs (name, record) with distinct records, the first of each."""
    known: dict[str, list[dict[str, Any]]] = {}
    for name, record in named:
        alike = known.setdefault(record_digest(record), [])
        if record not in alike:  # the same run with other results is not a copy: it was repeated
            alike.append(record)
            yield name, record


def _place(named: tuple[str, Mapping[str, Any]]) -> tuple:
    name, record = named
    settings = record.get("method", {})
    strength = strength_in(settings)
    return KINDS.index(record["kind"]), settings.get("name", ""), strength[1] if strength else 0.0, name


def tidy_table(records: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[list[str], list[dict]]:
    """Return (columns, rows): one row per record of any kind. A row has only the columns that its record has.

    records: pairs (name, record). Lists become text. The columns of each part of a record are adjacent.
    """
    columns: dict[str, dict[str, None]] = {"first": {"record": None, "versions": None}}
    rows = []
    for name, record in records:
        row = {"record": name, "versions": versions(record)}
        for part, values in columns_of(record).items():
            row |= {sys.intern(key): scalar(value) for key, value in values.items()}  # store every name once
            columns.setdefault(part, {}).update(dict.fromkeys(values))
        rows.append(row)
    return [name for part in columns.values() for name in part], rows
