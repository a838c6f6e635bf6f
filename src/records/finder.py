"""Finished runs, found by some of their settings and without loading anything but their records."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymem.records.record import read_record
from tinymem.records.table import flat_row, load_records


def rows_with(folder: str | Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The finished runs at any depth under a folder with these settings, and whatever others, as rows."""
    return [row for row in map(flat_row, load_records(folder)) if settings.items() <= row.items()]


def records_in(folder: str | Path) -> list[dict[str, Any]]:
    """The records right in a folder, in the order of their paths. Do not change them: a file is read once.

    Meant to be called again and again while runs finish. UserError for a damaged file.
    """
    try:
        with os.scandir(Path(folder) / "records") as entries:
            found = sorted((e.path, e.stat().st_mtime_ns) for e in entries if e.name.endswith(".json"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_read(path, changed) for path, changed in found]


@functools.lru_cache(maxsize=None)
def _read(path: str, changed: int) -> dict[str, Any]:
    return read_record(Path(path))
