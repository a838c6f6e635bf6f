"""The measurements of training runs at each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.inputs import AGAIN, check_value
from tinymem.records.identity import FINETUNE, TRAIN
from tinymem.records.record import result_problem
from tinymem.records.table import identity_columns

EPOCHS = {TRAIN: "training.epochs", FINETUNE: "method.ft_epochs"}  # kind of run -> the setting of its length


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
    """Return the curves of all training and fine-tuning runs among records, in their order; copies count once.

    records: pairs (path relative to `folder`, record). Rows come from the metrics.json in the run's folder. If that is
    gone, they come from the record, which has only the last row. For a run that was extended, the longest record
    counts. Raise UserError for a damaged file.
    """
    longest: dict[tuple[Path, str], tuple[int, Curve]] = {}
    for name, record in records:
        if record["kind"] not in EPOCHS:
            continue
        run, settings = (Path(folder) / name).parent.parent, identity_columns(record)
        place = Path(folder) / name
        for column in ("model.n_layers", EPOCHS[record["kind"]]):  # figures need them
            epochs = check_value(settings.get(column), int, column, place)
        key = (run if (run / "metrics.json").exists() else Path(name), record["kind"])
        if key not in longest or longest[key][0] < epochs:
            longest[key] = epochs, Curve(settings, _rows(run, record, epochs, place))
    unique: list[Curve] = []
    for _, curve in longest.values():
        if curve not in unique:
            unique.append(curve)
    return unique


def check_rows(rows: Any, path: Path, remedy: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics. Raise UserError unless each is an object with its epoch and valid results."""
    check_value(rows, list[dict[str, Any]], "rows", path, remedy)
    for row in rows:
        epoch = check_value(row.get("epoch"), int, "epoch", path, remedy)
        problem = f"{epoch} is below 0" if epoch < 0 else result_problem(row, math.inf)
        if problem:
            raise UserError(f"{path}: this file is damaged (epoch {epoch}: {problem}); {remedy}")
    return rows


def _rows(run: Path, record: Mapping[str, Any], epochs: int, place: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.json, or else of the record, up to `epochs`. place: the record's file."""
    path, results = run / "metrics.json", record["results"]
    if path.exists():
        rows = check_rows(files.read_json(path), path, "delete it and train again")
    else:
        rows = check_rows([{"epoch": epochs, **results}], place, AGAIN)
    seconds = check_value(results.get("epoch_seconds"), list[float] | None, "results.epoch_seconds", place)
    spent = [0.0, *accumulate(seconds or ())]
    rows = [row for row in rows if row["epoch"] <= epochs]
    return [{**row, "seconds": spent[row["epoch"]]} if row["epoch"] < len(spent) > 1 else row for row in rows]
