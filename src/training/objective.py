"""Unlearn by training the weights on an objective: a loss of the model, the unedited model, forget and retain rows.

    def npo(model, reference, forget, retain):
        gap = forget.row_sums(forget.losses(model)) - reference.row_sums(forget)
        return -2 / BETA * logsigmoid(BETA * gap), retain.losses(model)

Values per row or per token are averaged over the batch (see `tinymem.training.step`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch

from tinymem.models.precision import MEANING, PRECISIONS, autocast
from tinymem.models.trainable import all_but_embeddings, frozen
from tinymem.options import option, settings
from tinymem.regularizers.protocol import Regularizer
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation, fit, warmed_up
from tinymem.training.loop import new_optimizer
from tinymem.training.settings import TrainingSettings
from tinymem.training.step import Side, descend, microbatches, sides_of

TRAINED = ("all", "all_but_embeddings")

# loss(model, reference, forget, retain) -> values of the forget rows, or of forget and retain rows; see
# `tinymem.training.step.Loss`. reference: a `Reference`. retain: None without a retain set.
Objective = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]


@settings
class ObjectiveSettings:
    """Unlearning by objective: settings that all such methods share. Subclass it to add a method's own settings."""

    steps: tuple[int, ...] = option(
        (10, 20, 50),
        "numbers of steps after which the model is measured",
        low=1,
        strength=True,
        grid=(10, 20, 50, 100),
        small=(20,),
    )
    batch_size: int = option(32, "sequences per step, forget and retain rows together", low=2)
    lr: float = option(1e-4, "learning rate of AdamW", above=0.0)
    weight_decay: float = option(0.0, "weight decay of AdamW", low=0.0)
    warm_up: int = option(10, "steps over which the learning rate rises linearly", low=0)
    forget_share: float = option(
        0.5, "share of forget rows in a step; 0.5: one retain row per forget row", above=0.0, below=1.0
    )
    trained: str = option("all", "parameters that are trained", choices=TRAINED)
    dtype: str = option("auto", f"{MEANING}; weights keep their type", choices=PRECISIONS)


class Reference:
    """The model before the edit. The values that a loss needs are computed once, in the first call of the loss."""

    def __init__(self, model, microbatch: int, precision: str) -> None:
        self._before, self._microbatch, self._precision = model, microbatch, precision
        self._sums: dict[Side, torch.Tensor] = {}

    @cached_property
    def model(self):
        """A fixed copy without gradients, for a loss that needs logits or activations."""
        return copy.deepcopy(self._unedited()).eval().requires_grad_(False)

    def row_sums(self, side: Side) -> torch.Tensor:
        """Return each row's summed loss, (R,), in nats. Stored for the whole set, so that no model copy is needed."""
        whole = side if side.whole is None else side.whole
        if whole not in self._sums:
            model = self._unedited()
            with torch.no_grad(), autocast(model, self._precision):
                parts = [part.to(model.device) for part in whole.split(self._microbatch)]
                self._sums[whole] = torch.cat([part.row_sums(part.losses(model)) for part in parts])
        return self._sums[whole][side.ids]

    def begin_edit(self) -> None:
        """Mark the start of the edit: values that the loss has not requested by now are no longer available."""
        self._before = None

    def _unedited(self):
        if self._before is None:
            raise RuntimeError("a loss must request the same values of its reference in every call")
        return self._before


def train_objective(
    model,
    loss: Objective,
    forget: Side,
    retain: Side | None,
    settings: ObjectiveSettings,
    seed: int = 0,
    microbatch: int = 64,
    gradient_checkpointing: bool = False,
    regularizers: Sequence[Regularizer] = (),
    state: Path | None = None,
    lr_flag: str = "--lr",
    on_step: Callable[..., None] = lambda progress, *losses: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, None]]:
    """Train the model in place and yield (steps, None) at each of `settings.steps`, with the edit in the weights.

    forget, retain   whole sets (`Side.of`); without a retain set all rows of a batch are forget rows
    seed             seed of the order of the rows
    microbatch       rows per call of the loss, both sides together
    regularizers     hooks; `after_backward` may change gradients, see `tinymem.training.step.descend`
    state            a file to save the training in and to resume from; the caller ensures that it is of the same run.
                     It is removed at the end, and ignored if it is past the first requested number of steps
    lr_flag, on_step, should_stop   as in `tinymem.training.fit.fit`; on_step receives the losses of both sides

    The model is in evaluation mode, without dropout. Modes and `requires_grad` are restored at the end, weights are
    not. The weights after a number of steps depend on the seed, not on the other numbers in `settings.steps`. Raise
    ValueError for an empty set, UserError, naming the step, for a loss or weight that is not finite.
    """
    sets = [forget] if retain is None else [forget, retain]
    sizes = [settings.batch_size] if retain is None else sides_of(settings.batch_size, settings.forget_share)
    parameters = all_but_embeddings(model) if settings.trained == "all_but_embeddings" else model.parameters()
    reference = Reference(model, microbatch, settings.dtype)
    training = TrainingSettings(lr=settings.lr, l2_reg=settings.weight_decay)

    def bound(model, forget: Side, retain: Side | None = None):
        return loss(model, reference, forget, retain)

    def batch(number: int) -> list[Side]:
        drawn = [rows_of_step(len(s), size, 2 * seed + i, number) for i, (s, size) in enumerate(zip(sets, sizes))]
        return [whole.select(ids.to(model.device)) for whole, ids in zip(sets, drawn)]

    def step(number: int) -> list[float]:
        how = (microbatch, settings.dtype, gradient_checkpointing, regularizers)
        return descend(model, optimizer, bound, batch(number), *how)

    def rate(progress: Progress) -> float:
        return warmed_up(settings.lr, progress.epoch, settings.warm_up)

    def save() -> None:
        if state is not None:
            checkpoint.save_state(state, model, optimizer, regularizers, progress)

    with frozen(model, trainable=parameters):
        with torch.no_grad(), autocast(model, settings.dtype):  # before loading a state: the weights are unedited
            bound(model, *next(microbatches(batch(0), microbatch))[0])
        reference.begin_edit()
        optimizer = new_optimizer(model, training)
        progress = Progress()
        if state is not None and state.exists() and checkpoint.read_progress(state).epoch < min(settings.steps):
            progress = checkpoint.load_state(state, model, optimizer, regularizers)
        calls = (lr_flag, on_step, should_stop)
        last = max(settings.steps)  # an objective has no epochs: each step counts as one
        for _ in fit(model, optimizer, step, lambda number: [number], last, progress, rate, save, *calls):
            if progress.epoch in settings.steps:
                yield progress.epoch, None
    if state is not None:
        state.unlink(missing_ok=True)


def rows_of_step(count: int, size: int, seed: int, step: int) -> torch.Tensor:
    """Return the indices among `count` rows of a step's rows, int64 (min(size, count),), from seed and step alone.

    Each pass over the rows has a new order. A pass may end inside a step, so that all steps have the same size.
    Raise ValueError without rows.
    """
    if not count:
        raise ValueError("no sequences to draw batches from")
    size = min(size, count)
    places = torch.arange(step * size, (step + 1) * size)
    passes = range(step * size // count, ((step + 1) * size - 1) // count + 1)
    return torch.cat([epoch_permutation(count, seed, p)[places[places // count == p] % count] for p in passes])
