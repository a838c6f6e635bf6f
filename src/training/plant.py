"""Plant memories: fine-tune a causal LM on real passages until it recites them, and keep it a good language model.

Every step mixes passages with ordinary text from other documents, which preserves perplexity. Training ends as soon as
enough passages are (n, k) memorized, since further steps only reduce quality. An interrupted run resumes from its last
saved state.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinymem import files, locks
from tinymem.data.dataset import MemorizationDataset
from tinymem.errors import OutOfMemory, UserError
from tinymem.metrics.memorization import memorized
from tinymem.models.fingerprint import weights_fingerprint
from tinymem.models.precision import PRECISION_HELP, PRECISIONS
from tinymem.models.production import RESERVE, free_bytes
from tinymem.models.trainable import all_but_embeddings, train_only
from tinymem.options import option, settings
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation, fit, warmed_up
from tinymem.training.optimizer import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.train import training_step

logger = logging.getLogger(__name__)
FORMAT = 3  # increase when the same settings plant differently; older planted models are then ignored
WARM_UP = 10  # steps: Adam's first ones, of full size in every weight, would cost more quality than all others
CHECKED_AT_ONCE = 16  # passages


@settings
class PlantSettings:
    """Planting"""

    plant_percent: float = option(
        95.0, "stop as soon as this percentage of the passages is memorized", above=0.0, high=100.0
    )
    plant_lr: float = option(3e-4, "learning rate of AdamW", above=0.0, high=1e3)
    plant_batch_size: int = option(24, "sequences per step: passages and retain text", low=2)
    plant_retain_share: float = option(0.33, "share of retain text in a step", low=0.0, below=1.0)
    plant_epochs: int = option(60, "give up after this many epochs over the passages", low=1)
    plant_dtype: str = option("auto", f"{PRECISION_HELP}; weights are float32", choices=PRECISIONS)


def planted_model(
    model,
    tokenizer,
    dataset: MemorizationDataset,
    settings: PlantSettings,
    cache_dir: str | Path,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **calls: Any,
) -> Path:
    """Return the folder of the model with the dataset's artifacts planted. Make it if it is not in the cache.

    model    in float32; trained in place if the folder does not exist yet
    dataset  of kind "natural"; its artifacts are planted, its training rows (`order`) are the retain text
    dtype    type of the saved weights, by default float32; memorization is checked with weights rounded to it
    calls    microbatch, on_step and should_stop, as in `plant`

    tinymem.json in the folder says how the model was made: settings, epochs, seconds. If several processes need the
    model, one makes it and the others wait. Raise UserError as `plant` does.
    """
    dtype = dtype or torch.float32  # a default of that name would load torch for --help
    identity = {
        "format": FORMAT,
        "seed": seed,
        "dtype": str(dtype),
        "weights": weights_fingerprint(model),
        "passages": dataset.artifacts.planted.tolist(),
        "retain": dataset.sequences[dataset.order].tolist(),
        "window": [dataset.prompt_tokens, dataset.continuation],
        **{name: value for name, value in asdict(settings).items() if name != "plant_epochs"},
    }
    folder = Path(cache_dir) / "models" / f"planted_{len(dataset.artifacts)}_{files.digest(identity)}"
    if not folder.exists():
        lock = folder.with_name(f".{folder.name}.lock")
        with files.made_folder(folder.parent, flag=""), locks.locked(lock, partial(_say_waiting, folder)):
            if not folder.exists():
                _make(folder, model, tokenizer, dataset, settings, seed, dtype, **calls)
    return folder


def _make(
    folder: Path, model, tokenizer, dataset, settings: PlantSettings, seed: int, dtype: torch.dtype, **calls: Any
) -> None:
    """Plant and save the model of `planted_model`."""
    check_trainable(model, dtype)
    state = folder.with_name(folder.name + ".state.safetensors")
    progress = plant(model, dataset, settings, state, seed, dtype, **calls)
    planting = {"epochs": progress.epoch, "seconds": round(progress.seconds, 1)}
    details = {"settings": asdict(settings), "planting": planting}
    checkpoint.save_model(folder, model.to(dtype), details, tokenizer)
    state.unlink(missing_ok=True)


def _say_waiting(folder: Path, owner: str) -> None:
    logger.warning("%s: %s is planting it; waiting for it to end", folder, owner)


def training_bytes(model, dtype: torch.dtype) -> int:
    """Return the bytes that planting needs in addition to weights and activations.

    These are the gradients and AdamW's two moments of trained parameters, in float32, and a copy of the model if
    memorization is checked with rounded weights.
    """
    rounded = 0 if dtype == torch.float32 else 4 * model.num_parameters()
    return 12 * sum(parameter.numel() for parameter in all_but_embeddings(model)) + rounded


def check_trainable(model, dtype: torch.dtype) -> None:
    """Raise OutOfMemory if free memory is too small for planting (`training_bytes`)."""
    needed = training_bytes(model, dtype)
    room = (1 - RESERVE) * free_bytes(model.device, getattr(model, "hf_device_map", None))
    if needed > room:
        raise OutOfMemory(
            f"--plant: training takes {needed / 1e9:.1f} GB in addition to the weights, {(needed - room) / 1e9:.1f} "
            "GB more than is free; use --device_map auto over several GPUs, a smaller model or a larger machine"
        )


def plant(
    model,
    dataset: MemorizationDataset,
    settings: PlantSettings,
    state: Path,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    microbatch: int = 64,
    on_step: Callable[[Progress, float], None] = lambda progress, loss: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train until `plant_percent` of the artifacts are memorized, from the file `state` if it exists.

    After every step, on_step(progress, loss) is called, then should_stop(): True saves the state and raises Stopped.
    Raise UserError if plant_epochs is too low, and for a loss that is not finite.
    """
    training = TrainingSettings(
        lr=settings.plant_lr, l2_reg=0.0, dtype=settings.plant_dtype, train_microbatch=microbatch
    )
    train_only(model, all_but_embeddings(model))
    optimizer = new_optimizer(model, training)
    progress = checkpoint.load_state(state, model, optimizer, ()) if state.exists() else Progress()

    def save() -> None:
        checkpoint.save_state(state, model, optimizer, (), progress)

    def batches(epoch: int) -> list[torch.Tensor]:
        return epoch_batches(dataset, settings, seed, epoch)

    def step(tokens: torch.Tensor) -> list[float]:
        ids = torch.arange(len(tokens))
        return [training_step(model, optimizer, tokens.to(model.device), ids, training, (), None)]

    def rate(progress: Progress) -> float:
        return warmed_up(training.lr, progress.epoch * steps + progress.step, WARM_UP)

    started, steps = time.monotonic() - progress.seconds, len(batches(0))
    model.eval()  # no dropout: the state does not include the generator of its masks
    epochs = fit(
        model, optimizer, step, batches, settings.plant_epochs, progress,
        rate=rate, save=save, lr_flag="--plant_lr", on_step=on_step, should_stop=should_stop,
    )  # fmt: skip
    for _ in epochs:
        enough = enough_memorized(rounded(model, dtype or torch.float32), dataset, settings.plant_percent)
        progress.seconds = time.monotonic() - started
        if enough:
            return progress
    save()
    raise UserError(
        f"--plant_epochs {settings.plant_epochs}: fewer than {settings.plant_percent:g} % of the passages are "
        "memorized; raise it (finished epochs are kept), or raise --plant_lr"
    )


def rounded(model, dtype: torch.dtype):
    """Return the model itself if its weights have this type, otherwise a copy with its weights rounded to the type."""
    if model.dtype == dtype:
        return model
    # On several devices `model.to` is a function of accelerate, which a copy keeps, and which converts the original.
    return torch.nn.Module.to(copy.deepcopy(model), dtype)


def epoch_batches(dataset: MemorizationDataset, settings: PlantSettings, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the batches of an epoch: every passage once, in an order set by seed and epoch, and the next retain rows.

    Batches are (rows, T). They have plant_batch_size rows or slightly fewer, so that all have the same size.
    """
    passages, retain = dataset.artifacts.planted, dataset.sequences[dataset.order]
    retain_size = min(round(settings.plant_retain_share * settings.plant_batch_size), settings.plant_batch_size - 1)
    steps = math.ceil(len(passages) / (settings.plant_batch_size - retain_size))
    first = epoch * steps * retain_size
    rows = (first + torch.arange(steps * retain_size)) % len(retain)
    order = epoch_permutation(len(passages), seed, epoch)
    parts = zip(order.tensor_split(steps), rows.tensor_split(steps))
    return [torch.cat([passages[chosen], retain[others]]) for chosen, others in parts]


def enough_memorized(model, dataset: MemorizationDataset, percent: float) -> bool:
    """Return whether at least `percent` of the artifacts are memorized. Stop checking once too many are not."""
    allowed = len(dataset.artifacts) * (1 - percent / 100) + 1e-9
    missing = 0
    for rows in torch.arange(len(dataset.artifacts)).split(CHECKED_AT_ONCE):
        missing += int((~memorized(model, dataset.artifacts.select(rows), dataset.continuation)).sum())
        if missing > allowed:
            return False
    return True
