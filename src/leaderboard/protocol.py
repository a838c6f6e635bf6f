"""The jobs of the leaderboard: train, try on the first seed, run and attack what was chosen on every seed.

Everything is done by the ordinary scripts, on the engine of the sweeps. A trial is known by the record that it leaves.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.attacks.registry import find_attacks
from tinymem.errors import UserError
from tinymem.leaderboard.cases import TASK, Case
from tinymem.leaderboard.entrants import FT_EPOCHS, Edit, Entrant, Recorded, Submitted, Trained, Trial, pinned
from tinymem.localize.method import Method
from tinymem.models.difference import check_same, check_same_tokens
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.production import tokenizer_in
from tinymem.models.tinymem import load_model
from tinymem.options import as_flags
from tinymem.records.identity import MEASURED, TRAIN, UNEDITED, UNLEARN, run_key
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import (
    MEASURE,
    Checkpoint,
    Common,
    checkpoints,
    finetune_job,
    localize_jobs,
    train_job,
    unlearning_identity,
)
from tinymem.training.finetune import FT_DATA, FinetuneSettings
from tinymem.training.settings import RunSettings

LARGEST = 4 * 2**20  # bytes of weights that are published beside the records
PRIVATE = ("state.safetensors", "run.json", "metrics.*", "finetuned", "unlearned", ".*")  # what others do not need
METRICS = ("forward", "percent_near_verbatim")
ATTACK_METRICS = ("percent_memorized", "percent_extractable", "exact_match_share")
SMALL_ATTACKS: dict[str, dict[str, Any]] = {"weight_noise": {"draws": 1}}  # of small cases, as published: no defaults
FINETUNING = {name: FinetuneSettings(ft_data=name, ft_epochs=max(FT_EPOCHS)) for name in FT_DATA}  # a trial: one epoch


@dataclass(frozen=True)
class Bench:
    """The models of one case and seed, and the folder of the records on them. attacks: their names, or all."""

    case: Case
    seed: int
    folder: Path
    attacks: tuple[str, ...] = ("all",)

    @property
    def models(self) -> Path:
        return self.folder / f"seed{self.seed}" / "models"

    @property
    def records(self) -> Path:
        return self.folder / f"seed{self.seed}" / "runs"

    @property
    def settings(self) -> RunSettings:
        return self.case.at(self.seed)

    @property
    def pair(self) -> tuple[RunSettings, RunSettings]:
        """The settings of the planted model and of its twin."""
        return self.settings, self.case.twin_at(self.seed)

    @property
    def checkpoint(self) -> Checkpoint:
        """The planted model that is edited."""
        return last_checkpoint(self.settings, self.models)

    @property
    def base(self) -> dict[str, Any]:
        """The sections that all records on the planted model share."""
        return unlearning_identity(self.settings, self.settings.training.epochs, TASK)

    def trained(self, trial: Trained) -> RunSettings:
        """Return the settings of a training with a trial's regularizers."""
        return replace(self.settings, regularizers=trial.regularizers)


def publish(bench: Bench, output: Path) -> None:
    """Copy the planted model and its twin into OUTPUT/seedN, unless they are large: others then edit the same weights."""
    for settings in bench.pair:
        source, target = bench.models / settings.name, _published(output, bench) / settings.name
        checkpoint = last_checkpoint(settings, bench.models).path
        weights = sum(path.stat().st_size for path in checkpoint.glob("model*.safetensors"))
        if 0 < weights <= LARGEST and not target.exists():
            _copy(source, target, shutil.ignore_patterns(*PRIVATE))


def take_up(bench: Bench, output: Path) -> None:
    """Copy the models that `publish` wrote to where the runs on them look for them, if none are there."""
    for settings in bench.pair:
        source, target = _published(output, bench) / settings.name, bench.models / settings.name
        if source.is_dir() and not target.exists():
            _copy(source, target)


def _copy(source: Path, target: Path, ignore: Any = None) -> None:
    files.write_folder(target, lambda place: shutil.copytree(source, place, ignore=ignore, dirs_exist_ok=True))


def _published(output: Path, bench: Bench) -> Path:
    return output / f"seed{bench.seed}"


def last_checkpoint(settings: RunSettings, models: Path) -> Checkpoint:
    (found,) = checkpoints(settings, models, (settings.training.epochs,))
    return found


def training_jobs(bench: Bench, common: Common) -> list[Job]:
    """Return the trainings of the planted model and its twin, and what measures and attacks both, unedited."""
    trainings = [train_job(settings, bench.models, common) for settings in bench.pair]
    place = str(bench.checkpoint.path)
    unedited = Job(
        name=f"unedited {place}",
        group="unedited and twin",
        words=(MEASURE, place, *_measuring(bench, common), *_attacking(bench)),
        folder=str(bench.records),
        identity={"kind": UNEDITED, **bench.base},
        after=tuple(job.name for job in trainings),
        attacks=_attacks(bench),
    )
    return [*trainings, unedited]


def trial_jobs(entrant: Entrant, bench: Bench, common: Common, done: Container[tuple] = ()) -> list[Job]:
    """Return the jobs of an entrant's trials, without those whose `run_key` is among those that are done."""
    left = together(trial for trial in alone(entrant) if key_of(trial, bench) not in done)
    return [job for trial in left for job in jobs_of(trial, entrant, bench, common)]


def jobs_of(trial: Trial, entrant: Entrant, bench: Bench, common: Common, attacked: bool = False) -> list[Job]:
    """Return the job of a trial on the model of a seed, behind the trainings that it needs. attacked: also attack it."""
    assert not isinstance(trial, Recorded), "its record is there"
    attacks: dict[str, Any] = dict(attacks=_attacks(bench)) if attacked else {}
    flags = (*_measuring(bench, common), *(_attacking(bench) if attacked else ()))
    unedited = f"unedited {bench.checkpoint.path}"
    if isinstance(trial, Edit):
        (job,) = localize_jobs(bench.checkpoint, [(trial.method, trial.hp)], TASK, common, bench.records)
        words = (*job.words, "--metrics", *METRICS, *(_attacking(bench) if attacked else ()))
        return [
            replace(job, group=entrant.name, words=words, after=(*job.after, unedited), nothing_to_do=None, **attacks)
        ]
    jobs: list[Job] = []
    if isinstance(trial, Submitted):
        place, folder = f"{trial.label} {bench.checkpoint.name}", dict(trial.folders)[bench.seed]
        flags += () if trial.seconds is None else (f"--seconds={trial.seconds}",)
    elif trial.ft_data:
        checkpoint = replace(bench.checkpoint, trained_by=f"train {bench.settings.name}")
        jobs = [replace(finetune_job(checkpoint, FINETUNING[trial.ft_data], common), group=entrant.name)]
        place, folder = f"{trial.label} {bench.checkpoint.name}", f"{jobs[0].folder}/epoch_{trial.epoch}"
    else:
        settings = bench.trained(trial)
        jobs = [replace(train_job(settings, bench.models, common), group=entrant.name)]
        place, folder = f"{trial.label} {settings.name}", str(last_checkpoint(settings, bench.models).path)
    words = (MEASURE, folder, "--edit_of", str(bench.checkpoint.path), "--name", trial.label, *flags)
    measuring = Job(
        name=f"measure {place}",
        group=entrant.name,
        words=words,
        folder=str(bench.records),
        identity=identity_of(trial, bench),
        after=(*(job.name for job in jobs), unedited),
        **attacks,
    )
    return [*jobs, measuring]


def check_submission(trial: Submitted, bench: Bench, known: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError if a seed's folder is no edit of its model, or if other weights have results under this name.

    known: the records that there are. The seed's model must have been trained.
    """
    folder = dict(trial.folders)[bench.seed]
    model = load_model(folder)
    check_same(load_model(bench.checkpoint.path), model, folder)
    check_same_tokens(tokenizer_in(bench.checkpoint.path), tokenizer_in(Path(folder)), folder)
    if ill := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
        raise UserError(f"{folder}: {ill[0]} holds values that are no finite numbers")
    section, key = {"name": trial.label, "weights": weights_fingerprint(model)}, key_of(trial, bench)
    if any(record["method"] != section for record in known if record["kind"] == MEASURED and run_key(record) == key):
        raise UserError(
            f"--name {trial.label}: other weights of seed {bench.seed} have results under it; give another name"
        )


def identity_of(trial: Trial, bench: Bench) -> dict[str, Any]:
    """Return kind and sections, without fingerprints, of the record that a trial with one strength leaves."""
    if isinstance(trial, Recorded):
        return {"kind": UNLEARN, **bench.base, "method": trial.section}
    if isinstance(trial, Edit):
        (strength,) = trial.strengths
        section = trial.method.settings(trial.method.resolve(trial.hp, 0), strength)
        return {"kind": UNLEARN, **bench.base, "method": section}
    return {"kind": MEASURED, **bench.base, "method": {"name": trial.label}}


def training_identity(trial: Trained, bench: Bench) -> dict[str, Any]:
    """Return the identity of the record of a trial's own training."""
    if trial.ft_data:
        return FINETUNING[trial.ft_data].identity(bench.settings, bench.settings.training.epochs)
    return {"kind": TRAIN, **bench.trained(trial).sections()}


def key_of(trial: Trial, bench: Bench) -> tuple:
    """Return the `run_key` of a trial's record."""
    return run_key(identity_of(trial, bench))


def alone(entrant: Entrant) -> list[Trial]:
    """Return an entrant's trials, those with several strengths taken apart."""
    return [one for trial in entrant.trials for one in (trial.alone() if isinstance(trial, Edit) else [trial])]


def together(trials: Iterable[Trial]) -> list[Trial]:
    """Return trials with those that differ only in strength joined, since they share a command."""
    joined: dict[Any, Trial] = {}
    for trial in trials:
        if not isinstance(trial, Edit) or trial.method.strength is None:
            joined.setdefault(trial, trial)
            continue
        rest = (trial.method.name, replace(trial.hp, **{trial.method.strength: ()}))
        before = joined.get(rest)
        strengths = before.strengths if isinstance(before, Edit) else ()
        joined[rest] = Edit(trial.method, trial.method.at(trial.hp, *dict.fromkeys((*strengths, *trial.strengths))))
    return list(joined.values())


def _attacks(bench: Bench) -> tuple[Mapping[str, Any], ...]:
    """Return the sections `attack` of a bench's attacks at all their strengths."""
    return tuple(method.settings(hp, value) for method, hp in _settings(bench) for value in method.strengths(hp))


def _attacking(bench: Bench) -> tuple[str, ...]:
    """Return the flags of a bench's attacks."""
    flags = (word for method, hp in _settings(bench) for word in as_flags(hp, prefix=f"{method.name}."))
    return ("--attack", *bench.attacks, "--attack_metrics", *ATTACK_METRICS, *flags)


def _settings(bench: Bench) -> list[tuple[Method, Any]]:
    """Return a bench's attacks with their settings."""
    found = find_attacks(bench.attacks, "--attacks")
    own = SMALL_ATTACKS if bench.case.small else {}
    return [(method, pinned(method.hyper_parameters(**own.get(method.name, {})), bench.case.small)) for method in found]


def _measuring(bench: Bench, common: Common) -> tuple[str, ...]:
    """Return the flags of measure.py: splits, metrics, places."""
    return (*as_flags(TASK), "--metrics", *METRICS, "--output_dir", str(bench.records), *common.words)
