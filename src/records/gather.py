"""All records as one table, whatever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinymem.records.table import columns_of, named_records, scalar, versions


def gather(folder: str | Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The tidy table (columns, rows) of all records under a folder. UserError when there is none or one is damaged."""
    return tidy_table(named_records(folder))


def tidy_table(records: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[list[str], list[dict]]:
    """Return (columns, rows): one row per record, whatever wrote it. A row has only the columns that its record has.

    records: (name of the record, record). Lists are text. The columns of each part of a record stand side by side.
    """
    columns: dict[str, dict[str, None]] = {"first": {"record": None, "versions": None}}
    rows = []
    for name, record in records:
        row = {"record": name, "versions": versions(record)}
        for part, values in columns_of(record).items():
            row |= {sys.intern(key): scalar(value) for key, value in values.items()}  # one copy of every name
            columns.setdefault(part, {}).update(dict.fromkeys(values))
        rows.append(row)
    return [name for part in columns.values() for name in part], rows
