"""Trains a model on a dataset. Killed at any moment and started again it ends with the same bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinymem.data.dataset import MemorizationDataset
from tinymem.errors import UserError
from tinymem.metrics.evaluate import evaluate
from tinymem.models.losses import counted, token_losses
from tinymem.regularizers.protocol import Regularizer
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.settings import TrainingSettings

BETAS = (0.9, 0.98)
SAVE_SECONDS = 60.0  # a kill loses at most this much work


class Stopped(Exception):
    """Training was asked to stop; its state is saved."""


def train(
    model,
    dataset: MemorizationDataset,
    settings: TrainingSettings,
    seed: int,
    run: Path,
    details: dict[str, Any],
    regularizers: Sequence[Regularizer] = (),
    on_step: Callable[[Progress, float], None] = lambda progress, loss: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Trains to `settings.epochs`, from the state in the folder `run` when there is one. Returns where it ended.

    model         in float32, on its device; trained in place
    seed          of the data order: epoch e is the same permutation in every run with this seed
    details       settings to keep in every checkpoint folder
    on_step(progress, loss), on_row(row)   called after every step and every measurement
    should_stop() asked after every step; True saves the state and raises Stopped

    Raises UserError for a damaged state or a loss that is not finite.
    """
    optimizer = new_optimizer(model, settings)
    state = checkpoint.latest_state(run)
    progress = checkpoint.load_state(state, model, optimizer, regularizers) if state else Progress()
    sequences, order = dataset.sequences.to(model.device), dataset.order.to(model.device)
    batches = math.ceil(len(order) / settings.batch_size)
    model.train()
    save = partial(
        checkpoint.save_state, model=model, optimizer=optimizer, regularizers=regularizers, progress=progress
    )
    started, saved = time.monotonic() - progress.seconds, time.monotonic()
    while progress.epoch < settings.epochs:
        shuffled = order[epoch_permutation(len(order), seed, progress.epoch).to(order.device)]
        while progress.step < batches:
            ids = shuffled[progress.step * settings.batch_size : (progress.step + 1) * settings.batch_size]
            loss = training_step(model, optimizer, sequences[ids], ids, settings, regularizers, dataset.ignored_token)
            progress.step += 1
            progress.loss_sum += loss
            progress.seconds = time.monotonic() - started
            on_step(progress, loss)
            stop = should_stop()
            if stop or time.monotonic() - saved > SAVE_SECONDS:
                save(run / checkpoint.STATE)
                saved = time.monotonic()
            if stop:
                raise Stopped
        train_loss = progress.loss_sum / batches
        if not math.isfinite(train_loss):
            raise UserError(
                f"the loss is not finite in epoch {progress.epoch + 1}; use a lower --lr than {settings.lr}"
            )
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if progress.epoch % settings.checkpoint_every == 0 or progress.epoch == settings.epochs:
            row = {
                "epoch": progress.epoch,
                "train_loss": train_loss,
                "train_perplexity": math.exp(min(train_loss, 700)),
            }
            progress.rows.append(row | evaluate(model, dataset, settings.train_microbatch))
            epoch_details = {**details, "epoch": progress.epoch}
            folder = run / f"epoch_{progress.epoch}"
            checkpoint.save_model(folder, model, epoch_details, lambda temporary: save(temporary / checkpoint.STATE))
            checkpoint.save_metrics(run, progress.rows)
            save(run / checkpoint.STATE)
            on_row(progress.rows[-1])
    return progress


def new_optimizer(model, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on every parameter, as in the study (section 3.1)."""
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=BETAS, weight_decay=settings.l2_reg, fused=True)


def epoch_permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The data order of one epoch, drawn anew from seed and epoch so that there is no generator to save."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


def training_step(
    model,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    settings: TrainingSettings,
    regularizers: Sequence[Regularizer],
    ignored_token: int | None,
) -> float:
    """One optimizer step on tokens (rows, T) with example ids (rows,). Returns the plain mean token loss in nats.

    The batch goes through the model in microbatches whose gradients add up.
    """
    optimizer.zero_grad(set_to_none=True)
    mask = counted(tokens, ignored_token)
    scale = 1.0 / mask.sum().clamp(min=1)
    total = torch.zeros((), device=tokens.device)
    for part in torch.arange(len(tokens)).split(settings.train_microbatch):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        for regularizer in regularizers:
            regularizer.before_forward(ids[rows])
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            losses = token_losses(model, tokens[rows])
        total += (losses.detach() * mask[rows]).sum() * scale
        for regularizer in regularizers:
            losses = regularizer.token_losses(losses, tokens[rows])
        ((losses * mask[rows]).sum() * scale).backward()
    for regularizer in regularizers:
        if regularizer.penalty is not None:
            regularizer.penalty().backward()
    optimizer.step()
    return total.item()
