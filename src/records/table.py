"""Rows and tables made from records. Tables are always derived from records, never stored with them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.folders import found_under
from tinymem.records.bundle import find_bundles, read_bundle
from tinymem.records.identity import ATTACK, NEVER_PLANTED, SECTIONS, TWIN_ATTACK, UNEDITED, record_digest
from tinymem.records.record import OUTCOME, read_record

Rows = Sequence[Mapping[str, Any]]
TABLE_FORMATS = (".csv", ".parquet")
TABLE_MARKS = {"versions", "method.name"}  # every table of records has one of these columns


def find_records(folder: str | Path) -> list[Path]:
    """Return the files of all records at any depth under a folder, in the order of their paths."""
    found = (path for path in found_under(folder) if path.suffix == ".json")
    return sorted((path for path in found if path.parent.absolute().name == "records"), key=str)


def load_records(folder: str | Path) -> list[dict[str, Any]]:
    """Return every record at any depth under a folder, in the order of their paths, then those in bundles.

    Raise UserError, naming the file, for a damaged record.
    """
    return [record for _, record in _all_records(folder)]


def _all_records(folder: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path relative to the folder, record) of each file, then of each record in a bundle that has no file."""
    names = set()
    for path in find_records(folder):
        names.add(path.stem)
        yield str(path.relative_to(folder)), read_record(path)
    for bundle in find_bundles(folder):
        for record in read_bundle(bundle):
            if (digest := record_digest(record)) not in names:
                names.add(digest)
                yield str(bundle.parent.relative_to(folder) / "records" / f"{digest}.json"), record


def columns_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a record as columns by part: kind and parent, then SECTION.NAME, results, cost.NAME, environment.NAME.

    Results keep the plain names of their metrics. No two parts share a column.
    """
    parts: dict[str, dict[str, Any]] = {"": {"kind": record["kind"], "parent": record.get("parent")}}
    for part in (*SECTIONS, *OUTCOME):
        prefix = "" if part == "results" else f"{part}."
        parts[part] = {f"{prefix}{name}": value for name, value in record.get(part, {}).items()}
    return parts


def flat_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as one row with all its columns, as `columns_of` names them."""
    return {name: value for part in columns_of(record).values() for name, value in part.items()}


def identity_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a run's identity: its kind, its sections and its versions."""
    parts = columns_of(record)
    sections = {name: value for section in SECTIONS for name, value in parts[section].items()}
    return {"kind": record["kind"], **sections, "versions": versions(record)}


def method_of(row: Mapping[str, Any]) -> str:
    """Return the method's label in tables and figures: its name, "unedited" or "never_planted"."""
    attacked = {ATTACK: UNEDITED, TWIN_ATTACK: NEVER_PLANTED}
    return row.get("method.name") or attacked.get(row["kind"], row["kind"])


def shown_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run for display, under short names: its method, settings, results and cost."""
    settings = {name: value for name, value in record.get("method", {}).items() if name != "name"}
    attack = {"attack": spelled_attack(record)} if record.get("attack") else {}
    return {"method": method_of(flat_row(record)), **settings, **attack, **record["results"], **record["cost"]}


def spelled_attack(record: Mapping[str, Any]) -> str:
    """Return a short description of an attack and its settings, such as "quantize bits 8"."""
    settings = {name: value for name, value in record["attack"].items() if name not in ("name", "code")}
    return " ".join([record["attack"]["name"], *(f"{name} {value}" for name, value in settings.items())])


def versions(record: Mapping[str, Any]) -> str:
    """Return the versions that affect a record's numbers: "tinymem 0.1.0, torch 2.13.0, transformers 5.23.0".

    Build tags (torch 2.13.0+cpu) are left out: the column `environment.device` distinguishes them.
    """
    found = record["environment"]
    packages = ("tinymem", "torch", "transformers")
    return ", ".join(f"{name} {str(found.get(name, 'unknown')).partition('+')[0]}" for name in packages)


def mixed_versions(found: Iterable[str]) -> str | None:
    """Return a one-line warning if records come from several versions, else None. found: `versions` of every record."""
    counts = Counter(found)
    if len(counts) < 2:
        return None
    each = "; ".join(f"{count} of {name}" for name, count in counts.most_common())
    return f"records of {len(counts)} versions, kept apart (column `versions`): {each}"


def scalar(value: Any) -> Any:
    """Return a list or mapping as JSON text, usable as a table cell or dictionary key; other values unchanged."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def check_folder(folder: str | Path) -> None:
    """Raise UserError unless this is a folder."""
    if not Path(folder).is_dir():
        what = "is a file" if Path(folder).exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder that runs were written to, such as runs")


def named_records(folder: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path relative to the folder, record) of every record under a folder. Raise UserError if there is none."""
    check_folder(folder)
    found = False
    for pair in _all_records(folder):
        found = True
        yield pair
    if not found:
        raise UserError(f"{folder}: no records in this folder or below it; a finished run leaves one in records/")


def check_table_path(path: str | Path) -> Path:
    """Raise UserError unless a table can be written under this name. Call this before the work starts."""
    if Path(path).suffix not in TABLE_FORMATS:
        raise UserError(f"--output {path}: the name must end in {' or '.join(TABLE_FORMATS)}")
    return Path(path)


def check_replaced(path: Path) -> None:
    """Raise UserError if a file exists and is no earlier table of records. Call this before the work starts."""
    if path.is_file() and path.stat().st_size and TABLE_MARKS.isdisjoint(_head(path)):
        raise UserError(f"--output {path}: exists, and is no table of records; choose another name")


def _head(path: Path) -> list[str]:
    """Return the columns of a table; none if the file is damaged or is no table."""
    with suppress(Exception):  # pyarrow has a type of its own for each kind of damage
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                return next(csv.reader(file), [])
        from pyarrow import parquet

        return parquet.read_schema(path).names
    return []


def write_table(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV or Parquet, chosen by the file's suffix; lists and mappings as JSON.

    columns: which ones to write, in order.
    """
    rows = [{name: scalar(value) for name, value in row.items()} for row in rows]
    return (write_csv if check_table_path(path).suffix == ".csv" else write_parquet)(path, rows, columns)


def write_csv(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV; missing values become empty cells."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns or _columns(rows), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    return files.write_file(path, write)


def write_parquet(path: str | Path, rows: Rows, columns: Sequence[str] | None = None) -> Path:
    """Write rows as Parquet. A column of mixed types (all numbers count as one type) becomes text."""
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
    """Return a Markdown table of a head and lines of text cells. numbers: right-align all columns but the first."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def trade_off(row: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """Return (change in fraction memorized) - (mean change in accuracy) against the unedited model; lower is better.

    This is the study's measure for number models. The mean is over the test sets; 1.0 memorized weighs as much as 1.0
    accuracy.
    """
    forgotten = (row["percent_memorized_train"] - before["percent_memorized_train"]) / 100
    return forgotten - (row["mean_test_accuracy"] - before["mean_test_accuracy"])
