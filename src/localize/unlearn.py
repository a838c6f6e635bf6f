"""Run one method on one model for all its strengths: edit, measure, record, save. What all localize scripts share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.localize.cache import Cache
from tinymem.localize.method import Method, edits
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.evaluate import Measurement
from tinymem.models.edit import Edit, applied, describe
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.record import NEVER_PLANTED, UNEDITED, Cost, find_record, measured, write_record
from tinymem.training.checkpoint import save_model

UNCHANGED = {"percent_zeroed": 0.0, "percent_changed": 0.0, "relative_change": 0.0}


@dataclass(frozen=True)
class Subject:
    """A model under study.

    model, task    the model, left as it is, and what it is to forget
    measure(model, splits=) -> Measurement, of the edited and the unedited model alike (`tinymem.metrics.evaluate`)
    identity       settings that name model, data and task; part of every record
    folder         records/ and models/ are written here
    score_folder   scores are kept here
    tokenizer      a text model's, saved with every edited model
    """

    model: Any
    task: UnlearningTask
    measure: Callable[..., Measurement]
    identity: dict[str, Any]
    folder: Path
    score_folder: Path
    tokenizer: Any = None

    def metrics(self) -> Measurement:
        """Measure the model on its dataset, and on what the method saw and what it never saw."""
        shown = self.task.unlearn if self.task.shown is None else self.task.shown
        return self.measure(self.model, splits={"shown": shown, "held_out": self.task.held_out})


def identity(model, task: UnlearningTask, settings: TaskSettings, **origin: Any) -> dict[str, Any]:
    """What names the runs on one model, data and task. origin: the settings that say where model and data come from."""
    prints = {"weights": weights_fingerprint(model), "task": task_fingerprint(task)}
    return {"run": "unlearn", **origin, **settings.deciding(), **prints}


def unedited(subject: Subject, force: bool = False, name: str = UNEDITED) -> dict[str, Any]:
    """The record of the model as it is. name: what stands for the method in it."""
    settings = {**subject.identity, "method": name}
    if not force and (record := find_record(subject.folder, settings)):
        return record
    device = subject.model.device
    with measured(device) as cost:
        found = subject.metrics()
    write_record(subject.folder, settings, {**found.row, **UNCHANGED}, cost, str(device), values=found.tensors())
    return find_record(subject.folder, settings)


def never_planted(subject: Subject, open_twin: Callable[[], Any], force: bool = False) -> dict[str, Any]:
    """The record of the model before memories were planted in it, measured like the others. Opened only if needed."""
    if not force and (record := find_record(subject.folder, {**subject.identity, "method": NEVER_PLANTED})):
        return record
    return unedited(replace(subject, model=open_twin()), force, NEVER_PLANTED)


def unlearn(
    subject: Subject,
    method: Method,
    hp,
    save_models: bool = True,
    force: bool = False,
    on_start: Callable[[Any], None] = lambda hp: None,
) -> Iterator[dict[str, Any]]:
    """Apply a method at each of its strengths; yield the record of each, in the order of the settings.

    Finished runs are not done again unless `force`. on_start(hp) is called before the others, with their strengths only. The cost of a record is that of finding the edit (of a ranking: to
    score and to drop), without the measuring. `model_folder` in its results is relative to `subject.folder`.
    """
    hp = method.resolve(hp, subject.model.num_parameters())
    runs = [_Run(subject, method, hp, strength, save_models) for strength in method.strengths(hp)]
    to_do = [run for run in runs if force or not run.is_done]
    left = method.at(hp, *(run.strength for run in to_do))
    if to_do:
        on_start(left)
    found = _edits(subject, method, left, force) if to_do else iter(())
    for run in runs:
        if run in to_do:
            _, edit, cost = next(found)
            _measure(subject, edit, run, cost)
        yield run.record


@dataclass(frozen=True)
class _Run:
    """One strength of a method on a subject."""

    subject: Subject
    method: Method
    hp: Any
    strength: Any
    saved: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What the record is known by. The model's own settings win: its weights' dtype over a method's passes'."""
        own = self.method.settings(self.hp, self.strength)
        strength = {self.method.strength: self.strength} if self.method.strength else {}
        return {"method": own.pop("name"), **own, **self.subject.identity, **strength}

    @property
    def folder(self) -> str | None:
        """Where the edited model is kept, relative to the subject's folder; None where it is not kept."""
        name = self.method.name if self.strength is None else f"{self.method.name}_{self.strength:g}"
        return f"models/{name}_{files.digest(self.settings)[:8]}" if self.saved else None

    @property
    def record(self) -> dict[str, Any] | None:
        return find_record(self.subject.folder, self.settings)

    @property
    def is_done(self) -> bool:
        return bool(self.record) and (self.folder is None or (self.subject.folder / self.folder).exists())


def _edits(subject: Subject, method: Method, hp, fresh: bool) -> Iterator[tuple[Any, Edit, Cost]]:
    identity = {name: subject.identity[name] for name in ("weights", "task")}
    task = replace(subject.task, cache=Cache(subject.score_folder, identity, fresh))
    return edits(method, subject.model, task, hp)


def _measure(subject: Subject, edit: Edit, run: _Run, cost: Cost) -> None:
    """Measure the edited model, save it where asked to, and write the record."""
    model, extent = subject.model, describe(subject.model, edit)
    with applied(model, edit):
        found = subject.metrics()
        if run.folder is not None:
            save_model(subject.folder / run.folder, model, {"settings": run.settings}, subject.tokenizer)
    row = {**found.row, **extent, "model_folder": run.folder}
    write_record(subject.folder, run.settings, row, cost, str(model.device), values=found.tensors())


def task_fingerprint(task: UnlearningTask) -> str:
    """Return 16 hexadecimal digits of everything in a task that changes what a method finds."""
    digest = hashlib.sha256(f"{task.continuation} {task.ignored_token} {task.seed}".encode())
    for tensor in (task.unlearn.planted, task.unlearn.prompt_end, task.retain):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
