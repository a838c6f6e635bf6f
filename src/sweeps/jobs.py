"""The jobs of sweeps: train, fine-tune and unlearn with the ordinary scripts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinymem.data.corpus import find_corpus, resolve_corpus
from tinymem.data.passages import PassageSettings, check_passages, passages_identity
from tinymem.data.production import ProductionSettings, text_token_set
from tinymem.data.token_sets import read_token_set
from tinymem.data.tokenizer import beginning, bos_identity
from tinymem.errors import UserError
from tinymem.localize.method import Method
from tinymem.localize.task import TaskSettings
from tinymem.models.gguf import is_packaged, packaged_model
from tinymem.models.production import LoadSettings, model_identity, open_description, run_label
from tinymem.options import as_flags
from tinymem.records.identity import TRAIN, UNEDITED, UNLEARN
from tinymem.regularizers.registry import REGULARIZERS
from tinymem.scripts import SCRIPTS
from tinymem.sweeps.job import Job
from tinymem.training.checkpoint import SETTINGS, load_trained
from tinymem.training.finetune import FinetuneSettings
from tinymem.training.plant import PlantSettings
from tinymem.training.settings import RunSettings

TRAINING, FINETUNING, LOCALIZE, PRODUCTION, MEASURE = (
    SCRIPTS[name].start for name in ("train", "finetune", "unlearn", "unlearn-lm", "measure")
)


@dataclass(frozen=True)
class Common:
    """The flags that every command of a sweep gets."""

    data_dir: str
    device: str = "auto"

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Common:
        """Return the flags of a command line, with absolute paths, since commands run in the repository's folder."""
        return cls(str(Path(arguments.data_dir).absolute()), arguments.device)

    @property
    def words(self) -> tuple[str, ...]:
        """The flags as words of a command line."""
        return "--data_dir", self.data_dir, "--device", self.device


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a training run, existing or to be trained by the job `trained_by`."""

    path: Path
    settings: RunSettings
    epoch: int
    trained_by: str | None = None

    @property
    def name(self) -> str:
        """RUN/epoch_N, unique among the checkpoints of a sweep."""
        return f"{self.path.parent.name}/{self.path.name}"


def training_words(settings: RunSettings, folder: str | Path, common: Sequence[str]) -> tuple[str, ...]:
    """Return the script and flags of a training. common: the flags that all commands get, as words."""
    return (TRAINING, *as_flags(*settings.parts), "--output_dir", str(folder), *common)


def train_job(settings: RunSettings, models: Path, common: Common) -> Job:
    """Return the job of a training in MODELS/NAME, named by its settings."""
    folder = models / settings.name
    regularized = " ".join(
        e.name for e in REGULARIZERS for part in settings.regularizers if isinstance(part, e.settings)
    )
    return Job(
        name=f"train {settings.name}",
        group=f"{settings.data.data_name} {settings.data.artifact} {regularized}".strip(),
        words=training_words(settings, folder, common.words),
        folder=str(folder),
        identity={"kind": TRAIN, **settings.sections()},
    )


def checkpoints(settings: RunSettings, models: Path, epochs: Sequence[int]) -> list[Checkpoint]:
    """Return checkpoints of the training of `train_job`."""
    folder = models / settings.name
    return [Checkpoint(folder / f"epoch_{n}", settings, n, f"train {settings.name}") for n in epochs]


def find_checkpoint(path: Path) -> Checkpoint:
    """Return an existing checkpoint. Raise UserError if the folder is not a checkpoint of a training run."""
    details = load_trained(path)
    return Checkpoint(path, RunSettings.from_flat(details["settings"], path / SETTINGS), details["epoch"])


def finetune_job(checkpoint: Checkpoint, finetuning: FinetuneSettings, common: Common) -> Job:
    """Return the job of a fine-tuning, in the default folder of ft_toy_model.py."""
    folder = checkpoint.path.parent / "finetuned" / f"{checkpoint.path.name}_{finetuning.ft_data}"
    return Job(
        name=f"finetune {checkpoint.name} {finetuning.ft_data}",
        group=finetuning.ft_data,
        words=(FINETUNING, "--model_path", str(checkpoint.path), "--ft_data", finetuning.ft_data)
        + ("--ft_epochs", str(finetuning.ft_epochs), "--output_dir", str(folder), *common.words),
        folder=str(folder),
        identity=finetuning.identity(checkpoint.settings, checkpoint.epoch),
        after=_after(checkpoint),
    )


def localize_jobs(
    checkpoint: Checkpoint, grid: Sequence[tuple[Method, Any]], task: TaskSettings, common: Common, folder=None
) -> list[Job]:
    """Return one job per method with its hyper-parameters, for all strengths, on a TinyMem checkpoint.

    folder: that of the records; None: the default of localize_memorization.py, next to the model.
    """
    folder = str(folder or checkpoint.path.parent / "unlearned" / checkpoint.path.name)
    base = unlearning_identity(checkpoint.settings, checkpoint.epoch, task)
    places = ("--output_dir", folder, *common.words)

    def job_of(method: Method, hp: Any) -> Job:
        flags = as_flags(hp, leave_out=(method.strength,))
        return Job(
            name=" ".join((method.name, checkpoint.name, *flags)),
            group=method.name,
            words=(LOCALIZE, "--model_path", str(checkpoint.path), "--localization_method", method.place)
            + (*flags, *as_flags(task), "--no_save_model", *places),
            folder=folder,
            identity={"kind": UNLEARN, **base, "method": method.unvaried(hp)},
            varies=method.strength,
            values=method.strengths(hp),
            after=_after(checkpoint),
            nothing_to_do={"kind": UNEDITED, **base} if task.unlearn_set_name == "mem" else None,
        )

    return [job_of(method, hp) for method, hp in grid]


def unlearning_identity(settings: RunSettings, epoch: int, task: TaskSettings) -> dict[str, Any]:
    """Return the sections that all unlearning runs on a checkpoint share, however long it was trained."""
    return {**settings.checkpoint_sections(epoch), "forget": task.recorded()}


@dataclass(frozen=True)
class Production:
    """A production model and its data, with the settings of prod_grad.py.

    passages     the passages to plant first, if any; planting: how to plant them
    whole_node   each of its runs needs the memory of a cluster node
    """

    name: str
    loading: LoadSettings
    data: ProductionSettings
    whole_node: bool = False
    passages: PassageSettings = PassageSettings()
    planting: PlantSettings = PlantSettings()

    @property
    def label(self) -> str:
        """The name of its folder, as by default in prod_grad.py."""
        return run_label(self.name, self.loading.step)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of the model and data, without the model's name, for the scripts for production models."""
        return tuple(as_flags(self.loading, self.data, self.passages, self.planting))

    def sections(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sections that all records on the model share. data: what identifies its sequences."""
        planted = {"training": asdict(self.planting)} if self.passages.plant is not None else {}
        return {"data": dict(data), "model": self.loading.section(self.name), **planted}


def located(model: Production, data_dir: str) -> tuple[Production, dict[str, Any]]:
    """Return a model with absolute paths and its text chosen, and what identifies its sequences in records.

    data_dir: where packaged models are unpacked. Raise UserError for a damaged file. A missing file contributes
    nothing, so records on it are not found.
    """
    if model.passages.plant is not None:
        return located_passages(model, data_dir)[:2]
    model = _with_absolute_paths(model)
    data = model.data
    section: dict[str, Any] = data.sizes | _bos_section(model, data_dir)
    if data.memorized and Path(data.memorized).exists():
        section["memorized_data"] = _memorized_fingerprint(model, data, data_dir)
    if data.random is None:
        text = resolve_corpus(data.text)
        model = replace(model, data=replace(data, corpus=text.corpus))
        section["random_data"] = find_corpus(text).label
    elif Path(data.random).exists():
        section["random_data"] = read_token_set(data.random).fingerprint
    return model, section


def located_passages(model: Production, data_dir: str) -> tuple[Production, dict[str, Any], Any]:
    """Return the result of `located` for a model with passages to plant, and the model's config."""
    model = _with_absolute_paths(model)
    config, tokenizer = opened_description(model, data_dir)
    corpus = check_passages(model.passages, model.data, config.get_text_config())
    begin = beginning(model.data.bos, tokenizer, config)
    return model, passages_identity(model.passages, model.data, corpus, begin), config


def production_jobs(
    model: Production, grid: Sequence[tuple[Method, Any]], task: TaskSettings, common: Common, folder: Path
) -> list[Job]:
    """Return one job per method with its hyper-parameters, for all strengths, on a production model.

    Memorized sequences and other text also identify records. The default text is chosen here, once for all jobs. Raise
    UserError for a damaged file.
    """
    return jobs_on(*located(model, common.data_dir), grid, task, common, folder)


def jobs_on(
    model: Production,
    data: Mapping[str, Any],
    grid: Sequence[tuple[Method, Any]],
    task: TaskSettings,
    common: Common,
    folder: Path,
) -> list[Job]:
    """Return the jobs of `production_jobs` on a `located` model. data: what identifies its sequences."""
    base = {**model.sections(data), "forget": task.recorded()}
    shared_flags = (*model.flags, *production_task_flags(task), "--no_save_model", "--output_dir", str(folder))

    def job_of(method: Method, hp: Any) -> Job:
        flags = as_flags(hp, leave_out=(method.strength, "dtype"))
        # as prod_grad.py completes them
        resolved = replace(hp, dtype=model.loading.method_dtype) if hasattr(hp, "dtype") else hp
        return Job(
            name=" ".join((method.name, model.label, *flags)),
            group=method.name,
            words=(PRODUCTION, "--model_name", model.name, "--localization_method", method.place)
            + (*flags, *shared_flags, *common.words),
            folder=str(folder),
            identity={"kind": UNLEARN, **base, "method": method.unvaried(resolved)},
            varies=method.strength,
            values=method.strengths(hp),
            nothing_to_do={"kind": UNEDITED, **base} if task.unlearn_set_name == "mem" else None,
            whole_node=model.whole_node,
        )

    return [job_of(method, hp) for method, hp in grid]


def production_task_flags(task: TaskSettings) -> tuple[str, ...]:
    """Return the flags of a task for the scripts for production models, which hold out sequences by default."""
    return f"--holdout_fraction={task.holdout_fraction}", *as_flags(task, leave_out=("holdout_fraction",))


def opened_description(model: Production, data_dir: str, for_text: bool = True):
    """Return (config, tokenizer or None) of a model. data_dir: where packaged models are unpacked."""
    place = packaged_model(model.name, data_dir) if is_packaged(model.name) else model.name
    return open_description(place, model.loading.step, for_text)


def _memorized_fingerprint(model: Production, data: ProductionSettings, data_dir: str) -> str:
    """Return the fingerprint of the sequences of --memorized in records. Text is read with the model's tokenizer."""
    assert data.memorized is not None
    if not data.memorizes_text:
        return read_token_set(data.memorized, length=data.needed).fingerprint
    tokenizer = opened_description(model, data_dir)[1]
    return text_token_set(data.memorized, data.text_column, tokenizer, data.needed).fingerprint


def _bos_section(model: Production, data_dir: str) -> dict[str, bool]:
    """Return the <bos> entry of a model's records; empty if its files cannot be read, since nothing can run then."""
    try:
        config, tokenizer = opened_description(model, data_dir, for_text=model.data.random is None)
        return bos_identity(beginning(model.data.bos, tokenizer, config))
    except UserError:
        return {}


def _with_absolute_paths(model: Production) -> Production:
    """Return a model with absolute paths of its files, for commands that run elsewhere."""
    paths: dict[str, Any] = {name: _absolute(getattr(model.data, name)) for name in ("memorized", "random", "corpus")}
    passages = replace(model.passages, plant=_absolute(model.passages.plant))
    return replace(model, name=model_identity(model.name), data=replace(model.data, **paths), passages=passages)


def _absolute(path: str | None) -> str | None:
    """Return an absolute path, since commands run in the repository's folder. A name (hub, builtin) is unchanged."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def _after(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (checkpoint.trained_by,) if checkpoint.trained_by else ()
