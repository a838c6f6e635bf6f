"""Runs one method on one model for a list of ratios: edit, measure, record, save. What all localize scripts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import NotFinite, finite
from tinymem.localize.edit import Masks, edited, share_dropped
from tinymem.localize.registry import Method
from tinymem.localize.scores import ranked, task_fingerprint
from tinymem.localize.task import TaskSettings, UnlearningTask
from tinymem.metrics.evaluate import Row
from tinymem.metrics.memorization import percent, remembering
from tinymem.models.adapter import find_mlps
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.records.record import NEVER_PLANTED, UNEDITED, Cost, find_record, measured, write_record
from tinymem.training.checkpoint import save_model


@dataclass(frozen=True)
class Subject:
    """A model under study.

    model, task    the model, left as it is, and what it is to forget
    measure(model, check=) -> row of metrics, for the edited and the unedited model alike; check as in `evaluate`
    identity       settings that name model, data and task; part of every record
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
        task = self.task
        check = remembering(self.model, task.continuation, task.microbatch, task.ignored_token)
        row = self.measure(self.model, check=check)
        seen = self.task.unlearn if self.task.shown is None else self.task.shown
        shown, held_out = (percent(check(artifacts)) for artifacts in (seen, self.task.held_out))
        return {**row, "percent_memorized_shown": shown, "percent_memorized_held_out": held_out}


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
    with measured(device) as cost, finite(f"measuring the {name} model"):
        row = subject.metrics()
    write_record(subject.folder, settings, {**row, "percent_zeroed": 0.0}, cost, str(device))
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
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> Iterator[dict[str, Any]]:
    """Applies a method for each of its ratios; yields the record of each, in the order of `hp.ratio`.

    Finished runs are not done again unless `force`. The cost of a record is that of finding the mask (for a ranking:
    to score and to drop), without the measuring. `model_folder` in its results is relative to `subject.folder`.
    on_estimate is given the seconds that scoring will take, before it begins, for methods that can tell.
    Raises NotFinite, after all ratios, where logits or scores of one are not finite: such a run has no record.
    """
    hp = method.resolve(hp, subject.model.num_parameters())
    failures = []
    for number, ratio in enumerate(hp.ratio):
        # The model's own settings win: its weights' dtype over the precision of a method's forward passes.
        settings = {"method": method.name, **asdict(hp), **subject.identity, "ratio": ratio}
        record = None if force else find_record(subject.folder, settings)
        folder = f"models/{method.name}_{ratio:g}_{files.digest(settings)[:8]}" if save_models else None
        if record and (folder is None or (subject.folder / folder).exists()):
            yield record
        else:
            try:
                with finite(f"{method.name} with --ratio {ratio:g}"):
                    masks, cost = _masks(subject, method, hp, ratio, force and number == 0, on_estimate)
                    record = _measure(subject, masks, settings, cost, folder)
            except NotFinite as failure:
                failures.append(failure)
            else:
                yield record
    if failures:
        raise failures[0]


def _measure(subject: Subject, masks: Masks, settings: dict[str, Any], cost: Cost, folder: str | None) -> dict:
    """Measures the edited model, saves it where asked to, and writes the record."""
    model = subject.model
    with edited(model, masks):
        row = {**subject.metrics(), "percent_zeroed": 100 * share_dropped(model, masks), "model_folder": folder}
        if folder is not None:
            save_model(subject.folder / folder, model, {"settings": settings}, subject.tokenizer)
    write_record(subject.folder, settings, row, cost, str(model.device))
    return find_record(subject.folder, settings)


def _masks(
    subject: Subject, method: Method, hp, ratio: float, fresh: bool, on_estimate: Callable[[float], None]
) -> tuple[Masks, Cost]:
    """The masks for one ratio and what they cost, scoring included when the scores came from the disk."""
    model, task = subject.model, subject.task
    if method.learn is not None:
        with measured(model.device) as cost:
            masks = method.learn(model, task, hp, ratio)
        return masks, cost
    key = {name: subject.identity[name] for name in ("weights", "task")}
    scores, scoring = ranked(model, task, method, hp, subject.score_folder, key, fresh, on_estimate)
    with measured(model.device) as dropping:
        masks = method.drop(find_mlps(model), scores, ratio)
    return masks, Cost(scoring.seconds + dropping.seconds, max(scoring.peak_memory_gb, dropping.peak_memory_gb))
