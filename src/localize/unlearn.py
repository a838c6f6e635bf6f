"""Runs one method on one model for a list of ratios: edit, measure, record, save. What all localize scripts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.localize.edit import Masks, edited, share_dropped
from tinymem.localize.registry import Method
from tinymem.localize.scores import ranked
from tinymem.localize.task import UnlearningTask
from tinymem.metrics.evaluate import Row
from tinymem.metrics.memorization import memorized, percent
from tinymem.models.adapter import find_mlps
from tinymem.records.record import Cost, find_record, measured, write_record
from tinymem.training.checkpoint import save_model


@dataclass(frozen=True)
class Subject:
    """A model under study.

    model, task    the model, left as it is, and what it is to forget
    measure(model) -> row of metrics, for the edited and the unedited model alike
    identity       settings that name model, data and task; part of every record
    folder         records/ and models/ are written here
    score_folder   scores are kept here
    """

    model: Any
    task: UnlearningTask
    measure: Callable[[Any], Row]
    identity: dict[str, Any]
    folder: Path
    score_folder: Path

    def metrics(self) -> Row:
        """What is measured, together with the part that the method never saw."""
        held_out = memorized(self.model, self.task.held_out, self.task.continuation, self.task.microbatch)
        return {**self.measure(self.model), "percent_memorized_held_out": percent(held_out)}


def unedited(subject: Subject, force: bool = False) -> dict[str, Any]:
    """The record of the model as it is."""
    settings = {**subject.identity, "method": "unedited"}
    if not force and (record := find_record(subject.folder, settings)):
        return record
    device = subject.model.device
    with measured(device) as cost:
        row = subject.metrics()
    write_record(subject.folder, settings, {**row, "percent_zeroed": 0.0}, cost, str(device))
    return find_record(subject.folder, settings)


def unlearn(
    subject: Subject, method: Method, hp, save_models: bool = True, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Applies a method for each of its ratios; yields the record of each, in the order of `hp.ratio`.

    Finished runs are not done again unless `force`. The seconds of a record are those that the method took to find
    its mask (for a ranking: to score and to drop), without the measuring.
    """
    for ratio in hp.ratio:
        settings = {**subject.identity, "method": method.name, **asdict(hp), "ratio": ratio}
        record = None if force else find_record(subject.folder, settings)
        yield record or _run(subject, method, hp, ratio, settings, save_models)


def _run(subject: Subject, method: Method, hp, ratio: float, settings: dict[str, Any], save_models: bool) -> dict:
    model, device = subject.model, subject.model.device
    with measured(device) as cost:
        masks, seconds = _masks(subject, method, hp, ratio)
        with edited(model, masks):
            row = subject.metrics()
            row |= {"percent_zeroed": 100 * share_dropped(model, masks)}
            if save_models:
                name = f"{method.name}_{ratio:g}_{files.digest(settings)[:8]}"
                folder = save_model(subject.folder / "models" / name, model, {"settings": settings})
                row |= {"model_folder": str(folder)}
    write_record(subject.folder, settings, row, Cost(seconds, cost.peak_memory_gb), str(device))
    return find_record(subject.folder, settings)


def _masks(subject: Subject, method: Method, hp, ratio: float) -> tuple[Masks, float]:
    """The masks for one ratio and the seconds that they took, scoring included when the scores came from the disk."""
    start = time.perf_counter()
    if method.learn is not None:
        masks = method.learn(subject.model, subject.task, hp, ratio)
        return masks, time.perf_counter() - start
    key = {name: subject.identity[name] for name in ("weights", "task")}
    scores, seconds = ranked(subject.model, subject.task, method, hp, max(hp.ratio), subject.score_folder, key)
    start = time.perf_counter()
    return method.drop(find_mlps(subject.model), scores, ratio), seconds + time.perf_counter() - start
