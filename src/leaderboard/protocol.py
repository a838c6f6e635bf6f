"""The jobs of the leaderboard: train, try settings on the first seed, run and attack the chosen ones on every seed.

The ordinary scripts do everything, run by the sweeps' engine. A trial is identified by its record.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinymem.attacks.registry import SMALL, budget, find_attacks
from tinymem.errors import UserError
from tinymem.leaderboard.bench import Bench, TrainedBench, last_checkpoint
from tinymem.leaderboard.entrants import EditTrial, Entrant, RecordedTrial, SubmittedTrial, TrainingTrial, Trial, pinned
from tinymem.leaderboard.spaces import FT_EPOCHS
from tinymem.localize.method import Method
from tinymem.models.difference import check_same, check_same_tokens
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.options import as_flags
from tinymem.plugins import is_plugin
from tinymem.records.identity import MEASURED, TRAIN, UNEDITED, UNLEARN, run_key
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import MEASURE, Common, finetune_job, train_job
from tinymem.training.finetune import FT_DATA, FinetuneSettings

METRICS = ("forward", "percent_near_verbatim")
ATTACK_METRICS = ("percent_memorized", "percent_extractable", "exact_match_share")
# Settings of small cases that are not at their defaults: those of the first published results, so that rows stay
# comparable.
SMALL_ATTACKS: dict[str, dict[str, Any]] = {
    "weight_noise": {"draws": 1},
    "interpolate": {"alpha": (0.1, 0.25, 0.5, 0.75)},
    **dict.fromkeys(("prefix_shift", "prefix_shorten", "similar_tokens"), {"keep_bos": False}),
}
FINETUNING = {name: FinetuneSettings(ft_data=name, ft_epochs=max(FT_EPOCHS)) for name in FT_DATA}  # a trial: one epoch


def reference_jobs(bench: Bench, common: Common) -> list[Job]:
    """Return the jobs that train the planted model and its twin, and measure and attack both, unedited."""
    trainings = bench.training_jobs(common)
    measuring = Job(
        name=bench.unedited_job,
        group="unedited and twin",
        words=(MEASURE, *bench.measure_arguments, *_measuring(bench, common), *_attacking(bench)),
        folder=str(bench.records),
        identity={"kind": UNEDITED, **bench.shared_sections},
        after=tuple(job.name for job in trainings),
        attacks=_attacks(bench),
    )
    return [*trainings, measuring]


def trial_jobs(entrant: Entrant, bench: Bench, common: Common, done: Container[tuple] = ()) -> list[Job]:
    """Return the jobs of an entrant's trials, except those whose `run_key` is in `done`."""
    left = join_strengths(trial for trial in split_strengths(entrant) if key_of(trial, bench) not in done)
    return [job for trial in left for job in jobs_of(trial, entrant, bench, common)]


def jobs_of(trial: Trial, entrant: Entrant, bench: Bench, common: Common, attacked: bool = False) -> list[Job]:
    """Return the job of a trial on a seed's model, after the trainings that it needs. attacked: also attack it."""
    assert not isinstance(trial, RecordedTrial), "its record is there"
    attacks: dict[str, Any] = dict(attacks=_attacks(bench)) if attacked else {}
    attacking = _attacking(bench) if attacked else ()
    if isinstance(trial, EditTrial):
        job = bench.editing_job(trial.method, trial.hp, common)
        words = (*job.words, "--metrics", *METRICS, *attacking)
        after = (*job.after, bench.unedited_job)
        return [replace(job, group=entrant.name, words=words, after=after, nothing_to_do=None, **attacks)]
    jobs: list[Job] = []
    cost: tuple[str, ...] = ()
    if isinstance(trial, SubmittedTrial):
        place, folder = f"{trial.label} {bench.name}", dict(trial.folders)[bench.seed]
        cost = () if trial.seconds is None else (f"--seconds={trial.seconds}",)
    else:
        jobs, place, folder = _training_of(trial, entrant, bench, common)
    model, *flags = bench.measure_arguments
    words = (MEASURE, folder, "--edit_of", model, f"--name={trial.label}", *flags, *_measuring(bench, common))
    measuring = Job(
        name=f"measure {place}",
        group=entrant.name,
        words=(*words, *attacking, *cost),
        folder=str(bench.records),
        identity=trial_identity(trial, bench),
        after=(*(job.name for job in jobs), bench.unedited_job),
        **attacks,
    )
    return [*jobs, measuring]


def _training_of(trial: TrainingTrial, entrant: Entrant, bench: Bench, common: Common) -> tuple[list[Job], str, str]:
    """Return the job of a trial that trains, and the name and folder of the model it makes."""
    assert isinstance(bench, TrainedBench), "others do not train their models"
    if trial.ft_data:
        checkpoint = replace(bench.checkpoint, trained_by=f"train {bench.settings.name}")
        job = finetune_job(checkpoint, FINETUNING[trial.ft_data], common)
        name, folder = bench.name, f"{job.folder}/epoch_{trial.epoch}"
    else:
        settings = bench.with_regularizers(trial)
        job = train_job(settings, bench.models, common)
        name, folder = settings.name, str(last_checkpoint(settings, bench.models).path)
    return [replace(job, group=entrant.name)], f"{trial.label} {name}", folder


def check_submission(
    trial: SubmittedTrial, bench: Bench, known: Iterable[Mapping[str, Any]], data_dir: str = "data"
) -> None:
    """Raise UserError if a folder is no edit of its seed's model, or if the name has results of other weights or cost.

    known: the existing records. The seed's model must have been trained.
    """
    folder = dict(trial.folders)[bench.seed]
    original, original_tokenizer = bench.open_model(bench.model_folder(data_dir))
    model, tokenizer = bench.open_model(Path(folder))
    check_same(original, model, folder)
    check_same_tokens(original_tokenizer, tokenizer, folder)
    if ill := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
        raise UserError(f"{folder}: {ill[0]} holds values that are no finite numbers")
    section, key = {"name": trial.label, "weights": weights_fingerprint(model)}, key_of(trial, bench)
    for record in (record for record in known if record["kind"] == MEASURED and run_key(record) == key):
        if record["method"] != section:
            raise UserError(
                f"--name {trial.label}: other weights of seed {bench.seed} have results under it; give another name"
            )
        said = record["cost"]["seconds"]
        if trial.seconds is not None and round(trial.seconds, 3) != said:  # rounded as in records
            raise UserError(
                f"--seconds {trial.seconds:g}: the results of {trial.label} say {said}; leave it out, or give another "
                "--name"
            )


def trial_identity(trial: Trial, bench: Bench) -> dict[str, Any]:
    """Return the kind and sections, without fingerprints, of the record of a trial with one strength."""
    if isinstance(trial, RecordedTrial):
        return {"kind": UNLEARN, **bench.shared_sections, "method": trial.section}
    if isinstance(trial, EditTrial):
        (strength,) = trial.strengths
        section = trial.method.settings(trial.method.resolve(trial.hp, 0), strength)
        return {"kind": UNLEARN, **bench.shared_sections, "method": section}
    return {"kind": MEASURED, **bench.shared_sections, "method": {"name": trial.label}}


def training_identity(trial: TrainingTrial, bench: Bench) -> dict[str, Any]:
    """Return the identity of the record of a trial's own training."""
    assert isinstance(bench, TrainedBench), "others do not train their models"
    if trial.ft_data:
        return FINETUNING[trial.ft_data].identity(bench.settings, bench.settings.training.epochs)
    return {"kind": TRAIN, **bench.with_regularizers(trial).sections()}


def key_of(trial: Trial, bench: Bench) -> tuple:
    """Return the `run_key` of a trial's record."""
    return run_key(trial_identity(trial, bench))


def split_strengths(entrant: Entrant) -> list[Trial]:
    """Return an entrant's trials, split into single strengths."""
    return [
        single
        for trial in entrant.trials
        for single in (trial.split_strengths() if isinstance(trial, EditTrial) else [trial])
    ]


def join_strengths(trials: Iterable[Trial]) -> list[Trial]:
    """Join trials that differ only in strength, since they share a command."""
    joined: dict[Any, Trial] = {}
    for trial in trials:
        if not isinstance(trial, EditTrial) or trial.method.strength is None:
            joined.setdefault(trial, trial)
            continue
        rest = (trial.method.name, replace(trial.hp, **{trial.method.strength: ()}))
        before = joined.get(rest)
        strengths = before.strengths if isinstance(before, EditTrial) else ()
        joined[rest] = EditTrial(
            trial.method, trial.method.at(trial.hp, *dict.fromkeys((*strengths, *trial.strengths)))
        )
    return list(joined.values())


def _attacks(bench: Bench) -> tuple[Mapping[str, Any], ...]:
    """Return the sections `attack` of a bench's attacks at all their strengths."""
    return tuple(method.settings(hp, value) for method, hp in _settings(bench) for value in method.strengths(hp))


def _attacking(bench: Bench) -> tuple[str, ...]:
    """Return the flags of a bench's attacks, with absolute paths of users' files."""
    found = _settings(bench)
    names = [*(name for name in bench.attacks if not is_plugin(name)), *(each.place for each, _ in found if each.code)]
    flags = (word for method, hp in found for word in as_flags(hp, prefix=f"{method.name}."))
    return ("--attack", *names, "--attack_metrics", *ATTACK_METRICS, *flags)


def _settings(bench: Bench) -> list[tuple[Method, Any]]:
    """Return a bench's attacks with their settings. Language models get the small budget."""

    def changed(attack: Method) -> dict[str, Any]:
        if bench.case.is_planted:
            return budget(attack, SMALL)
        return SMALL_ATTACKS.get(attack.name, {}) if bench.case.small else {}

    found = find_attacks(bench.attacks, "--attacks")
    return [(attack, pinned(attack.hyper_parameters(**changed(attack)), bench.case.precision)) for attack in found]


def _measuring(bench: Bench, common: Common) -> tuple[str, ...]:
    """Return the flags of measure.py: metrics and folders."""
    return ("--metrics", *METRICS, "--output_dir", str(bench.records), *common.words)
