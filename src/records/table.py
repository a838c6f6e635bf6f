"""Records gathered into rows. Tables are made from records, never kept beside them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.records.record import PARTS

Rows = Sequence[Mapping[str, Any]]


def load_records(folder: str | Path) -> list[dict[str, Any]]:
    """Every record at any depth under a folder, in the order of their paths; empty when there is none."""
    return [files.read_json(path, required=PARTS) for path in sorted(Path(folder).glob("**/records/*.json"))]


def flat_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as one row: settings, results, cost and environment side by side."""
    return {**record["settings"], **record["results"], **record["cost"], **record["environment"]}


def write_csv(path: str | Path, rows: Rows) -> Path:
    """Writes rows as CSV; a value that a row does not have is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    return files.write_file(path, write)


def trade_off(row: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """(change in fraction memorized) - (mean change in accuracy) against the model before; lower is better.

    The study's measure of number models. The mean is over the test sets; 1.0 memorized counts like 1.0 accuracy.
    """
    forgotten = (row["percent_memorized_train"] - before["percent_memorized_train"]) / 100
    return forgotten - (row["mean_test_accuracy"] - before["mean_test_accuracy"])


def best_per_method(rows: Rows, before: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The run with the lowest `trade_off` of each method, in the order in which methods first appear.

    rows: finished runs of any number of methods on one model, whose own row is `before`. Among equals the run that
    zeroes least wins, whatever the order of the rows.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["method"], []).append(row)
    return [min(some, key=lambda row: (trade_off(row, before), row["percent_zeroed"])) for some in runs.values()]
