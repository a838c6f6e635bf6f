"""Run a method at all its strengths: edit, measure, attack, record and save. All localize scripts share this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinymem.errors import Failures, UserError, finite
from tinymem.localize.attacking import attack, attacked_runs, attacks_left, seen_by
from tinymem.localize.cache import Cache
from tinymem.localize.method import ConfiguredMethods, Method, Strength, edits
from tinymem.localize.subject import UNCHANGED, Run, Subject
from tinymem.localize.task import without_judging_sets
from tinymem.models.adapter import weight_of
from tinymem.models.edit import Draws, Edit, Weights, describe, reversible
from tinymem.models.output_filter import OutputFilter
from tinymem.records.cost import UNKNOWN, Cost
from tinymem.records.identity import NEVER_PLANTED, UNEDITED, UNLEARN, record_digest
from tinymem.records.record import write_record
from tinymem.training.checkpoint import leads_to


def check_runs(subject: Subject, methods: ConfiguredMethods, attacks: ConfiguredMethods = ()) -> None:
    """Raise UserError for settings of methods and attacks that do not fit the subject, before anything long runs."""
    task = without_judging_sets(subject.task)
    if not len(task.forget):
        return
    for method, hp in methods:
        method.check(subject.model, task, method.resolve(hp, subject.model.num_parameters()))
    for method, hp in attacks:
        method.check(subject.model, task, hp)
        seen_by(method, subject.task, hp)


def unedited(subject: Subject, force: bool = False, kind: str = UNEDITED) -> dict[str, Any]:
    """Return the unedited model's record, measured if needed. Raise NotFinite if its logits are not finite."""
    run = Run(subject, {"kind": kind, **subject.identity})
    if force:
        run.forget()
    with finite(f"measuring the {kind} model"):
        if kind == UNEDITED and not run.is_done:
            subject.prepare()
        if run.record is None:
            measurement = run.measurement(subject.metrics)
            results = {**measurement.row, **UNCHANGED, **subject.notes}
            device = str(subject.model.device)
            write_record(subject.folder, run.identity, results, UNKNOWN, device, measurement.tensors(), subject.sources)
        elif not run.is_done:
            run.complete(UNCHANGED, UNKNOWN)
    return run.finished


def never_planted(subject: Subject, force: bool = False) -> dict[str, Any] | None:
    """Return the record of the subject's never-planted twin, which is opened only if needed; None without a twin."""
    if subject.references is None or subject.references.open_twin is None:
        return None
    run = Run(subject, {"kind": NEVER_PLANTED, **subject.identity})
    if not force and run.is_done:
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
    attacks: ConfiguredMethods = (),
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
    to_do = {value for value, run in runs.items() if force or not run.is_done or attacks_left(run, attacks)}
    state = _state(subject, method, hp)
    if force:
        for run in runs.values():
            run.forget()
        state.unlink(missing_ok=True)
    folders = {value: run.saved for value, run in runs.items() if not force}
    to_find = [value for value in runs if value in to_do and folders.get(value) is None]
    if to_find:
        on_start(method.at(hp, *to_find))
    found = _edits(subject, method, method.at(hp, *to_find), force, state) if to_find else iter(())
    failures = Failures()
    edit: Edit | None
    for value, run in runs.items():
        with failures.kept(_label(method, value)):
            if value not in to_do:
                edit, cost = None, Cost()
            elif folder := folders.get(value):
                edit, cost = run.saved_edit(folder), Cost()
            elif step := next(found, None):
                edit, cost = step
            elif failures:  # the search failed
                continue
            else:
                raise AssertionError("edits() yields an edit for each strength or raises")
            yield from finish(run, edit, cost, attacks, force)
    if method.is_objective and leads_to(state, max(hp.steps)):  # a later state serves strengths not asked for now
        state.unlink()
    failures.end()


def finish(
    run: Run, edit: Edit | None, cost: Cost, attacks: ConfiguredMethods = (), force: bool = False
) -> Iterator[dict]:
    """Complete and yield the record of an edit and those of the attacks on it. edit: None if all are complete."""
    if edit is None:
        yield run.finished
        yield from (attacked.finished for attacked in attacked_runs(run, attacks))
        return
    if run.keep is not None and isinstance(edit, OutputFilter):
        raise UserError(
            "a filter of the output is not in the weights, so that it cannot be saved; give --no_save_model"
        )
    if isinstance(edit, Draws):
        raise UserError(f"{run.identity['method']['name']}: gives several edits (Draws), which only an attack may")
    run.subject.prepare()
    model, records, failures = run.subject.model, [], Failures()
    extent = {**describe(model, edit), **getattr(edit, "notes", {})}
    if run.adapter is not None and isinstance(edit, Weights) and edit.adapter is not None:
        edit.adapter.save(run.adapter, *run.subject.source)
    with reversible() as changes:
        edit.apply(model, changes)
        if force or not run.is_done:
            run.complete(extent, cost, force)
        records.append(run.finished)
        with failures.kept():
            records.extend(attack(run, attacks, force, lambda name: changes.before(weight_of(model, name).parameter)))
    yield from records  # only now: the caller may use the model, which is restored
    failures.end()


def _label(method: Method, strength: Strength) -> str:
    return method.name if strength is None else f"{method.name} with --{method.strength} {strength:g}"


def run_identity(subject: Subject, method: Method, hp, strength: Strength) -> dict[str, Any]:
    """Return the identity of the record of a method's run at one strength. hp: resolved, as in `Method.resolve`."""
    about = {"kind": UNLEARN, "parent": subject.unedited_digest, **subject.identity}
    return about | {"method": method.settings(hp, strength)}


def _edited_run(subject: Subject, method: Method, hp, strength: Strength, save: bool) -> Run:
    about = run_identity(subject, method, hp, strength)
    name = method.name if strength is None else f"{method.name}_{strength:g}"
    name = f"{name}_{record_digest(about)[:8]}"
    adapter = subject.folder / "adapters" / name if subject.keep_adapters and getattr(hp, "lora_rank", None) else None
    return Run(subject, about, f"models/{name}" if save else None, adapter)


def _state(subject: Subject, method: Method, hp) -> Path:
    """Return the file that a training run with these settings saves its state in, one for all strengths."""
    digest = record_digest(run_identity(subject, method, hp, None))
    return subject.score_folder / f"{method.name}_{digest}.state.safetensors"


def _edits(subject: Subject, method: Method, hp, fresh: bool, state: Path) -> Iterator[tuple[Edit, Cost]]:
    prints = subject.identity["fingerprints"]
    key = {"weights": prints["weights"], "task": prints["forget_set"]}
    task = without_judging_sets(subject.task, cache=Cache(subject.score_folder, key, fresh, state))
    return edits(method, subject.model, task, hp)
