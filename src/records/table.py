"""Records gathered into rows and tables. Tables are made from records, never kept beside them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.folders import found_under
from tinymem.records.identity import ATTACK, SECTIONS, UNEDITED
from tinymem.records.record import OUTCOME, read_record

Rows = Sequence[Mapping[str, Any]]
TABLE_FORMATS = (".csv", ".parquet")


def find_records(folder: str | Path) -> list[Path]:
    """The files of all records at any depth under a folder, in the order of their paths."""
    found = (path for path in found_under(folder) if path.suffix == ".json")
    return sorted((path for path in found if path.parent.absolute().name == "records"), key=str)


def load_records(folder: str | Path) -> list[dict[str, Any]]:
    """Every record at any depth under a folder, in the order of their paths; empty when there is none.

    UserError for a damaged record, with the name of its file.
    """
    return [read_record(path) for path in find_records(folder)]


def columns_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a record as columns by part: kind and parent, then SECTION.NAME, results, cost.NAME, environment.NAME.

    Results keep their plain names: metrics. No two parts share a column.
    """
    parts: dict[str, dict[str, Any]] = {"": {"kind": record["kind"], "parent": record.get("parent")}}
    for part in (*SECTIONS, *OUTCOME):
        prefix = "" if part == "results" else f"{part}."
        parts[part] = {f"{prefix}{name}": value for name, value in record.get(part, {}).items()}
    return parts


def flat_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as one row: all its columns side by side, as `columns_of` names them."""
    return {name: value for part in columns_of(record).values() for name, value in part.items()}


def identity_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that say what a run is: its kind, its sections and its versions."""
    parts = columns_of(record)
    sections = {name: value for section in SECTIONS for name, value in parts[section].items()}
    return {"kind": record["kind"], **sections, "versions": versions(record)}


def method_of(row: Mapping[str, Any]) -> str:
    """Return what stands for the method in tables and figures: its name, or "unedited", "never_planted"."""
    kind = UNEDITED if row["kind"] == ATTACK else row["kind"]  # an attack on the model as it was
    return row.get("method.name") or kind


def shown_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run as people look at it, under short names: method, its settings, results and cost."""
    settings = {name: value for name, value in record.get("method", {}).items() if name != "name"}
    attack = {"attack": spelled_attack(record)} if record.get("attack") else {}
    return {"method": method_of(flat_row(record)), **settings, **attack, **record["results"], **record["cost"]}


def spelled_attack(record: Mapping[str, Any]) -> str:
    """Return an attack with its settings in a few words: "quantize bits 8"."""
    settings = {name: value for name, value in record["attack"].items() if name not in ("name", "code")}
    return " ".join([record["attack"]["name"], *(f"{name} {value}" for name, value in settings.items())])


def versions(record: Mapping[str, Any]) -> str:
    """What decides a record's numbers beside its identity: "tinymem 0.1.0, torch 2.13.0, transformers 5.23.0".

    Without build tags (torch 2.13.0+cpu): the column `environment.device` tells these apart.
    """
    found = record["environment"]
    packages = ("tinymem", "torch", "transformers")
    return ", ".join(f"{name} {str(found.get(name, 'unknown')).partition('+')[0]}" for name in packages)


def mixed_versions(found: Iterable[str]) -> str | None:
    """One line for people when records come from several versions, else None. found: `versions` of every record."""
    counts = Counter(found)
    if len(counts) < 2:
        return None
    each = "; ".join(f"{count} of {name}" for name, count in counts.most_common())
    return f"records of {len(counts)} versions, kept apart (column `versions`): {each}"


def scalar(value: Any) -> Any:
    """A list or mapping as JSON text, fit for a cell of a table or a key of a dictionary; other values as they are."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def named_records(folder: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path relative to the folder, record) of every record under a folder. UserError when there is none."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give one that runs were written to, such as runs")
    paths = find_records(folder)
    if not paths:
        raise UserError(f"{folder}: no records in this folder or below it; a finished run leaves one in records/")
    for path in paths:
        yield str(path.relative_to(folder)), read_record(path)


def check_table_path(path: str | Path) -> Path:
    """UserError unless a table can be written under this name. Call it before the work starts."""
    if Path(path).suffix not in TABLE_FORMATS:
        raise UserError(f"--output {path}: the name must end in {' or '.join(TABLE_FORMATS)}")
    return Path(path)


def write_table(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Writes rows as CSV or Parquet, by the ending of the name. columns: those to write, in order; else all."""
    return (write_csv if check_table_path(path).suffix == ".csv" else write_parquet)(path, rows, columns)


def write_csv(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Writes rows as CSV; a value that a row does not have is an empty cell."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns or _columns(rows), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    return files.write_file(path, write)


def write_parquet(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Writes rows as Parquet. A column whose values are not all of one type (numbers count as one) becomes text."""
    import pyarrow
    from pyarrow import parquet

    def column(name: str):
        values = [row.get(name) for row in rows]
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            return pyarrow.array([None if value is None else str(value) for value in values])

    table = pyarrow.table({name: column(name) for name in columns or _columns(rows)})
    return files.write_file(path, lambda temporary: parquet.write_table(table, temporary))


def markdown(head: Sequence[str], lines: Iterable[Iterable[str]], numbers: bool = False) -> str:
    """A Markdown table: its head and the cells of each line, as text. numbers: all but the first column stand right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def trade_off(row: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """(change in fraction memorized) - (mean change in accuracy) against the model before; lower is better.

    The study's measure of number models. The mean is over the test sets; 1.0 memorized counts like 1.0 accuracy.
    """
    forgotten = (row["percent_memorized_train"] - before["percent_memorized_train"]) / 100
    return forgotten - (row["mean_test_accuracy"] - before["mean_test_accuracy"])
