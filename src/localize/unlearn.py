"""Run a method at all its strengths: edit, measure, attack, record and save. All localize scripts share this module."""

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
from tinymem.metrics.examples import kept_split
from tinymem.metrics.metric import Metric
from tinymem.metrics.reference import References
from tinymem.metrics.registry import DEFAULTS, chosen, missing, needs_twin
from tinymem.models.edit import Edit, applied, describe, stored_model
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.identity import ATTACK, NEVER_PLANTED, UNEDITED, UNLEARN, identity_of, record_digest
from tinymem.records.record import Cost, find_record, measured, read_values, record_path, write_record
from tinymem.training.checkpoint import save_model

UNCHANGED = {"percent_zeroed": 0.0, "percent_changed": 0.0, "relative_change": 0.0}
Attacks = Sequence[tuple[Method, Any]]  # with their settings


@dataclass(frozen=True)
class Subject:
    """A model under study, with its task and folders.

    model, task    the model, which stays unchanged, and its unlearning task
    measure(model, splits=, metrics=) -> Measurement, for edited and unedited models alike (`tinymem.metrics`)
    identity       sections that name data, model, training, forget set and their fingerprints; part of every record
    folder         records/ and models/ are written here
    score_folder   what methods compute once is kept here
    tokenizer      a text model's, saved with every edited model
    metrics        names of those to measure, or metrics
    notes          more results for every record: what was left out of the data
    references     what the model is compared with; None: nothing
    warning        printed before the model is measured: such as what will have no value, and why
    examples       whether every record keeps what the model writes after some prompts; otherwise only those do whose
                   metrics have models write
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
    references: References | None = None
    warning: str = ""
    examples: bool = False

    def measurement(self, metrics: Sequence[str | Metric]) -> Measurement:
        """Measure the model on its dataset, and on what the method saw and what it never saw."""
        task, more = self.task, dict[str, Any]()
        if self.references is not None:
            more["references"] = self.references
        splits = {"shown": task.forget if task.shown is None else task.shown, "held_out": task.held_out}
        splits |= {} if task.validation is None else {"validation": task.validation}
        if self.examples or any("generation" in metric.needs for metric in chosen(metrics)):
            more["examples"] = "held_out" if len(task.held_out) else "shown"
        return self.measure(self.model, splits=splits, metrics=metrics, **more)

    def prepare(self) -> None:
        """Keep what metrics will ask of the model before its edit: it is in that state now, or was when first called."""
        if self.references is not None and any("before" in metric.needs for metric in chosen(self.metrics)):
            self.references.prepare(self.model, self.task.microbatch)

    def lacking(self, results: dict[str, Any]) -> list[str | Metric]:
        """Return the metrics that results lack: also those that had no value for want of a twin, where there is one now."""
        if self.references is not None and self.references.open_twin is not None:
            results = {name: value for name, value in results.items() if value is not None or not needs_twin(name)}
        return missing(results, self.metrics)

    @property
    def unedited_digest(self) -> str:
        """The digest of the record of the model as it is."""
        return record_digest({"kind": UNEDITED, **self.identity})


@dataclass(frozen=True)
class Run:
    """One measured state of a subject's model: unedited, edited, or edited and attacked.

    identity   the identity of its record
    keep       the folder of the saved model, relative to the subject's; None: it is not saved
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
    def finished(self) -> dict[str, Any]:
        """The record of a run that is done. Raise UserError where it is gone again."""
        if (record := self.record) is None:
            raise UserError(f"{self.path}: somebody removed this record; run again")
        return record

    @property
    def saved(self) -> Path | None:
        """The folder of the saved model; None if there is none."""
        record = self.record
        folder = record and record["results"].get("model_folder")
        return self.subject.folder / folder if folder and (self.subject.folder / folder).is_dir() else None

    @property
    def is_done(self) -> bool:
        """Whether the record has every requested metric and example and the model, if requested, is saved."""
        record = self.record
        measured_all = record is not None and not self.subject.lacking(record["results"]) and not self._lacks_examples
        return measured_all and (self.keep is None or self.saved is not None)

    @property
    def _lacks_examples(self) -> bool:
        return self.subject.examples and kept_split(read_values(self.path)) is None

    def complete(self, extent: dict[str, float], cost: Cost, force: bool = False) -> None:
        """Measure what the record lacks, save the model if requested, and write the record.

        The model must be in this state now. A record keeps its results and cost unless `force`. Raise NotFinite,
        before anything is written, if the model's logits are not finite numbers.
        """
        if force:
            self.forget()
        record, subject, device = self.record, self.subject, str(self.subject.model.device)
        lacking = subject.metrics if record is None else subject.lacking(record["results"])
        found = subject.measurement(lacking) if lacking or self._lacks_examples else None
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
            given = {name: value for name, value in results.items() if value is not None or name not in found.row}
            results, values = {**found.row, **given}, {**values, **found.tensors()}
        write_record(subject.folder, self.identity, results, cost, device, values=values)

    def forget(self) -> None:
        """Remove the record, so that the run does not count as done while it is repeated."""
        self.path.unlink(missing_ok=True)

    def attach(self, results: dict[str, Any]) -> None:
        """Add results from elsewhere to the existing record."""
        record = self.finished
        cost, device = Cost(**record["cost"]), str(self.subject.model.device)
        results = {**record["results"], **results}
        write_record(self.subject.folder, self.identity, results, cost, device, values=read_values(self.path))

    @property
    def path(self) -> Path:
        return record_path(self.subject.folder, self.identity)


def identity(model, task: UnlearningTask, settings: TaskSettings, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the sections that all records on one model and task share.

    sections: data, model, training.
    """
    prints = {"weights": weights_fingerprint(model), "forget_set": task_fingerprint(task)}
    return {**sections, "forget": settings.deciding(), "fingerprints": prints}


def unedited(subject: Subject, force: bool = False, kind: str = UNEDITED) -> dict[str, Any]:
    """Return the unedited model's record, measured if needed. Raise NotFinite if its logits are not finite."""
    run = Run(subject, {"kind": kind, **subject.identity})
    if force:
        run.forget()
    with finite(f"measuring the {kind} model"):
        if kind == UNEDITED and not run.is_done:
            subject.prepare()
        if run.record is None:
            with measured(subject.model.device) as cost:  # no edit to find: the cost is that of measuring
                measurement = subject.measurement(subject.metrics)
            results = {**measurement.row, **UNCHANGED, **subject.notes}
            device = str(subject.model.device)
            write_record(subject.folder, run.identity, results, cost, device, values=measurement.tensors())
        elif not run.is_done:
            run.complete(UNCHANGED, Cost())
    return run.finished


def never_planted(subject: Subject, force: bool = False) -> dict[str, Any] | None:
    """Return the record of the subject's never-planted twin, which is opened only if needed; None without a twin."""
    if subject.references is None or subject.references.open_twin is None:
        return None
    run = Run(subject, {"kind": NEVER_PLANTED, **subject.identity})
    if run.is_done and not force:
        return run.finished
    subject.prepare()
    twin = subject.references.twin(subject.task.microbatch)
    return None if twin is None else unedited(replace(subject, model=twin.model), force, NEVER_PLANTED)


def unlearn(
    subject: Subject,
    method: Method,
    hp,
    save_models: bool = True,
    force: bool = False,
    attacks: Attacks = (),
    on_start: Callable[[Any], None] = lambda hp: None,
) -> Iterator[dict[str, Any]]:
    """Apply a method at each of its strengths; yield each record, followed by those of the attacks on it.

    Finished runs are repeated only with `force`. Metrics and attacks that a finished run lacks are added, from the
    saved model if there is one. A record's cost is that of finding the edit (for a ranking: scoring and dropping),
    without measuring. `model_folder` in its results is relative to `subject.folder`. on_start(hp) is called before a
    method begins, with the strengths to find.

    Raise NotFinite, after everything else, if logits or scores are not finite numbers: such a run has no record. After
    a failed search the method's remaining strengths are skipped.
    """
    hp = method.resolve(hp, subject.model.num_parameters())
    runs = {value: _edited_run(subject, method, hp, value, save_models) for value in method.strengths(hp)}
    to_do = {value for value, run in runs.items() if force or not run.is_done or _lacks(run, attacks)}
    if force:
        for run in runs.values():
            run.forget()
    folders = {value: run.saved for value, run in runs.items() if not force}
    to_find = [value for value in runs if value in to_do and folders.get(value) is None]
    if to_find:
        on_start(method.at(hp, *to_find))
    found = _edits(subject, method, method.at(hp, *to_find), force) if to_find else iter(())
    failures = Failures()
    edit: Edit | None
    for value, run in runs.items():
        with failures.kept(_label(method, value)):
            if value not in to_do:
                edit, cost = None, Cost()
            elif folder := folders.get(value):
                edit, cost = stored_model(folder), Cost()
            elif step := next(found, None):
                _, edit, cost = step
            elif failures:  # the search failed
                continue
            else:
                raise UserError(f"{_label(method, value)}: the method yielded no edit for it; correct its `run`")
            yield from finish(run, edit, cost, attacks, force)
    failures.end()


def finish(run: Run, edit: Edit | None, cost: Cost, attacks: Attacks = (), force: bool = False) -> Iterator[dict]:
    """Complete and yield the record of an edit and those of the attacks on it. edit: None if all are complete."""
    if edit is None:
        yield run.finished
        yield from (attacked.finished for attacked in _attacked_runs(run, attacks))
        return
    run.subject.prepare()
    model, records, failures = run.subject.model, [], Failures()
    extent = {**describe(model, edit), **getattr(edit, "notes", {})}
    with applied(model, edit):
        if force or not run.is_done:
            run.complete(extent, cost, force)
        records.append(run.finished)
        with failures.kept():
            records.extend(attack(run, attacks, force))
    yield from records  # only now: the caller may use the model, which is restored
    failures.end()


def attack(run: Run, attacks: Attacks, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's model in its present state, which `run` describes; yield the records.

    Raise NotFinite, after all attacks, if one leads to logits that are not finite numbers: it has no record.
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
                yield attacked.finished
    failures.end()


def attack_all(subject: Subject, attacks: Attacks, force: bool = False) -> Iterator[dict[str, Any]]:
    """Attack the subject's unedited model; yield the records."""
    if attacks:
        subject.prepare()
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
    """Return the content of an edited model's tinymem.json: its data and sizes, and the run that made it."""
    return {"settings": {**identity["data"], **identity["model"]}, "made_by": identity_of(identity)}


def task_fingerprint(task: UnlearningTask) -> str:
    """Return 16 hexadecimal digits that identify everything in a task that affects a method's result."""
    digest = hashlib.sha256(f"{task.continuation} {task.ignored_token} {task.seed}".encode())
    for tensor in (task.forget.planted, task.forget.prompt_end, task.retain):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
