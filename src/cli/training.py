"""Parts that the training scripts share: the run's folder, progress, printed measurements, the log, Ctrl-C."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tinymem import cli, files, locks
from tinymem.cli.display import Display
from tinymem.cli.log import Log
from tinymem.data.corpus import resolve_corpus
from tinymem.data.settings import DataSettings
from tinymem.errors import UserError
from tinymem.inputs import read_settings
from tinymem.metrics import registry
from tinymem.models.tinymem import ModelSettings
from tinymem.options import as_flags
from tinymem.scripts import SCRIPTS
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.finetune import FinetuneSettings
from tinymem.training.fit import Stopped
from tinymem.training.settings import RETRAIN, RunSettings, TrainingSettings, check_same_run, check_whole_run
from tinymem.training.train import train
from tinymem.training.twin import twin_of

TRAINING, FINETUNING = SCRIPTS["train"].start, SCRIPTS["finetune"].start
LOCK, MARKER = ".lock", "run.json"
STEMS = "accuracy_", "loss_"  # prefixes of columns that are measured on each test set


def data_settings(arguments: argparse.Namespace) -> DataSettings:
    """Return the data settings, with the hash of a text. Raise UserError for a flag that this kind of data ignores."""
    settings = cli.collect(DataSettings, arguments)
    settings.check_used(cli.given(DataSettings, arguments))
    return resolve_corpus(settings)


def trained_settings(path: Path, arguments: argparse.Namespace) -> tuple[RunSettings, int]:
    """Return the settings and epoch of a checkpoint. If the text has moved, --corpus gives its new path.

    Raise UserError if a flag contradicts the checkpoint, or if the text has changed.
    """
    details = checkpoint.load_trained(path)
    asked = cli.given(DataSettings, arguments) | cli.given(ModelSettings, arguments)
    check_same_run(str(path), details["settings"], asked, "leave the flag out or give another --model_path")
    settings = RunSettings.from_flat({**details["settings"], **asked}, path / checkpoint.SETTINGS)
    if "corpus" in asked and settings.data.corpus_sha256:  # check it even if the text is no longer needed
        settings = replace(settings, data=resolve_corpus(settings.data))
    return settings, details["epoch"]


@contextmanager
def prepared_run(folder: str | Path, settings: Mapping[str, Any], force: bool) -> Iterator[Path]:
    """Yield the folder of a run, locked within the block. A second command prints a note and waits for the first.

    Call it after all other checks, so that a refused command leaves nothing behind. Raise UserError if the folder holds
    another run.
    """
    run = files.writable_folder(folder)

    def say(owner: str) -> None:
        print(f"{run}: {owner} is at work here; waiting for it to end", file=sys.stderr)

    with locks.locked(run / LOCK, say):
        _prepare(run, settings, force)
        yield run


@contextmanager
def checked_folder(folder: str | Path, settings: Mapping[str, Any], force: bool) -> Iterator[Path]:
    """Yield the folder of a run, for checks. An error within the block removes the folder if it is empty.

    Raise UserError, before the block, if the folder holds another run.
    """
    with files.made_folder(folder) as run:
        if checkpoint.has_begun(run):
            _check_held(run, run / MARKER, settings, force)
        yield run


def _prepare(run: Path, settings: Mapping[str, Any], force: bool) -> None:
    """Write the run's settings into the folder, after clearing it with `force`."""
    files.remove_leftovers(run)
    marker = run / MARKER
    if checkpoint.has_begun(run):
        _check_held(run, marker, settings, force)
        if force:
            _clear(run)
        elif marker.exists():
            return
    files.write_json(marker, dict(settings))


def _clear(run: Path) -> None:
    made = [name for name in checkpoint.DERIVED if (run / name).exists()]
    if made:
        print(f"{run}: {', '.join(made)} of the old models are removed with them", file=sys.stderr)
    checkpoint.clear(run)


def _check_held(run: Path, marker: Path, settings: Mapping[str, Any], force: bool) -> None:
    """Raise UserError if the folder holds another run.

    If run.json is lost, compare with the last checkpoint's settings. Without a checkpoint, the training state cannot be
    identified.
    """
    if (run / checkpoint.SETTINGS).exists():  # training there would replace its state, even with --force
        raise UserError(f"{run}: is a checkpoint; give another --output_dir")
    if marker.exists():
        held = files.read_json(marker, required=("data_name",), remedy="delete it and run again")
        if force and "weights" in settings:  # the model may have been trained again
            held["weights"] = settings["weights"]
        check_whole_run(str(run), held, settings)
    elif (last := checkpoint.latest_checkpoint(run)) is not None:
        known = {name: value for name, value in settings.items() if name != "weights"}
        check_whole_run(str(run), _marker_of(last), known)
    elif checkpoint.latest_state(run) is not None and not force:
        raise UserError(
            f"{run}: holds a training of unknown settings ({MARKER} is missing); give another --output_dir, or --force "
            "to train again"
        )


def _marker_of(folder: Path) -> dict[str, Any]:
    """Return the run.json of the run that made a checkpoint, except for the weights that a fine-tuning started from."""
    details, path = checkpoint.load_details(folder), folder / checkpoint.SETTINGS
    settings, tuned = RunSettings.from_flat(details["settings"], path), details.get("finetuning")
    if tuned is None:
        return settings.flat()
    return read_settings(FinetuneSettings, tuned, path, RETRAIN).marker(settings, tuned.get("from_epoch"))


def train_visibly(
    model,
    dataset,
    training: TrainingSettings,
    seed: int,
    run: Path,
    details: dict[str, Any],
    log: Log | None = None,
    **options: Any,
) -> Progress:
    """Run `tinymem.training.train.train`, showing its progress. Ctrl-C saves, says how to resume and exits with 130."""
    what, log = "fine-tuning" if "finetuning" in details else "training", log or Log()
    steps = -(-len(dataset) // training.batch_size)
    state = checkpoint.latest_state(run)
    before = checkpoint.read_progress(state) if state else Progress()
    display = Display(what, training.epochs * steps, done=before.epoch * steps + before.step)
    tokens = training.batch_size * dataset.sequences.shape[1]
    first, head = list[dict[str, Any]](), ""

    def on_step(progress: Progress, loss: float) -> None:
        done, display.inner = progress.epoch * steps + progress.step, None
        display.to(done, tokens, f"epoch {progress.epoch + 1} of {training.epochs}", loss=loss)
        log.step(str(run), display.meter, last=done == display.meter.total)

    def on_rows(what_on: str, done: int, total: int) -> None:
        log.rows(str(run), what, what_on, display.rows(f"measured on {what_on}", done, total))

    def log_row(row: dict[str, Any]) -> None:
        log.metrics(str(run), what, row["epoch"] * steps, row, epoch=row["epoch"])

    def on_row(row: dict[str, Any]) -> None:
        nonlocal head
        heading, *lines = training_table([*first, row]).splitlines()  # keeps the first row's columns
        line = lines[len(first)]
        display.write(line if heading == head else f"{heading}\n{line}")
        head = heading
        if not first:
            first.append(row)
        log_row(row)

    for row in before.rows:  # a killed session may have measured these without logging them
        log_row(row)
    with cli.interruptible() as should_stop, display:
        options |= dict(
            on_step=on_step, on_row=on_row, on_rows=on_rows, should_stop=should_stop, card=partial(_card, details)
        )
        with ends_when_stopped(display, run):
            return train(model, dataset, training, seed, run, details, **options)


def _card(details: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return the model card of a checkpoint. details: its tinymem.json without the epoch; row: its measurements."""
    from tinymem.cards import trained_card  # late: it loads the unlearning methods, which takes time

    settings, epoch = RunSettings.from_flat(details["settings"]), row["epoch"]
    name, twin = f"{settings.name}/epoch_{epoch}", f"{twin_of(settings).name}/epoch_{epoch}"
    words, base, shown = [TRAINING, *as_flags(*settings.parts)], "", details["settings"]
    if tuned := details.get("finetuning"):
        base, from_epoch = f"{settings.name}/epoch_{tuned['from_epoch']}", f"epoch_{tuned['from_epoch']}"
        words = [FINETUNING, "--model_path", f"runs/{base}", *(f"--{n}={tuned[n]}" for n in ("ft_data", "ft_epochs"))]
        name, shown = f"{settings.name}/finetuned/{from_epoch}_{tuned['ft_data']}/epoch_{epoch}", {**shown, **tuned}
        twin = f"{twin_of(settings).name}/{from_epoch}"
    return trained_card(name, shown, row, twin, shlex.join(["python", *words]), base).text()


def training_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of metrics.json as a table that fits the terminal, with the mean and worst over the test sets."""
    folded = [
        {
            **{name: row.get(name) for name in ("epoch", "train_loss")},
            **{name: row[name] for name in registry.columns(row, headline=True)},
            **{name: row[name] for name in ("seconds",) if name in row},
            **_worst(row),
            **{name: row[name] for name in registry.columns(row, detail=False)},
        }
        for row in rows
    ]
    columns = list(dict.fromkeys(name for row in folded for name in row))
    return cli.fitted_table(folded, columns, {}, more="metrics.csv has them")


def _worst(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the lowest accuracy and the highest loss among the test sets."""
    accuracies, losses = ([v for n, v in row.items() if n.startswith(stem) and v is not None] for stem in STEMS)
    return {"worst_accuracy": min(accuracies), "worst_loss": max(losses)} if accuracies and losses else {}


def plant_visibly(plant: Callable[..., Path], cache_dir: str | Path) -> Path:
    """Run `plant(on_step=..., should_stop=...)` and show its progress. Ctrl-C saves and exits with 130.

    plant: `tinymem.training.plant.planted_model` with its other arguments bound. cache_dir: the folder where it saves.
    """
    with cli.interruptible() as should_stop, Display("planting") as display:

        def on_step(progress: Progress, loss: float) -> None:
            display.to(display.meter.done + 1, note=f"epoch {progress.epoch + 1}", loss=loss)

        with ends_when_stopped(display, cache_dir):
            return plant(on_step=on_step, should_stop=should_stop)


@contextmanager
def ends_when_stopped(display: Display, place: str | Path) -> Iterator[None]:
    """If a training within the block is stopped, print how to resume and end the script."""
    try:
        yield
    except Stopped:
        display.close()
        print(f"stopped; everything is saved in {place}: run the same command again to resume", file=sys.stderr)
        sys.exit(130)
