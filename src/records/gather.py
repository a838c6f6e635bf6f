"""All records as one table, whatever wrote them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinymem.records.record import PARTS
from tinymem.records.table import flat_row, named_records, scalar, versions
from tinymem.training.settings import TrainingSettings


def gather(folder: str | Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The tidy table (columns, rows) of all records under a folder. UserError when there is none or one is damaged."""
    return tidy_table(named_records(folder))


def tidy_table(records: Iterable[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> tuple[list[str], list[dict]]:
    """(columns, rows): one row a record, whatever wrote it. A row has only the columns that its record has.

    records: (name of the record, record). A column has one meaning in all rows: the settings of a model's training are
    training_NAME everywhere, so that `epochs`, `lr` and `batch_size` are those of an unlearning method. Lists are text.
    The columns of each part of a record stand side by side.
    """
    training = _training_names()
    columns: dict[str, dict[str, None]] = {part: {} for part in PARTS}
    rows = []
    for name, record in records:
        if record["settings"].get("run") in ("train", "finetune", "as_published"):
            settings = {training.get(key, key): value for key, value in record["settings"].items()}
            record = {**record, "settings": settings}
        row = {"record": name, "versions": versions(record)}
        row |= {sys.intern(key): scalar(value) for key, value in flat_row(record).items()}  # one copy of every name
        rows.append(row)
        for part in PARTS:
            columns[part].update(dict.fromkeys(record[part]))
    by_part = (name for part in PARTS for name in columns[part])
    return list(dict.fromkeys(["record", "versions", *by_part, *(name for row in rows for name in row)])), rows


def _training_names() -> dict[str, str]:
    """NAME -> training_NAME for the settings of a model's training."""
    return {field.name: f"training_{field.name}" for field in dataclasses.fields(TrainingSettings)}
