"""The models of one case and seed: their paths, the commands that make and measure them, and how to open them."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.data import numbers
from tinymem.data.build import load_dataset
from tinymem.data.chunks import load_tokenizer
from tinymem.data.dataset import MemorizationDataset
from tinymem.data.decode import text_decoder
from tinymem.data.passages import load_passages
from tinymem.errors import UserError
from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.entrants import TrainingTrial
from tinymem.leaderboard.planted import PlantedSettings
from tinymem.localize.method import Method
from tinymem.metrics.examples import Decode
from tinymem.models.production import open_causal_lm, open_description, tokenizer_in
from tinymem.models.tinymem import load_model
from tinymem.options import as_flags
from tinymem.records.finder import records_in
from tinymem.records.identity import PLANTED_MODEL, UNEDITED, is_run
from tinymem.sweeps.job import Job
from tinymem.sweeps.jobs import (
    Checkpoint,
    Common,
    checkpoints,
    jobs_on,
    localize_jobs,
    opened_description,
    production_task_flags,
    train_job,
    unlearning_identity,
)
from tinymem.training.settings import RunSettings
from tinymem.training.twin import twin_of

LARGEST = 4 * 2**20  # bytes of weights that are published next to the records
# Files that other users do not need.
PRIVATE = ("state.safetensors", "run.json", "metrics.*", "finetuned", "unlearned", "scores", ".*")


@dataclass(frozen=True)
class Bench(ABC):
    """The models of one case and seed, and the folder of their records. attacks: names of attacks, or all."""

    case: Case
    seed: int
    folder: Path = Path()
    attacks: tuple[str, ...] = ("all",)

    @property
    def models(self) -> Path:
        return self.folder / f"seed{self.seed}" / "models"

    @property
    def records(self) -> Path:
        return self.folder / f"seed{self.seed}" / "runs"

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the planted model in jobs."""

    @property
    @abstractmethod
    def unedited_job(self) -> str:
        """The name of the job that measures the planted model and its twin."""

    @property
    @abstractmethod
    def measure_arguments(self) -> tuple[str, ...]:
        """The model as an argument of measure.py, and the flags of its data and task."""

    @property
    @abstractmethod
    def shared_sections(self) -> dict[str, Any]:
        """The sections that all records on the planted model share."""

    @abstractmethod
    def training_jobs(self, common: Common) -> list[Job]:
        """Return the jobs that make the planted model and its twin."""

    @abstractmethod
    def editing_job(self, method: Method, hp: Any, common: Common) -> Job:
        """Return the job of a method on the planted model."""

    @abstractmethod
    def model_folder(self, data_dir: str) -> Path:
        """Return the folder of the planted model. Raise UserError if it has not been made yet."""

    @abstractmethod
    def open_model(self, folder: Path) -> tuple[Any, Any]:
        """Return (model, tokenizer or None) of an edit of the planted model, on the CPU."""

    @abstractmethod
    def dataset(self, data_dir: str) -> MemorizationDataset:
        """Return the data of the planted model."""

    @abstractmethod
    def decode(self, data_dir: str) -> Decode:
        """Return a function that turns the model's token ids into text."""

    @abstractmethod
    def publish(self, output: Path) -> None:
        """Copy the models into OUTPUT/seedN, unless they are large, so that others edit the same weights."""

    @abstractmethod
    def has_models(self, output: Path) -> bool:
        """Return whether models exist where the runs look for them or where `publish` wrote them."""

    @abstractmethod
    def restore_published(self, output: Path) -> None:
        """Copy what `publish` wrote to where the runs look for it, unless something is there."""

    def measured(self) -> Mapping[str, Any] | None:
        """Return the record of the unedited planted model, if it has been measured here.

        Raise UserError for a record with other settings, since runs on both models would be judged by either.
        """
        unedited = [record for record in records_in(self.records) if record["kind"] == UNEDITED]
        if not all(is_run(record, {"kind": UNEDITED, **self.shared_sections}) for record in unedited):
            raise UserError(f"{self.records}: its runs are of other settings than these; give another --run_dir")
        return unedited[0] if unedited else None

    def not_made(self, model: str | Path) -> UserError:
        return UserError(f"{model}: no such model; run experiments/leaderboard.py with --methods anchor first")


def bench_of(case: Case, seed: int, folder: Path = Path(), attacks: Sequence[str] = ("all",)) -> Bench:
    """Return the models of a case and seed."""
    return (PlantedBench if case.is_planted else TrainedBench)(case, seed, folder, tuple(attacks))


@dataclass(frozen=True)
class TrainedBench(Bench):
    """Models that are trained from scratch; the twin is trained without planted sequences."""

    @property
    def settings(self) -> RunSettings:
        settings = self.case.trained
        return replace(settings, data=replace(settings.data, seed=self.seed))

    @property
    def pair(self) -> tuple[RunSettings, RunSettings]:
        """The settings of the planted model and of its twin."""
        return self.settings, twin_of(self.settings)

    @property
    def checkpoint(self) -> Checkpoint:
        """The planted model that is edited."""
        return last_checkpoint(self.settings, self.models)

    def with_regularizers(self, trial: TrainingTrial) -> RunSettings:
        """Return the settings of a training with a trial's regularizers."""
        return replace(self.settings, regularizers=trial.regularizers)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def unedited_job(self) -> str:
        return f"unedited {self.checkpoint.path}"

    @property
    def measure_arguments(self) -> tuple[str, ...]:
        return str(self.checkpoint.path), *as_flags(self.case.task)

    @property
    def shared_sections(self) -> dict[str, Any]:
        return unlearning_identity(self.settings, self.settings.training.epochs, self.case.task)

    def training_jobs(self, common: Common) -> list[Job]:
        return [train_job(settings, self.models, common) for settings in self.pair]

    def editing_job(self, method: Method, hp: Any, common: Common) -> Job:
        (job,) = localize_jobs(self.checkpoint, [(method, hp)], self.case.task, common, self.records)
        return job

    def model_folder(self, data_dir: str) -> Path:
        if not self.checkpoint.path.is_dir():
            raise self.not_made(self.checkpoint.path)
        return self.checkpoint.path

    def open_model(self, folder: Path) -> tuple[Any, Any]:
        return load_model(folder), tokenizer_in(folder)

    def dataset(self, data_dir: str) -> MemorizationDataset:
        return load_dataset(self.settings.data, data_dir)

    def decode(self, data_dir: str) -> Decode:
        data = self.settings.data
        return text_decoder(load_tokenizer(data, data_dir)) if data.is_text else numbers.decode

    def publish(self, output: Path) -> None:
        for settings in self.pair:
            target, checkpoint = self._published(output, settings), last_checkpoint(settings, self.models).path
            weights = sum(path.stat().st_size for path in checkpoint.glob("model*.safetensors"))
            if 0 < weights <= LARGEST and not target.exists():
                _copy(self.models / settings.name, target, shutil.ignore_patterns(*PRIVATE))

    def has_models(self, output: Path) -> bool:
        return all(
            (self.models / settings.name).exists() or self._published(output, settings).is_dir()
            for settings in self.pair
        )

    def restore_published(self, output: Path) -> None:
        for settings in self.pair:
            source, target = self._published(output, settings), self.models / settings.name
            if source.is_dir() and not target.exists():
                _copy(source, target)

    def _published(self, output: Path, settings: RunSettings) -> Path:
        return output / f"seed{self.seed}" / settings.name


def last_checkpoint(settings: RunSettings, models: Path) -> Checkpoint:
    """Return the last checkpoint of a training under a folder of models."""
    (checkpoint,) = checkpoints(settings, models, (settings.training.epochs,))
    return checkpoint


def _copy(source: Path, target: Path, ignore: Any = None) -> None:
    files.write_folder(target, lambda place: shutil.copytree(source, place, ignore=ignore, dirs_exist_ok=True))


@dataclass(frozen=True)
class PlantedBench(Bench):
    """A language model with planted passages. The scripts plant them on first use and keep the result."""

    @property
    def settings(self) -> PlantedSettings:
        return self.case.planted.at(self.seed)

    @property
    def name(self) -> str:
        return f"{self.settings.model.label} seed {self.seed}"

    @property
    def unedited_job(self) -> str:
        return f"unedited {self.name}"

    @property
    def measure_arguments(self) -> tuple[str, ...]:
        model = self.settings.model
        return model.name, *model.flags, *production_task_flags(self.case.task)

    @property
    def shared_sections(self) -> dict[str, Any]:
        return {**self.settings.sections, "forget": self.case.task.recorded()}

    def training_jobs(self, common: Common) -> list[Job]:
        return []

    def editing_job(self, method: Method, hp: Any, common: Common) -> Job:
        model = self.settings.model
        (job,) = jobs_on(model, self.settings.identity, [(method, hp)], self.case.task, common, self.records)
        return replace(job, name=f"{job.name} seed {self.seed}")

    def model_folder(self, data_dir: str) -> Path:
        if (record := self.measured()) is None:
            raise self.not_made(self.name)
        folder = Path(data_dir) / "models" / record["training"][PLANTED_MODEL]
        if not folder.is_dir():
            raise UserError(f"--data_dir {data_dir}: has no models/{folder.name}, on which the runs of {self.name} "
                            "are; give the folder that they had, or another --run_dir")  # fmt: skip
        return folder

    def open_model(self, folder: Path) -> tuple[Any, Any]:
        return open_causal_lm(folder, dtype=self.settings.model.loading.dtype)

    def dataset(self, data_dir: str) -> MemorizationDataset:
        model = self.settings.model
        return load_passages(model.passages, model.data, *open_description(self.model_folder(data_dir))).dataset

    def decode(self, data_dir: str) -> Decode:
        return text_decoder(opened_description(self.settings.model, data_dir)[1])

    def publish(self, output: Path) -> None:
        """Publish nothing: these models are large."""

    def has_models(self, output: Path) -> bool:
        return self.measured() is not None

    def restore_published(self, output: Path) -> None:
        """Copy nothing: none are published."""
