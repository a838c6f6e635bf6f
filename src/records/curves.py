"""The measurements of training runs at each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.records.identity import FINETUNE, TRAIN
from tinymem.records.table import identity_columns


@dataclass(frozen=True)
class Curve:
    """One training or fine-tuning run.

    settings    the run's columns (data.seed, training.lr, method.name ...), kind and versions
    rows        one per measured epoch, with `epoch`; fine-tunings also have `seconds`: training time since the start
    """

    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def run(self) -> str:
        """The kind of run: train or finetune."""
        return self.settings["kind"]


def training_curves(folder: str | Path, records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Curve]:
    """Return the curves of all training and fine-tuning runs among records, in their order.

    records: pairs (path relative to `folder`, record). Rows come from the metrics.json in the run's folder. If that is
    gone, they come from the record, which has only the last row. For a run that was extended, the longest record
    counts. Raise UserError for a damaged file.
    """
    longest: dict[tuple[Path, str], tuple[int, Curve]] = {}
    for name, record in records:
        if record["kind"] not in (TRAIN, FINETUNE):
            continue
        run, settings = (Path(folder) / name).parent.parent, identity_columns(record)
        epochs = settings["method.ft_epochs" if record["kind"] == FINETUNE else "training.epochs"]
        key = (run if (run / "metrics.json").exists() else Path(name), record["kind"])
        if key not in longest or longest[key][0] < epochs:
            longest[key] = epochs, Curve(settings, _rows(run, record, epochs))
    return [curve for _, curve in longest.values()]


def _rows(run: Path, record: Mapping[str, Any], epochs: int) -> list[dict[str, Any]]:
    path = run / "metrics.json"
    rows = files.read_json(path) if path.exists() else [{"epoch": epochs, **record["results"]}]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "epoch" in row for row in rows):
        raise UserError(f"{path}: this file is damaged (no list of measured epochs); delete it and train again")
    spent = [0.0, *accumulate(record["results"].get("epoch_seconds") or ())]
    rows = [row for row in rows if row["epoch"] <= epochs]
    return [{**row, "seconds": spent[row["epoch"]]} if row["epoch"] < len(spent) > 1 else row for row in rows]
