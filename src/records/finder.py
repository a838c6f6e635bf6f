"""Find finished runs by their sections, using only their records."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymem.records.identity import run_key, sections_of
from tinymem.records.record import read_record


def find_run(folder: str | Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record directly in a folder with this kind, exactly these sections and any parent, or None."""
    sections = sections_of(identity)
    same = (r for r in records_in(folder) if r["kind"] == identity["kind"] and sections_of(r) == sections)
    return next(same, None)


def records_in(folder: str | Path) -> list[dict[str, Any]]:
    """Return the records directly in a folder, in the order of their paths.

    Files are read once and cached, so do not change the records. This can be called repeatedly while runs finish. Raise
    UserError for a damaged file.
    """
    return [record for record, _ in keyed_records_in(folder)]


def keyed_records_in(folder: str | Path) -> list[tuple[dict[str, Any], tuple]]:
    """Return the records of `records_in`, each with its `run_key`."""
    try:
        with os.scandir(Path(folder) / "records") as entries:
            found = sorted((e.path, e.stat().st_mtime_ns) for e in entries if e.name.endswith(".json"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_read(path, changed) for path, changed in found]


@functools.lru_cache(maxsize=None)
def _read(path: str, changed: int) -> tuple[dict[str, Any], tuple]:
    record = read_record(Path(path))
    return record, run_key(record)
