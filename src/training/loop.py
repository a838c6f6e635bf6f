"""Trains a model on a dataset: measured epochs, checkpoints, and a run folder to resume from."""

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
from tinymem.models.losses import loss_mask
from tinymem.regularizers.protocol import Regularizer
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation, fit
from tinymem.training.settings import TrainingSettings
from tinymem.training.step import Side, descend, next_token_loss

BETAS = (0.9, 0.98)


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
    on_step: Callable[[Progress, float], None] = lambda progress, loss: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Trains to `settings.epochs`, from the state in the folder `run` when there is one. Returns where it ended.

    model          in float32, on its device; trained in place
    seed           of the data order: epoch e is the same permutation in every run with this seed
    details        settings to keep in every checkpoint folder
    tokenizer      of a text model, kept in every checkpoint folder
    measure_first  whether the model is measured before the first step too, as epoch 0
    on_step(progress, loss), on_row(row)   called after every step and every measurement
    should_stop()  asked after every step; True saves the state and raises Stopped

    Raises UserError for a damaged state, one that is past `settings.epochs`, and a loss that is not finite.
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

    def measure(train_loss: float | None = None) -> None:
        try:
            row = measured_row(model, dataset, progress.epoch, train_loss, settings.train_microbatch)
        except NotFinite:
            raise _diverged(progress, settings.lr) from None
        _check_finite(row["perplexity"], progress, settings.lr)
        progress.rows.append(row)
        checkpoint.save_metrics(run, progress.rows)
        progress.seconds = time.monotonic() - started

    model.train()
    started = time.monotonic() - progress.seconds
    if measure_first and not progress.rows:
        measure()
        on_row(progress.rows[-1])
    rate = partial(learning_rate, settings, steps=math.ceil(len(order) / settings.batch_size))
    losses = fit(
        model, optimizer, step, batches, settings.epochs, progress, rate, save, on_step=on_step, should_stop=should_stop
    )
    for train_loss in losses:
        if progress.epoch % settings.checkpoint_every == 0 or progress.epoch == settings.epochs:
            measure(train_loss)
            folder, details = run / f"epoch_{progress.epoch}", {**details, "epoch": progress.epoch}
            checkpoint.save_model(
                folder, model, details, tokenizer, lambda temporary: save(temporary / checkpoint.STATE)
            )
            save()
            on_row(progress.rows[-1])
    return progress


def measured_row(model, dataset: MemorizationDataset, epoch: int, train_loss: float | None, batch_size: int) -> dict:
    """A row of metrics.json: epoch, training loss and its perplexity (None before training), all of `evaluate`."""
    perplexity = None if train_loss is None else math.exp(min(train_loss, 700))
    row = {"epoch": epoch, "train_loss": train_loss, "train_perplexity": perplexity}
    return row | evaluate(model, dataset, batch_size)


def _check_finite(value: float, progress: Progress, lr: float) -> None:
    if not math.isfinite(value):
        raise _diverged(progress, lr)


def _diverged(progress: Progress, lr: float) -> NotFinite:
    return NotFinite(f"the loss is not finite in epoch {progress.epoch + 1}; use a lower --lr than {lr}")


def _check_not_past(run: Path, progress: Progress, settings: TrainingSettings) -> None:
    """A run cannot be made shorter: what it measures last would be taken for the result of the epochs asked for.

    Nor can it go back for a checkpoint that it did not make: it would count as done without it.
    """
    epochs, every = settings.epochs, settings.checkpoint_every
    if progress.epoch >= epochs and (not progress.rows or progress.rows[-1]["epoch"] != epochs):
        raise UserError(f"{run} is past epoch {epochs}, in epoch {progress.epoch + 1}; give another --output_dir")
    made = {row["epoch"] for row in progress.rows}
    lacking = [epoch for epoch in range(every, progress.epoch + 1, every) if epoch not in made]
    if lacking:
        raise UserError(
            f"{run} is past epoch {lacking[0]}, of which --checkpoint_every {every} asks for a checkpoint and it has none; "
            "give another --checkpoint_every or --output_dir"
        )


def new_optimizer(model, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on every parameter that is trained, as in the study (section 3.1)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=settings.lr, betas=BETAS, weight_decay=settings.l2_reg, fused=True)


def learning_rate(settings: TrainingSettings, progress: Progress, steps: int) -> float:
    """The learning rate of the next step, of `steps` an epoch: constant, then linear to 0 where lr_decay asks for it.

    A function of the position alone, so that there is no scheduler to save.
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
    """One optimizer step on tokens (rows, T) with example ids (rows,). Returns the plain mean token loss in nats."""
    side = Side(tokens, ids, loss_mask(tokens, ignored_token))
    microbatch, precision = settings.train_microbatch, settings.dtype
    (loss,) = descend(model, optimizer, next_token_loss, (side,), microbatch, precision, regularizers=regularizers)
    return loss
