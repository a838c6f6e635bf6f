"""Run a method on a model at all its strengths: edit, measure, attack, record, save. What all localize scripts share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinymem.errors import Failures, UserError, finite
from tinymem.localize.cache import Cache
from tinymem.localize.method import Method, Strength, edits
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.evaluate import Measurement
from tinymem.metrics.metric import Metric
from tinymem.metrics.registry import DEFAULTS, missing
from tinymem.models.edit import Edit, applied, describe, stored_model
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.identity import ATTACK, NEVER_PLANTED, UNEDITED, UNLEARN, identity_of, record_digest
from tinymem.records.record import Cost, find_record, measured, read_values, record_path, write_record
from tinymem.training.checkpoint import save_model

UNCHANGED = {"percent_zeroed": 0.0, "percent_changed": 0.0, "relative_change": 0.0}
Attacks = Sequence[tuple[Method, Any]]  # with their settings


@dataclass(frozen=True)
class Subject:
    """A model under study.

    model, task    the model, left as it is, and what it is to forget
    measure(model, splits=, metrics=) -> Measurement, of the edited and the unedited model alike (`tinymem.metrics`)
    identity       sections that name data, model, training, forget set and their fingerprints; part of every record
    folder         records/ and models/ are written here
    score_folder   what methods compute once is kept here
    tokenizer      a text model's, saved with every edited model
    metrics        names of those to measure, or metrics
    notes          more results for every record: what was left out of the data
    """

    model: Any
    task: UnlearningTask
    measure: Callable[..., Measurement]
    identity: dict[str, Any]
    folder: Path
    score_folder: Path
    tokenizer: Any = None
    metrics: Sequence[str | Metric] = DEFAULTS
    notes: dict[str, Any] = field(default_factory=dict)

    def measurement(self, metrics: Sequence[str | Metric]) -> Measurement:
        """Measure the model on its dataset, and on what the method saw and what it never saw."""
        shown = self.task.forget if self.task.shown is None else self.task.shown
        return self.measure(self.model, splits={"shown": shown, "held_out": self.task.held_out}, metrics=metrics)

    @property
    def unedited_digest(self) -> str:
        """The digest of the record of the model as it is."""
        return record_digest({"kind": UNEDITED, **self.identity})


@dataclass(frozen=True)
class Run:
    """One state of a subject's model that is measured: as it is, edited, or edited and attacked.

    identity   of its record
    keep       the folder under which the model is saved, relative to the subject's; None: it is not saved
    """

    subject: Subject
    identity: dict[str, Any]
    keep: str | None = None

    @cached_property
    def digest(self) -> str:
        return record_digest(self.identity)

    @property
    def record(self) -> dict[str, Any] | None:
        return find_record(self.subject.folder, self.identity)

    @property
    def saved(self) -> Path | None:
        """The folder of the saved model, where there is one."""
        record = self.record
        folder = record and record["results"].get("model_folder")
        return self.subject.folder / folder if folder and (self.subject.folder / folder).is_dir() else None

    @property
    def is_done(self) -> bool:
        """Whether the record has every metric that is asked for, and the model is saved where it should be."""
        record = self.record
        measured_all = bool(record) and not missing(record["results"], self.subject.metrics)
        return measured_all and (self.keep is None or self.saved is not None)

    def complete(self, extent: dict[str, float], cost: Cost, force: bool = False) -> None:
        """Measure what the record lacks, save the model where asked to, and write the record.

        The model is in this state now. A record keeps what it has, its cost included, unless `force`. Raises NotFinite,
        before anything is written, where the model's logits are not finite numbers.
        """
        if force:
            self.forget()
        record, subject, device = self.record, self.subject, str(self.subject.model.device)
        lacking = subject.metrics if record is None else missing(record["results"], subject.metrics)
        found = subject.measurement(lacking) if lacking else None
        folder = self.keep
        if folder is None and record is not None:
            folder = record["results"].get("model_folder")
        elif folder is not None and (force or self.saved is None):
            save_model(subject.folder / folder, subject.model, edit_details(self.identity), subject.tokenizer)
        results, values = {**extent, **subject.notes, "model_folder": folder}, {}
        if record is not None:
            results, values = {**record["results"], "model_folder": folder}, read_values(self.path)
            cost = Cost(**record["cost"])
        if found is not None:
            results, values = {**found.row, **results}, {**values, **found.tensors()}
        write_record(subject.folder, self.identity, results, cost, device, values=values)

    def forget(self) -> None:
        """Remove the record: what says that a run is done goes before anything else is done again."""
        self.path.unlink(missing_ok=True)

    def attach(self, results: dict[str, Any]) -> None:
        """Add results from elsewhere to the record, which is there."""
        record = self.record
        cost, device = Cost(**record["cost"]), str(self.subject.model.device)
        results = {**record["results"], **results}
        write_record(self.subject.folder, self.identity, results, cost, device, values=read_values(self.path))

    @property
    def path(self) -> Path:
        return record_path(self.subject.folder, self.identity)


def identity(model, task: UnlearningTask, settings: TaskSettings, sections: dict[str, Any]) -> dict[str, Any]:
    """Return what all records on one model and task have in common.

    sections: data, model, training.
    """
    prints = {"weights": weights_fingerprint(model), "forget_set": task_fingerprint(task)}
    return {**sections, "forget": settings.deciding(), "fingerprints": prints}


def unedited(subject: Subject, force: bool = False, kind: str = UNEDITED) -> dict[str, Any]:
    """Return the record of the model as it is. Raise NotFinite where it cannot be measured."""
    run = Run(subject, {"kind": kind, **subject.identity})
    if force:
        run.forget()
    with finite(f"measuring the {kind} model"):
        if run.record is None:
            with measured(subject.model.device) as cost:  # nothing had to be found: the cost is that of measuring
                measurement = subject.measurement(subject.metrics)
            results = {**measurement.row, **UNCHANGED, **subject.notes}
            device = str(subject.model.device)
            write_record(subject.folder, run.identity, results, cost, device, values=measurement.tensors())
        elif not run.is_done:
            run.complete(UNCHANGED, Cost())
    return run.record


def never_planted(subject: Subject, open_twin: Callable[[], Any], force: bool = False) -> dict[str, Any]:
    """Return the record of the model before memories were planted in it. Opened only if needed."""
    run = Run(subject, {"kind": NEVER_PLANTED, **subject.identity})
    return (
        run.record if run.is_done and not force else unedited(replace(subject, model=open_twin()), force, NEVER_PLANTED)
    )


def unlearn(
    subject: Subject,
    method: Method,
    hp,
    save_models: bool = True,
    force: bool = False,
    attacks: Attacks = (),
    on_start: Callable[[Any], None] = lambda hp: None,
) -> Iterator[dict[str, Any]]:
    """Apply a method at each of its strengths; yield the record of each, followed by those of its attacks.

    Finished runs are not done again unless `force`; what a finished run lacks (a metric, an attack) is added, from the
    saved model where there is one. The cost of a record is that of finding the edit (of a ranking: to score and to
    drop), without the measuring. `model_folder` in its results is relative to `subject.folder`. on_start(hp) is called
    before a method begins, with the strengths that it is to find.

    Raise NotFinite, after all else, where logits or scores are not finite numbers: such a run has no record. A method
    whose search fails so is not asked for the strengths behind it.
    """
    hp = method.resolve(hp, subject.model.num_parameters())
    runs = {value: _edited_run(subject, method, hp, value, save_models) for value in method.strengths(hp)}
    to_do = {value for value, run in runs.items() if force or not run.is_done or _lacks(run, attacks)}
    if force:
        for run in runs.values():
            run.forget()
    to_find = [value for value in runs if value in to_do and (force or runs[value].saved is None)]
    if to_find:
        on_start(method.at(hp, *to_find))
    found = _edits(subject, method, method.at(hp, *to_find), force) if to_find else iter(())
    failures = Failures()
    for value, run in runs.items():
        with failures.kept(_label(method, value)):
            if value not in to_do:
                edit, cost = None, Cost()
            elif value not in to_find:
                edit, cost = stored_model(run.saved), Cost()
            elif step := next(found, None):
                _, edit, cost = step
            elif failures:  # of the search
                continue
            else:
                raise UserError(f"{_label(method, value)}: the method ended without an edit for it")
            yield from finish(run, edit, cost, attacks, force)
    failures.end()


def finish(run: Run, edit: Edit | None, cost: Cost, attacks: Attacks = (), force: bool = False) -> Iterator[dict]:
    """Complete the record of an edit and those of the attacks on it; yield them. edit: None where nothing is lacking."""
    if edit is None:
        yield run.record
        yield from (attacked.record for attacked in _attacked_runs(run, attacks))
        return
    model, records, failures = run.subject.model, [], Failures()
    extent = describe(model, edit)
    with applied(model, edit):
        if force or not run.is_done:
            run.complete(extent, cost, force)
        records.append(run.record)
        with failures.kept():
            records.extend(attack(run, attacks, force))
    yield from records  # not before: whoever reads them may use the model, which is as it was
    failures.end()


def attack(run: Run, attacks: Attacks, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's model in its present state, of which `run` is the record; yield the records.

    Raise NotFinite, after all attacks, where one ends in logits that are not finite numbers: it has no record.
    """
    model, task, failures = run.subject.model, replace(run.subject.task, cache=None), Failures()
    for method, hp in attacks:
        with failures.kept(f"attack {method.name}"):
            for value, edit, cost in edits(method, model, task, hp):
                attacked = _attacked_run(run, method, hp, value)
                if force or not attacked.is_done:
                    extent = describe(model, edit)
                    with applied(model, edit):
                        attacked.complete(extent, cost, force)
                yield attacked.record
    failures.end()


def attack_all(subject: Subject, attacks: Attacks, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's model as it is; yield the records."""
    return attack(Run(subject, {"kind": UNEDITED, **subject.identity}), attacks, force)


def _label(method: Method, strength: Strength) -> str:
    return method.name if strength is None else f"{method.name} with --{method.strength} {strength:g}"


def _edited_run(subject: Subject, method: Method, hp, strength: Strength, save: bool) -> Run:
    about = {"kind": UNLEARN, "parent": subject.unedited_digest, **subject.identity}
    about["method"] = method.settings(hp, strength)
    name = method.name if strength is None else f"{method.name}_{strength:g}"
    return Run(subject, about, f"models/{name}_{record_digest(about)[:8]}" if save else None)


def _attacked_run(run: Run, method: Method, hp, strength: Strength) -> Run:
    sections = {name: section for name, section in run.identity.items() if name not in ("kind", "parent")}
    about = {"kind": ATTACK, "parent": run.digest, **sections, "attack": method.settings(hp, strength)}
    return Run(run.subject, about)


def _attacked_runs(run: Run, attacks: Attacks) -> list[Run]:
    return [_attacked_run(run, method, hp, value) for method, hp in attacks for value in method.strengths(hp)]


def _lacks(run: Run, attacks: Attacks) -> bool:
    return not all(attacked.is_done for attacked in _attacked_runs(run, attacks))


def _edits(subject: Subject, method: Method, hp, fresh: bool) -> Iterator[tuple[Strength, Edit, Cost]]:
    prints = subject.identity["fingerprints"]
    key = {"weights": prints["weights"], "task": prints["forget_set"]}
    task = replace(subject.task, cache=Cache(subject.score_folder, key, fresh))
    return edits(method, subject.model, task, hp)


def edit_details(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what the tinymem.json of an edited model says: its data and sizes, and the run that made it."""
    return {"settings": {**identity["data"], **identity["model"]}, "made_by": identity_of(identity)}


def task_fingerprint(task: UnlearningTask) -> str:
    """Return 16 hexadecimal digits of everything in a task that changes what a method finds."""
    digest = hashlib.sha256(f"{task.continuation} {task.ignored_token} {task.seed}".encode())
    for tensor in (task.forget.planted, task.forget.prompt_end, task.retain):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
