"""Runs one method on one model for a list of ratios: edit, measure, record, save. What all localize scripts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinymem.localize.edit import Masks, edited, share_dropped
from tinymem.localize.registry import Method
from tinymem.localize.scores import ranked, task_fingerprint
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.evaluate import Row
from tinymem.metrics.memorization import percent, remembering
from tinymem.models.adapter import find_mlps
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.identity import NEVER_PLANTED, UNEDITED, UNLEARN, identity_of, record_digest
from tinymem.records.record import Cost, find_record, measured, write_record
from tinymem.training.checkpoint import save_model


@dataclass(frozen=True)
class Subject:
    """A model under study.

    model, task    the model, left as it is, and what it is to forget
    measure(model, check=) -> row of metrics, for the edited and the unedited model alike; check as in `evaluate`
    identity       sections that name data, model, training, forget set and their fingerprints; part of every record
    folder         records/ and models/ are written here
    score_folder   scores are kept here
    tokenizer      a text model's, saved with every edited model
    """

    model: Any
    task: UnlearningTask
    measure: Callable[..., Row]
    identity: dict[str, Any]
    folder: Path
    score_folder: Path
    tokenizer: Any = None

    def metrics(self) -> Row:
        """What is measured, together with how much is left of what the method saw and of what it never saw."""
        check = remembering(self.model, self.task.continuation, self.task.microbatch)
        row = self.measure(self.model, check=check)
        seen = self.task.unlearn if self.task.shown is None else self.task.shown
        shown, held_out = (percent(check(artifacts)) for artifacts in (seen, self.task.held_out))
        return {**row, "percent_memorized_shown": shown, "percent_memorized_held_out": held_out}


def identity(model, task: UnlearningTask, settings: TaskSettings, sections: dict[str, Any]) -> dict[str, Any]:
    """Return what all records on one model and task have in common. sections: data, model, training."""
    prints = {"weights": weights_fingerprint(model), "forget_set": task_fingerprint(task)}
    return {**sections, "forget": settings.deciding(), "fingerprints": prints}


def unedited(subject: Subject, force: bool = False, kind: str = UNEDITED) -> dict[str, Any]:
    """Return the record of the model as it is."""
    settings = {"kind": kind, **subject.identity}
    if not force and (record := find_record(subject.folder, settings)):
        return record
    device = subject.model.device
    with measured(device) as cost:
        row = subject.metrics()
    write_record(subject.folder, settings, {**row, "percent_zeroed": 0.0}, cost, str(device))
    return find_record(subject.folder, settings)


def never_planted(subject: Subject, open_twin: Callable[[], Any], force: bool = False) -> dict[str, Any]:
    """The record of the model before memories were planted in it, measured like the others. Opened only if needed."""
    if not force and (record := find_record(subject.folder, {"kind": NEVER_PLANTED, **subject.identity})):
        return record
    return unedited(replace(subject, model=open_twin()), force, NEVER_PLANTED)


def unlearn(
    subject: Subject,
    method: Method,
    hp,
    save_models: bool = True,
    force: bool = False,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> Iterator[dict[str, Any]]:
    """Applies a method for each of its ratios; yields the record of each, in the order of `hp.ratio`.

    Finished runs are not done again unless `force`. The cost of a record is that of finding the mask (for a ranking:
    to score and to drop), without the measuring. `model_folder` in its results is relative to `subject.folder`.
    on_estimate is given the seconds that scoring will take, before it begins, for methods that can tell.
    """
    hp = method.resolve(hp, subject.model.num_parameters())
    parent = record_digest({"kind": UNEDITED, **subject.identity})
    for number, ratio in enumerate(hp.ratio):
        settings = {"kind": UNLEARN, "parent": parent, **subject.identity}
        settings["method"] = {"name": method.name, **asdict(hp), "ratio": ratio}
        record = None if force else find_record(subject.folder, settings)
        folder = f"models/{method.name}_{ratio:g}_{record_digest(settings)[:8]}" if save_models else None
        if record and (folder is None or _is_saved(subject, record)):
            yield record
        else:
            masks, cost = _masks(subject, method, hp, ratio, force and number == 0, on_estimate)
            yield _measure(subject, masks, settings, cost, folder)


def _is_saved(subject: Subject, record: dict[str, Any]) -> bool:
    """Whether the edited model of a record is there."""
    folder = record["results"].get("model_folder")
    return folder is not None and (subject.folder / folder).exists()


def _measure(subject: Subject, masks: Masks, settings: dict[str, Any], cost: Cost, folder: str | None) -> dict:
    """Measures the edited model, saves it where asked to, and writes the record."""
    model = subject.model
    with edited(model, masks):
        row = {**subject.metrics(), "percent_zeroed": 100 * share_dropped(model, masks), "model_folder": folder}
        if folder is not None:
            save_model(subject.folder / folder, model, edit_details(settings), subject.tokenizer)
    write_record(subject.folder, settings, row, cost, str(model.device))
    return find_record(subject.folder, settings)


def edit_details(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what the tinymem.json of an edited model says: its data and sizes, and the run that made it."""
    return {"settings": {**identity["data"], **identity["model"]}, "made_by": identity_of(identity)}


def _masks(
    subject: Subject, method: Method, hp, ratio: float, fresh: bool, on_estimate: Callable[[float], None]
) -> tuple[Masks, Cost]:
    """The masks for one ratio and what they cost, scoring included when the scores came from the disk."""
    model, task = subject.model, subject.task
    if method.learn is not None:
        with measured(model.device) as cost:
            masks = method.learn(model, task, hp, ratio)
        return masks, cost
    prints = subject.identity["fingerprints"]
    key = {"weights": prints["weights"], "task": prints["forget_set"]}
    scores, scoring = ranked(model, task, method, hp, subject.score_folder, key, fresh, on_estimate)
    with measured(model.device) as dropping:
        masks = method.drop(find_mlps(model), scores, ratio)
    return masks, Cost(scoring.seconds + dropping.seconds, max(scoring.peak_memory_gb, dropping.peak_memory_gb))
