"""TinyMem models on the command line: their flags, data and forget set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from tinymem import cli
from tinymem.cli.methods import chosen_attack_metrics, chosen_metrics
from tinymem.cli.sources import given_sources
from tinymem.cli.training import data_settings, trained_settings
from tinymem.cli.watching import looking
from tinymem.data.build import load_dataset
from tinymem.data.chunks import load_tokenizer
from tinymem.data.text_reader import TextReader
from tinymem.data.tokenizer import check_vocabulary
from tinymem.errors import UserError
from tinymem.folders import check_writable
from tinymem.localize.subject import Subject, shared_sections
from tinymem.localize.task import TaskSettings, unlearning_task
from tinymem.metrics.evaluate import measure
from tinymem.metrics.reference import References
from tinymem.models.difference import check_twin_model
from tinymem.models.tinymem import ModelSettings, load_model
from tinymem.records.identity import TWIN_MODEL
from tinymem.training.checkpoint import SETTINGS, place_beside, unlearned_folder, with_real_name
from tinymem.training.settings import RunSettings
from tinymem.training.twin import check_twin, find_twin

NO_TWIN = (
    "{path}: no never-planted twin found (train it with the same flags and --twin, or name it with --twin_model): what "
    "depends on it has no value"
)
# flag: name in config.json
SIZES = {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "n_embd": "hidden_size"}


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the data, model and task."""
    cli.add_options(parser, TaskSettings)
    cli.add_data_options(parser)
    cli.add_options(parser, ModelSettings)
    parser.add_argument(
        "--twin_model",
        metavar="FOLDER",
        help="the never-planted twin's checkpoint (default: one with the same settings, next to the model or in runs/)",
    )
    cli.add_common_options(
        parser, "MODEL_PATH/../unlearned/epoch_N; for a model outside its training run, runs/NAME/unlearned/NAME"
    )


def load_subject(arguments: argparse.Namespace) -> Subject:
    """Return the model, data and task. Raise UserError if a flag contradicts the checkpoint.

    For a model that TinyMem did not train, the flags define the data.
    """
    path = Path(arguments.model_path)
    foreign = hasattr(arguments, "data_name") and not (path / SETTINGS).exists()
    if foreign:
        data = data_settings(arguments)
        twin = Path(arguments.twin_model) if arguments.twin_model else None
        named_twin = {} if twin is None else {TWIN_MODEL: str(twin.resolve())}  # results depend on the twin
        sections = {"data": data.applicable(), "model": {"name": str(path.resolve()), **named_twin}}
    else:
        settings, epoch = trained_settings(path, arguments)
        data, sections = settings.data, settings.checkpoint_sections(epoch)
        twin = _twin(path, settings, epoch, arguments.twin_model)
    task_settings = cli.collect(TaskSettings, arguments)
    model = load_model(path, cli.resolve_device(arguments.device))
    if foreign:
        check_sizes(model, path, cli.given(ModelSettings, arguments))
    opened = partial(_foreign_twin, model) if foreign else partial(load_model, device=model.device)
    open_twin = None if twin is None else cache(partial(opened, twin))
    if foreign and open_twin is not None:
        open_twin()  # fails, if it must, before anything is measured
    dataset = load_dataset(data, arguments.data_dir)
    check_vocabulary(model, dataset.vocabulary_size, path)
    with looking() as on_rows:
        task = unlearning_task(model, dataset, task_settings, on_rows)
    tokenizer = load_tokenizer(data, arguments.data_dir)
    task = replace(task, reader=TextReader(tokenizer))
    folder = Path(arguments.output_dir or unlearned_folder(path))
    check_writable(folder)
    return Subject(
        model=model,
        task=task,
        measure=partial(measure, dataset=dataset, batch_size=task.microbatch),
        identity=shared_sections(model, task, task_settings, sections),
        folder=folder,
        score_folder=_score_folder(path, folder),
        tokenizer=tokenizer,
        metrics=chosen_metrics(arguments),
        attack_metrics=chosen_attack_metrics(arguments),
        examples=arguments.page,
        sources=given_sources(arguments),
        source=(str(path.resolve()), None),
        references=References(dataset, task.retain, open_twin, partial(load_model, path, model.device)),
        warning="" if twin or data.twin else NO_TWIN.format(path=path),
    )


def _twin(path: Path, settings: RunSettings, epoch: int, asked: str | None) -> Path | None:
    """Return the never-planted twin of a checkpoint: the requested one, or else one that is found automatically."""
    return find_twin(path, settings, epoch) if asked is None else check_twin(Path(asked), settings, epoch)


def check_sizes(model, path: Path, asked: Mapping[str, int]) -> None:
    """Raise UserError for a size that contradicts the config.json of a model that TinyMem did not train."""
    for flag, value in asked.items():
        held = getattr(model.config, SIZES[flag], value)
        if held != value:
            raise UserError(f"{path} holds a model with --{flag} {held}, not with --{flag} {value}; leave the flag out")


def _foreign_twin(model, folder: Path):
    """Return the twin of a model that TinyMem did not train. Raise UserError unless they differ only in values."""
    twin = load_model(folder, model.device)
    check_twin_model(model, twin, f"--twin_model {folder}")
    return twin


def _score_folder(model_path: Path, output: Path) -> Path:
    """Return the folder of scores: next to the model, for all users, or with the results if that is not writable."""
    beside = place_beside(model_path) / "scores" / with_real_name(model_path).name
    try:
        check_writable(beside)
    except UserError:
        return output / "scores"
    return beside
