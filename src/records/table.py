"""Records gathered into rows. Tables are made from records, never kept beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinymem import files


def load_records(folder: str | Path) -> list[dict[str, Any]]:
    """Every record at any depth under a folder, in the order of their paths; empty when there is none."""
    return [files.read_json(path) for path in sorted(Path(folder).glob("**/records/*.json"))]


def flat_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as one row: settings, results, cost and environment side by side."""
    return {**record["settings"], **record["results"], **record["cost"], **record["environment"]}
