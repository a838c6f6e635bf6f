"""A model under study with its task and folders, and its measured states, one record each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.elicitation import Elicitation
from tinymem.metrics.evaluate import Measurement, averaged
from tinymem.metrics.examples import kept_split
from tinymem.metrics.metric import ATTACKED, Metric
from tinymem.metrics.probe import OnRows, silent
from tinymem.metrics.reference import References
from tinymem.metrics.registry import DEFAULTS, GROUPS, chosen, find_metric, missing, needs_twin
from tinymem.models.edit import REMAKE, Edit, SavedModel, applied, stored_model
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.cost import Cost
from tinymem.records.identity import UNEDITED, identity_of, record_digest
from tinymem.records.record import add_results, environment, find_record, read_values, record_path, write_record
from tinymem.records.sources import METRIC_FLAGS, has_changed
from tinymem.records.table import versions
from tinymem.training.checkpoint import SETTINGS, save_model

OnMeasured = Callable[[Mapping[str, Any], str, int, int], object]
WEIGHTS = "weights"  # in an edited model's tinymem.json: the fingerprint of its weights
UNCHANGED = {"percent_zeroed": 0.0, "percent_changed": 0.0, "relative_change": 0.0}


def _silent(identity: Mapping[str, Any], what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class AttackConditions:
    """What sets the measurement of an attacked model apart.

    seen       sequences that the attacker has seen, which are not measured; None: none
    elicited   what an attack on prompts reads out of the model; None: the attack is on the weights
    """

    seen: Artifacts | None = None
    elicited: Elicitation | None = None


@dataclass(frozen=True)
class Subject:
    """A model under study, with its task and folders.

    model, task    the model, which stays unchanged, and its unlearning task
    measure(model, splits=, metrics=) -> Measurement, for edited and unedited models alike (`tinymem.metrics`)
    identity       sections that name data, model, training, forget set and their fingerprints; part of every record
    folder         records/ and models/ are written here
    score_folder   what methods compute once is kept here
    tokenizer      a text model's, saved with every edited model
    metrics        the metrics to measure, or their names
    notes          more results for every record: what was left out of the data
    references     what the model is compared with; None: nothing
    attack_metrics   the metrics of attacked models; those that are not measured under attack are left out
    warning        printed before the model is measured, such as which metrics will have no value, and why
    command        the command line that makes the edits, kept with every edited model; "" if there is none
    source         the model's folder, or its name on the hub and the revision there; saved adapters name it
    sources        the user's own files, for every record (`tinymem.records.sources`)
    keep_adapters  whether low-rank changes are saved beside the edited models
    examples       whether every record keeps what the model writes after some prompts; otherwise only records of
                   metrics that need generated text do
    on_rows(identity, pass, done, total)   called while measuring for the record of this identity, as in `measure`
    """

    model: Any
    task: UnlearningTask
    measure: Callable[..., Measurement]
    identity: dict[str, Any]
    folder: Path
    score_folder: Path
    tokenizer: Any = None
    metrics: Sequence[str | Metric] = DEFAULTS
    attack_metrics: Sequence[str | Metric] = GROUPS["attacked"]
    notes: dict[str, Any] = field(default_factory=dict)
    references: References | None = None
    warning: str = ""
    examples: bool = False
    command: str = ""
    source: tuple[str, str | None] = ("", None)
    sources: Sequence[Mapping[str, str]] = ()
    keep_adapters: bool = False
    on_rows: OnMeasured = _silent

    def measurement(
        self, metrics: Sequence[str | Metric], attack: AttackConditions | None = None, on_rows: OnRows = silent
    ) -> Measurement:
        """Measure the model on its dataset, and on what the method saw and what it never saw.

        attack: what an attack on the model changes; None: it is not attacked. on_rows: as in
        `tinymem.metrics.evaluate.measure`.
        """
        task = self.task
        options: dict[str, Any] = {} if self.references is None else {"references": self.references}
        splits = {"shown": task.forget if task.shown is None else task.shown, "held_out": task.held_out}
        splits |= {} if task.validation is None else {"validation": task.validation}
        if self.examples or any("generation" in metric.needs for metric in chosen(metrics)):
            options["examples"] = "held_out" if len(task.held_out) else "shown"
        if attack is not None:
            options |= {"only": ATTACKED, "seen": attack.seen, "elicited": attack.elicited}
        return self.measure(self.model, splits=splits, metrics=metrics, on_rows=on_rows, **options)

    def attacked(self, elicits: Sequence[str] = (), always: Sequence[str] = ()) -> Subject:
        """Return the subject with the metrics of attacked models.

        elicits: the metrics of an attack on prompts, which has no others. always: those that an attack's records always
        hold. Metrics that are not measured under attack are left out; with them, no attack would ever count as done.
        """
        usual = [metric for metric in chosen([*self.attack_metrics, *always]) if metric.measured_under_attack]
        metrics: Sequence[str | Metric] = elicits or usual
        return replace(self, metrics=metrics, examples=False)

    def prepare(self) -> None:
        """Keep what metrics will ask of the unedited model. It must be unedited when this is first called."""
        if self.references is not None and any(
            "before" in metric.needs for metric in chosen([*self.metrics, *self.attack_metrics])
        ):
            tell = partial(self.on_rows, {"kind": UNEDITED, **self.identity})
            self.references.prepare(self.model, self.task.microbatch, tell)

    def lacking(self, record: Mapping[str, Any]) -> list[str | Metric]:
        """Return the metrics that a record lacks.

        They include metrics that had no value without a twin, if there is one now, and users' metrics whose file has
        changed since.
        """
        results = record["results"]
        if self.references is not None and self.references.open_twin is not None:
            results = {name: value for name, value in results.items() if value is not None or not needs_twin(name)}
        lacking = missing(results, self.metrics)
        if has_changed(record, self.sources, METRIC_FLAGS):
            own = [metric for metric in chosen(self.metrics) if find_metric(metric.name) is None]
            lacking = list(dict.fromkeys([*lacking, *own]))
        return lacking

    @property
    def unedited_digest(self) -> str:
        """The digest of the unedited model's record."""
        return record_digest({"kind": UNEDITED, **self.identity})


@dataclass(frozen=True)
class Run:
    """One measured state of a subject's model: unedited, edited, or edited and attacked.

    identity   the identity of its record
    keep       the folder of the saved model, relative to the subject's; None: it is not saved
    adapter    the folder of the saved low-rank change; None: there is none, or it is not saved
    """

    subject: Subject
    identity: dict[str, Any]
    keep: str | None = None
    adapter: Path | None = None

    @cached_property
    def digest(self) -> str:
        return record_digest(self.identity)

    @property
    def record(self) -> dict[str, Any] | None:
        return find_record(self.subject.folder, self.identity)

    @property
    def finished(self) -> dict[str, Any]:
        """The record of a finished run. Raise UserError if it has been removed."""
        if (record := self.record) is None:
            raise UserError(f"{self.path}: somebody removed this record; run again")
        return record

    @property
    def saved(self) -> Path | None:
        """The folder of the saved model; None if there is none, or if the adapter that belongs to it is missing."""
        if self.adapter is not None and not self.adapter.is_dir():
            return None
        record = self.record
        folder = record and record["results"].get("model_folder")
        return self.subject.folder / folder if folder and (self.subject.folder / folder).is_dir() else None

    def saved_edit(self, folder: Path) -> SavedModel:
        """Return the edit that turns the model into the saved one. Raise UserError if the folder is another run's.

        The weights are checked when the edit is applied. tinymem.json of earlier versions has no fingerprint of them.
        """
        path = folder / SETTINGS
        about = files.read_json(path, required=("made_by",), remedy=REMAKE) if path.exists() else {}
        fingerprint = about.get(WEIGHTS)
        if fingerprint is not None and about["made_by"] != identity_of(self.identity):
            raise UserError(f"{folder}: holds the model of another run; {REMAKE}")
        return stored_model(folder, self.subject.model, fingerprint)

    @property
    def is_done(self) -> bool:
        """Whether the record has every requested metric and example and the model, if requested, is saved.

        Raise UserError for a record that cannot be completed here (see `check_environment`).
        """
        record = self.record
        measured_all = record is not None and not self.subject.lacking(record) and not self._lacks_examples
        if record is not None and not measured_all:
            check_environment(record, self.path, str(self.subject.model.device))
        has_adapter = self.adapter is None or self.adapter.is_dir()
        return measured_all and has_adapter and (self.keep is None or self.saved is not None)

    @property
    def _lacks_examples(self) -> bool:
        return self.subject.examples and kept_split(read_values(self.path)) is None

    def complete(
        self,
        extent: dict[str, float],
        cost: Cost,
        force: bool = False,
        edits: Sequence[Edit] = (),
        attack: AttackConditions | None = None,
    ) -> None:
        """Measure what the record lacks, save the model if requested, and write the record.

        The model must already be in this state, apart from `edits`. A record keeps its results and cost unless `force`.
        edits and attack: as in `measurement`. Raise NotFinite, before anything is written, if logits are not finite.
        """
        if force:
            self.forget()
        record, subject, device = self.record, self.subject, str(self.subject.model.device)
        lacking = subject.metrics if record is None else subject.lacking(record)
        measurement = self.measurement(lacking, edits, attack) if lacking or self._lacks_examples else None
        folder = self.keep
        if folder is None and record is not None:
            folder = record["results"].get("model_folder")
        elif folder is not None and (force or self.saved is None):
            details = edit_details(self.identity) | ({"command": subject.command} if subject.command else {})
            details[WEIGHTS] = weights_fingerprint(subject.model)
            save_model(subject.folder / folder, subject.model, details, subject.tokenizer)
        if record is not None and measurement is None:
            add_results(self.path, record, {"model_folder": folder})
            return
        results, values = {**extent, **subject.notes, "model_folder": folder}, {}
        if record is not None:
            results, values = {**record["results"], "model_folder": folder}, read_values(self.path)
            cost = Cost(**record["cost"])
        if measurement is not None:
            known = {name: value for name, value in results.items() if name not in measurement.row}
            results, values = {**measurement.row, **known}, measurement.tensors(values)
        write_record(subject.folder, self.identity, results, cost, device, values, subject.sources)

    def measurement(
        self, metrics: Sequence[str | Metric], edits: Sequence[Edit] = (), attack: AttackConditions | None = None
    ) -> Measurement:
        """Measure the model as `Subject.measurement` does, and report progress to the subject.

        The model must already be in this state. With `edits`, it is measured under each of them; return the mean.
        """
        measure = partial(self.subject.measurement, metrics, attack, partial(self.subject.on_rows, self.identity))
        if not edits:
            return measure()
        measurements = []
        for edit in edits:
            with applied(self.subject.model, edit):
                measurements.append(measure())
        return averaged(measurements)

    def forget(self) -> None:
        """Remove the record, so that the run does not count as done while it is repeated."""
        self.path.unlink(missing_ok=True)

    def attach(self, results: dict[str, Any]) -> None:
        """Add results from elsewhere to the existing record."""
        add_results(self.path, self.finished, results)

    @property
    def path(self) -> Path:
        return record_path(self.subject.folder, self.identity)


def check_environment(record: Mapping[str, Any], path: Path, device: str) -> None:
    """Raise UserError if a record was made with other versions than these, or on another kind of device.

    New results beside its old ones would count as made together. path: of the record.
    """
    here = environment(device)
    kinds = [place.partition(":")[0] for place in (str(record["environment"].get("device", device)), device)]
    before, now = versions(record), versions({"environment": here})
    if before != now or kinds[0] != kinds[1]:
        raise UserError(
            f"{path}: made with {before} on {kinds[0]}, so results of {now} on {kinds[1]} cannot be added; give "
            "--force to make it again, or another --output_dir"
        )


def shared_sections(model, task: UnlearningTask, settings: TaskSettings, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the sections that all records on one model and task share.

    sections: data, model, training.
    """
    prints = {"weights": weights_fingerprint(model), "forget_set": task_fingerprint(task)}
    return {**sections, "forget": settings.recorded(), "fingerprints": prints}


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
