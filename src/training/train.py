"""Train a model on a dataset, with measurements, checkpoints, and a run folder to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinymem.data.dataset import MemorizationDataset
from tinymem.errors import NotFinite, UserError
from tinymem.metrics.evaluate import evaluate
from tinymem.metrics.probe import OnRows, silent
from tinymem.models.losses import loss_mask
from tinymem.regularizers.protocol import Regularizer
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation, fit
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.step import Side, descend, next_token_loss


def train(
    model,
    dataset: MemorizationDataset,
    settings: TrainingSettings,
    seed: int,
    run: Path,
    details: dict[str, Any],
    regularizers: Sequence[Regularizer] = (),
    tokenizer=None,
    measure_first: bool = False,
    card: Callable[[dict[str, Any]], str] | None = None,
    on_step: Callable[[Progress, float], None] = lambda progress, loss: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    on_rows: OnRows = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train until `settings.epochs`, from the state in the folder `run` if there is one. Return the final progress.

    model          in float32, on its device; trained in place
    seed           seed of the data order: epoch e has the same permutation in every run with this seed
    details        settings to save in every checkpoint folder
    tokenizer      a text model's tokenizer, saved in every checkpoint folder
    measure_first  also measure the model before the first step, as epoch 0
    card(row)      the text of a checkpoint folder's README.md; row: its measurements
    on_step(progress, loss), on_row(row)   called after every step and every measurement
    on_rows(pass, done, total)   called while measuring, as in `tinymem.metrics.evaluate.measure`
    should_stop()  called after every step; True saves the state and raises Stopped

    Raise UserError for a damaged state, a state past `settings.epochs`, and a loss that is not finite.
    """
    optimizer = new_optimizer(model, settings)
    state = checkpoint.latest_state(run)
    progress = checkpoint.load_state(state, model, optimizer, regularizers) if state else Progress()
    _check_not_past(run, progress, settings)
    sequences, order = dataset.sequences.to(model.device), dataset.order.to(model.device)

    def step(ids: torch.Tensor) -> list[float]:
        tokens, ignored = sequences[ids], dataset.ignored_token
        return [training_step(model, optimizer, tokens, ids, settings, regularizers, ignored)]

    def batches(epoch: int) -> Sequence[torch.Tensor]:
        return order[epoch_permutation(len(order), seed, epoch).to(order.device)].split(settings.batch_size)

    def save(path: Path = run / checkpoint.STATE) -> None:
        checkpoint.save_state(path, model, optimizer, regularizers, progress)

    def save_more(folder: Path) -> None:
        save(folder / checkpoint.STATE)
        for regularizer in regularizers:
            regularizer.write(folder)
        if card is not None:
            (folder / "README.md").write_text(card(progress.rows[-1]), encoding="utf-8")

    def measure(train_loss: float | None = None) -> None:
        try:
            row = measured_row(model, dataset, progress.epoch, train_loss, settings.train_microbatch, on_rows)
        except NotFinite:
            raise _diverged(progress.epoch, settings.lr) from None
        if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
            raise _diverged(progress.epoch, settings.lr)
        progress.rows.append(row)
        progress.seconds = time.monotonic() - started

    deleted = [regularizer.deleted for regularizer in regularizers if regularizer.deleted is not None]
    model.train()
    started = time.monotonic() - progress.seconds
    if progress.rows:  # the last session may have ended after a checkpoint and before its row
        checkpoint.save_metrics(run, progress.rows)
    elif measure_first:
        measure()
        checkpoint.save_metrics(run, progress.rows)
        on_row(progress.rows[-1])
    rate = partial(learning_rate, settings, steps=math.ceil(len(order) / settings.batch_size))
    losses = fit(
        model, optimizer, step, batches, settings.epochs, progress,
        rate=rate, save=save, on_step=on_step, should_stop=should_stop,
    )  # fmt: skip
    for train_loss in losses:
        if progress.epoch % settings.checkpoint_every == 0 or progress.epoch == settings.epochs:
            measure(train_loss)
            folder, details = run / f"epoch_{progress.epoch}", {**details, "epoch": progress.epoch}
            checkpoint.save_model(folder, model, details, tokenizer, save_more, deleted)
            save()
            checkpoint.save_metrics(run, progress.rows)  # last: a row means that its checkpoint is complete
            on_row(progress.rows[-1])
    return progress


def measured_row(
    model, dataset: MemorizationDataset, epoch: int, train_loss: float | None, batch_size: int, on_rows: OnRows = silent
) -> dict:
    """Return a row of metrics.json: epoch, training loss, its perplexity (None before training), and `evaluate`."""
    perplexity = None if train_loss is None else math.exp(min(train_loss, 700))
    row = {"epoch": epoch, "train_loss": train_loss, "train_perplexity": perplexity}
    return row | evaluate(model, dataset, batch_size, on_rows=on_rows)


def _diverged(epoch: int, lr: float) -> NotFinite:
    return NotFinite(f"the loss is not finite in epoch {epoch}; use a lower --lr than {lr}")


def _check_not_past(run: Path, progress: Progress, settings: TrainingSettings) -> None:
    """Raise UserError for a run past `settings.epochs`: its last measurement would be taken for that epoch's.

    Also raise it if `checkpoint_every` asks for an epoch already passed: the run would finish without that checkpoint.
    """
    epochs, every = settings.epochs, settings.checkpoint_every
    if progress.epoch >= epochs and (not progress.rows or progress.rows[-1]["epoch"] != epochs):
        raise UserError(f"{run} is past epoch {epochs}, in epoch {progress.epoch + 1}; give another --output_dir")
    made = {row["epoch"] for row in progress.rows}
    lacking = [epoch for epoch in range(every, progress.epoch + 1, every) if epoch not in made]
    if lacking:
        raise UserError(
            f"{run} is past epoch {lacking[0]}, for which --checkpoint_every {every} needs a missing checkpoint; "
            "give another --checkpoint_every or --output_dir"
        )


def learning_rate(settings: TrainingSettings, progress: Progress, steps: int) -> float:
    """Return the learning rate of the next step: constant, then linear to 0 over the last `lr_decay` of the run.

    It depends only on the position, so no scheduler needs saving. steps: per epoch.
    """
    left = 1 - (progress.epoch * steps + progress.step) / (settings.epochs * steps)
    return settings.lr * min(1.0, left / settings.lr_decay) if settings.lr_decay else settings.lr


def training_step(
    model,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    settings: TrainingSettings,
    regularizers: Sequence[Regularizer],
    ignored_token: int | None,
) -> float:
    """Do one optimizer step on tokens (rows, T) with example ids (rows,). Return the plain mean token loss in nats."""
    side = Side(tokens, ids, loss_mask(tokens, ignored_token))
    microbatch, precision = settings.train_microbatch, settings.dtype
    (loss,) = descend(model, optimizer, next_token_loss, (side,), microbatch, precision, regularizers=regularizers)
    return loss
