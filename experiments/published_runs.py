"""Runs of a method with differences: one record each, which a repeated command finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from published_differences import as_published, counted_as_published, make_task, task_settings, with_differences

from tinymem.attacks.registry import ATTACKS
from tinymem.data.build import load_dataset
from tinymem.data.dataset import Artifacts, MemorizationDataset
from tinymem.errors import Failures, UserError
from tinymem.localize.attacking import attacks_left
from tinymem.localize.method import ConfiguredMethods, Method, edits
from tinymem.localize.subject import Run, Subject, shared_sections
from tinymem.localize.task import TaskSettings, UnlearningTask, without_judging_sets
from tinymem.localize.unlearn import finish, unedited
from tinymem.metrics import metric
from tinymem.metrics.evaluate import Measurement, measure
from tinymem.metrics.memorization import memorized_rows
from tinymem.metrics.metric import PLANTED, Metric
from tinymem.metrics.probe import Probe
from tinymem.metrics.registry import DEFAULTS
from tinymem.models.tinymem import load_model
from tinymem.records.cost import Cost
from tinymem.records.identity import AS_PUBLISHED
from tinymem.sweeps.jobs import Checkpoint

SEEN = 5  # sequences that a relearning attacker has
Names = tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A checkpoint with its data. folder: where its records lie. settings: of the forget set, before any difference.

    tasks: those made so far, by their settings
    """

    checkpoint: Checkpoint
    model: Any
    dataset: MemorizationDataset
    folder: Path
    settings: TaskSettings
    tasks: dict[TaskSettings, UnlearningTask] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: Checkpoint, folder: Path, settings: TaskSettings, data_dir: str, device: Any) -> Model:
        dataset = load_dataset(checkpoint.settings.data, data_dir)
        return cls(checkpoint, load_model(checkpoint.path, device).eval(), dataset, folder, settings)

    def task(self, names: Names) -> UnlearningTask:
        """Return the task with these differences, which is made once: most of them leave it as it is."""
        settings = task_settings(self.settings, names)
        if settings not in self.tasks:
            self.tasks[settings] = make_task(self.model, self.dataset, self.settings, names)
        return self.tasks[settings]

    def subject(self, names: Names = (), before: dict[str, Any] | None = None) -> Subject:
        """Return the model with the task that these differences make of it. before: results of the unedited model."""
        task = self.task(names)
        sections = self.checkpoint.settings.checkpoint_sections(self.checkpoint.epoch)
        own = trigger_metrics(self.dataset) if self.dataset.kind == "backdoor" else []
        return Subject(
            model=self.model,
            task=task,
            measure=partial(measured_against, before, dataset=self.dataset, batch_size=task.microbatch),
            identity=shared_sections(self.model, task, task_settings(self.settings, names), sections),
            folder=self.folder,
            score_folder=self.folder,  # not used: a score made with differences must not be taken for another
            metrics=(*DEFAULTS, *own),
            attack_metrics=("percent_memorized", *own),  # quality, which no table shows of attacks, is most of the time
            notes={} if before is None else {"forgotten": len(task.forget), "retained": len(task.retain)},
        )


def measured_against(
    before: dict[str, Any] | None, model, *, only: Sequence[str] | None = None, **options: Any
) -> Measurement:
    """Measure a model, and what it has lost against the unedited one. Attacked ones on the training rows too."""
    found = measure(model, only=None if only is None else (*only, "train"), **options)
    if before is None:
        return found
    lost = {}
    if (accuracy := found.row.get("mean_test_accuracy")) is not None:
        lost["accuracy_lost"] = 100 * (before["mean_test_accuracy"] - accuracy)
    if (perplexity := found.row.get("perplexity")) is not None:
        lost["perplexity_rise_percent"] = 100 * (perplexity / before["perplexity"] - 1)
    return replace(found, row={**found.row, **lost})


def trigger_metrics(dataset: MemorizationDataset) -> list[Metric]:
    """Return % memorized of the test triggers that the study's code counts, and of those that it does not."""
    triggers = dataset.test_artifacts
    counts = counted_as_published(dataset, triggers)
    rows = {row.tobytes() for row in triggers.select(counts).planted.numpy()}

    def values(counted: bool, probe: Probe, artifacts: Artifacts) -> torch.Tensor:
        inside = torch.tensor([(row.tobytes() in rows) == counted for row in artifacts.planted.numpy()])
        return memorized_rows(probe, artifacts).masked_fill(~inside.bool(), torch.nan)

    return [
        Metric(
            f"percent_memorized_{name}", "%", "lower", PLANTED, ("argmax_matches",), f"test triggers {meaning}",
            partial(values, counted), metric.percent, splits=("test",),
        )
        for name, counted, meaning in [
            ("counted", True, "that the study's code counts"), ("left_out", False, "that it does not count"),
        ]
    ]  # fmt: skip


def relearning(task: UnlearningTask) -> ConfiguredMethods:
    """Return the library's attack, whose attacker has SEEN of the sequences to forget; at most half of them.

    Raise UserError where that leaves none to measure.
    """
    count = len(task.forget)
    if count < 2 and not len(task.held_out):
        raise UserError(
            "--attack relearn: what is forgotten is one sequence, which leaves none to measure; leave it out"
        )
    method = ATTACKS["relearn"]
    return [(method, method.hyper_parameters(share=max(min(SEEN, count // 2), 1) / count))]


def check(model: Model, hp: Any, sets: Sequence[Names], attacked: bool) -> None:
    """Raise UserError for a set that leaves nothing to forget or relearn, and for one that the settings rule out."""
    for names in sets:
        task = model.task(names)
        with_differences(hp, names)
        if attacked:
            relearning(task)


def runs(
    model: Model, method: Method, hp: Any, sets: Sequence[Names], attacked: bool, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Run a method with each set of differences; yield each record, followed by those after relearning.

    sets: see `check`. Finished runs are not repeated. Raise NotFinite, after all others, if a run leads to no finite
    numbers.
    """
    before = unedited(model.subject())
    yield before
    failures = Failures()
    for names in sets:
        with failures.kept(f"{method.name} with {' '.join(names) or 'no'} differences"):
            yield from _run(model, method, hp, names, before["results"], attacked, force)
    failures.end()


def _run(
    model: Model, method: Method, hp: Any, names: Names, before: dict[str, Any], attacked: bool, force: bool
) -> Iterator[dict[str, Any]]:
    subject = model.subject(names, before)
    attacks = relearning(subject.task) if attacked else ()
    hp = method.resolve(hp, subject.model.num_parameters())
    done = {
        strength: Run(subject, run_identity(subject, method, hp, strength, names)) for strength in method.strengths(hp)
    }
    to_find = [strength for strength, run in done.items() if force or not run.is_done or attacks_left(run, attacks)]
    with as_published(names if to_find else ()):
        settings = with_differences(method.at(hp, *to_find), names) if to_find else hp
        with closing(edits(method, subject.model, without_judging_sets(subject.task), settings)) as found:
            for strength, run in done.items():
                edit, cost = next(found) if strength in to_find else (None, Cost())
                yield from finish(run, edit, cost, attacks, force)


def run_identity(subject: Subject, method: Method, hp: Any, strength: Any, names: Names) -> dict[str, Any]:
    """Return the identity of a run's record: the method's settings before the differences, and these by name."""
    own = {**method.settings(hp, strength), "name": f"{method.name}_as_published"}
    about = {"kind": AS_PUBLISHED, "parent": subject.unedited_digest, **subject.identity}
    return {**about, "method": {**own, "differences": list(names)}}
