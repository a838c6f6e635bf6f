"""Bundles: one compressed file with many records, for publishing. Tables read it like a folder `records/`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinymem import files, inputs
from tinymem.errors import reading
from tinymem.folders import found_under
from tinymem.records.identity import record_digest
from tinymem.records.record import check_record

NAME = "records.jsonl.gz"
AGAIN = "make it again from its records"
DAMAGED = f"this file is damaged ({{why}}); {AGAIN}"


def find_bundles(folder: str | Path) -> list[Path]:
    """Return the bundles at any depth under a folder, in the order of their paths."""
    return sorted((path for path in found_under(folder) if path.name == NAME), key=str)


def write_bundle(folder: str | Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write FOLDER/records.jsonl.gz, one record a line, in the order of digests. Equal records give equal bytes."""
    by_digest = {record_digest(record): record for record in records}
    lines = "".join(json.dumps(by_digest[digest]) + "\n" for digest in sorted(by_digest))
    packed = gzip.compress(lines.encode(), mtime=0)
    return files.write_file(Path(folder) / NAME, lambda path: path.write_bytes(packed))


def read_bundle(path: Path) -> list[dict[str, Any]]:
    """Return the records of a bundle. Raise UserError, naming the file, if a record is damaged or of another format."""
    with reading(path, DAMAGED):
        lines = gzip.decompress(inputs.read_bytes(path)).decode().splitlines()
        records = [inputs.parse_json(line, path, AGAIN) for line in lines]
    for record in records:
        check_record(record, path, AGAIN)
    return records
