"""Unlearn by training the weights on an objective: a loss of the model, the unedited model, and forget and retain rows.

    def npo(model, reference, forget, retain):
        gap = forget.row_sums(forget.losses(model)) - reference.row_sums(forget)
        return -2 / BETA * logsigmoid(BETA * gap), retain.losses(model)

Values per row or per token are averaged over the batch (see `tinymem.training.step`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from tinymem.errors import UserError
from tinymem.inputs import AGAIN
from tinymem.models.adapter import weight_of
from tinymem.models.edit import Weights, apply
from tinymem.models.lora import LowRank
from tinymem.models.precision import PRECISION_HELP, PRECISIONS, autocast
from tinymem.models.trainable import all_but_embeddings, frozen
from tinymem.options import option, settings
from tinymem.regularizers.protocol import Regularizer
from tinymem.training import checkpoint
from tinymem.training.checkpoint import Progress
from tinymem.training.fit import epoch_permutation, fit, warmed_up
from tinymem.training.optimizer import new_optimizer
from tinymem.training.processes import ALONE, Processes
from tinymem.training.reference import Reference, Unedited
from tinymem.training.settings import TrainingSettings
from tinymem.training.step import Side, descend, microbatches, rows_per_side

logger = logging.getLogger(__name__)

TRAINED = ("all", "all_but_embeddings")
FORGET_TOKENS = ("all", "continuation")

# loss(model, reference, forget, retain) -> values of the forget rows, or of forget and retain rows (see
# `tinymem.training.step.Loss`). reference: a `Reference`. retain: None without a retain set, or with weight 0.
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
    lr: float = option(1e-4, "learning rate of AdamW", above=0.0, high=1e3)
    weight_decay: float = option(0.0, "weight decay of AdamW", low=0.0, high=1e3)
    warm_up: int = option(10, "steps over which the learning rate rises linearly", low=0)
    forget_share: float = option(
        0.5, "share of forget rows in a step; 0.5: one retain row per forget row", above=0.0, below=1.0
    )
    trained: str = option("all", "parameters that are trained", choices=TRAINED)
    forget_weight: float = option(1.0, "weight of the forget loss", low=0.0)
    retain_weight: float = option(1.0, "weight of the retain loss; 0: no retain rows", low=0.0)
    forget_tokens: str = option(
        "continuation", "tokens of a forget row that count in its loss: all, or those after its prompt",
        choices=FORGET_TOKENS,
    )  # fmt: skip
    update_mask: tuple[str, ...] | None = option(
        None, "METHOD RATIO: train only the weights that a method would drop at this ratio", unrecorded=True
    )
    lora_rank: int = option(
        0, "rank of a low-rank change to train instead of the weights (LoRA); 0: the weights", low=0, unrecorded=True
    )
    lora_alpha: float | None = option(
        None, "the change is scaled by this over the rank; default: twice the rank", above=0.0, unrecorded=True
    )
    lora_targets: tuple[str, ...] | None = option(
        None, "layers to change, by the ends of their names; default: all linear layers of the blocks", unrecorded=True
    )
    dtype: str = option("auto", f"{PRECISION_HELP}; weights keep their type", choices=PRECISIONS)

    def __post_init__(self) -> None:
        for name in ("lora_alpha", "lora_targets"):
            if getattr(self, name) is not None and not self.lora_rank:
                raise UserError(f"--{name}: only with --lora_rank")
        for name in ("forget_share", "retain_loss"):
            default = type(self).__dataclass_fields__.get(name)
            if not self.retain_weight and default is not None and getattr(self, name) != default.default:
                raise UserError(f"--{name} {getattr(self, name)}: only with a --retain_weight above 0")
        if self.trained != "all" and (self.lora_rank or self.update_mask is not None):
            flag = "lora_rank" if self.lora_rank else "update_mask"
            raise UserError(f"--trained {self.trained}: not with --{flag}, which says what is trained")
        if self.lora_rank and self.update_mask is not None:
            raise UserError(
                f"--lora_rank {self.lora_rank}: not with --update_mask, since a low-rank change reaches every weight "
                "of a layer; leave one of them out"
            )
        if self.update_mask is None:
            return
        if len(self.update_mask) != 2:
            given = " ".join(self.update_mask)
            raise UserError(f"--update_mask {given}: must be a method and a ratio, such as durable 0.1")
        if self.weight_decay:
            raise UserError(
                f"--weight_decay {self.weight_decay}: must be 0 with --update_mask, because it changes every weight"
            )


def loss_flags(settings: ObjectiveSettings) -> list[str]:
    """Return the flags that scale a loss: an objective's own numbers, and weights that are not at their defaults."""
    shared = {field.name for field in fields(ObjectiveSettings)}
    own = [f.name for f in fields(settings) if f.name not in shared and isinstance(getattr(settings, f.name), float)]
    given = [
        field.name
        for field in fields(settings)
        if field.name in ("forget_weight", "retain_weight", "weight_decay")
        and getattr(settings, field.name) != field.default
    ]
    return [f"--{name}" for name in (*own, *given)]


def train_objective(
    model,
    loss: Objective,
    forget: Side,
    retain: Side | None,
    settings: ObjectiveSettings,
    *,
    seed: int = 0,
    microbatch: int = 64,
    gradient_checkpointing: bool = False,
    regularizers: Sequence[Regularizer] = (),
    masks: Mapping[str, torch.Tensor] | None = None,
    weights: Callable[[Reference], Sequence[float]] | None = None,
    after_step: Callable[[Reference, int, Sequence[float]], None] = lambda reference, steps, losses: None,
    state: Path | None = None,
    on_resume: Callable[[Progress], None] = lambda progress: None,
    change: LowRank | None = None,
    unedited: Unedited | None = None,
    processes: Processes = ALONE,
    lr_flag: str = "--lr",
    causes: Sequence[str] = (),
    on_step: Callable[..., None] = lambda progress, *losses: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[int, list[float]]]:
    """Train the model in place and yield each of `settings.steps` with its losses, while the weights hold the edit.

    forget, retain   whole sets (`Side.of`); without a retain set, all rows of a batch are forget rows
    seed             seed of the order of the rows, and of random numbers in a loss
    microbatch       rows per call of the loss, both sides together
    regularizers     hooks; `after_backward` may change gradients (see `tinymem.training.step.descend`)
    masks            state-dict key -> bool, as in `tinymem.models.edit.Zeros`: the entries to train; None: all
                     entries of the parameters that `settings` name
    weights          weights of the losses of both sides, at every step; default: those of `settings`
    after_step(reference, steps, losses)   called after every step; may update `reference.state` in place
    state            a file of the first process to save the training in and resume from; the caller ensures that it
                     belongs to the same run, and removes it. Ignored if past the first requested number of steps
    on_resume(progress)   called with the progress of the state from which a training continues
    change           a low-rank change attached to the model: its entries are trained instead of the weights
    unedited         as in `Reference`; default: that of `change`
    processes        the processes that train together, each with its rows of every batch
    lr_flag, causes, on_step, should_stop   as in `tinymem.training.fit.fit`; on_step receives the losses of both sides

    The losses are those of both sides. The model is in evaluation mode, without dropout. Modes and `requires_grad` are
    restored at the end, weights are not. The weights after a number of steps depend on the seed, not on the other
    numbers in `settings.steps`. If a state cannot be written, training goes on.

    Raise ValueError for an empty set. Raise UserError, naming the step, for a loss or weight that is not finite, and,
    naming the file, for a damaged state.
    """
    sets = [forget] if retain is None else [forget, retain]
    sizes = [settings.batch_size] if retain is None else rows_per_side(settings.batch_size, settings.forget_share)
    processes.check_divides([min(size, len(whole)) for whole, size in zip(sets, sizes)])
    parameters = list(all_but_embeddings(model) if settings.trained == "all_but_embeddings" else model.parameters())
    if change is not None:
        parameters, unedited = change.parameters, change.detached
    if masks is not None:
        parameters, zero_unmasked = masked(model, masks)
        regularizers = [*regularizers, zero_unmasked]
    constant = (settings.forget_weight, settings.retain_weight)
    reference = Reference(model, microbatch, settings.dtype, unedited, seed)
    last_losses = torch.zeros(len(sets), dtype=torch.float64)
    training = TrainingSettings(lr=settings.lr, l2_reg=settings.weight_decay)

    def side_losses(model, forget: Side, retain: Side | None = None):
        return loss(model, reference, forget, retain)

    def batch(number: int) -> list[Side]:
        row_ids = [rows_of_step(len(s), size, 2 * seed + i, number) for i, (s, size) in enumerate(zip(sets, sizes))]
        return [whole.select(ids.to(model.device)) for whole, ids in zip(sets, row_ids)]

    def step(number: int) -> list[float]:
        losses = descend(
            model, optimizer, side_losses, batch(number), microbatch, settings.dtype, gradient_checkpointing,
            regularizers=regularizers, weights=weights(reference) if weights else constant, processes=processes,
        )  # fmt: skip
        after_step(reference, number + 1, losses)
        last_losses.copy_(torch.tensor(losses, dtype=torch.float64))
        return losses

    def rate(progress: Progress) -> float:
        return warmed_up(settings.lr, progress.epoch, settings.warm_up)

    def save(file: Path) -> None:
        try:
            checkpoint.save_state(file, model, optimizer, regularizers, progress)
        except UserError as error:  # such as a full disk or somebody else's folder
            logger.warning("%s; if it is killed, this training resumes from an earlier step", error)

    with frozen(model, trainable=parameters):
        with torch.no_grad(), autocast(model, settings.dtype):  # before loading a state: the weights are unedited
            side_losses(model, *next(microbatches(batch(0), microbatch))[0])
        reference.begin_edit()
        regularizers = [*regularizers, Regularizer(state=reference.state), Regularizer(state={"losses": last_losses})]
        optimizer = new_optimizer(model, training)
        resumed = None
        if state is not None and checkpoint.leads_to(state, min(settings.steps)):
            resumed = checkpoint.load_state(state, model, optimizer, regularizers, AGAIN)
        if resumed := processes.send(resumed):
            checkpoint.share_state(model, optimizer, regularizers, processes)
            on_resume(resumed)
        progress = resumed or Progress()
        last = max(settings.steps)  # an objective has no epochs: each step counts as an epoch
        for _ in fit(
            model, optimizer, step, lambda number: [number], last, progress,
            rate=rate, save=None if state is None else partial(save, state), lr_flag=lr_flag, causes=causes,
            on_step=on_step, should_stop=should_stop, anywhere=processes.any,
        ):  # fmt: skip
            if progress.epoch in settings.steps:
                model.zero_grad(set_to_none=True)  # gradients would occupy memory while the edit is measured
                yield progress.epoch, last_losses.tolist()


def snapshots(
    model,
    training: Generator[tuple[int, list[float]]],
    names: Sequence[str] = (),
    taken: Callable[[Mapping[str, float]], AbstractContextManager[Weights]] | None = None,
) -> Generator[tuple[int, Weights]]:
    """Yield the edit at each number of steps of a training, such as `train_objective`.

    Whenever a number is yielded, and at the end, the model is as it was before the training. names: names of the
    losses, under which they are kept with the edit. taken: a context that yields the edit while the model is as it was
    (`LowRank.taken`); None: the training changes the model's weights, which takes memory for two copies of the
    parameters.
    """
    with closing(training):
        if taken is None:
            yield from _copies(model, training, names)
            return
        for steps, losses in training:
            with taken(dict(zip(names, losses))) as edit:
                yield steps, edit


def _copies(model, training: Iterator[tuple[int, list[float]]], names: Sequence[str]) -> Generator[tuple[int, Weights]]:

    def copied() -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    before = Weights(copied())
    try:
        for steps, losses in training:
            trained = Weights(copied(), dict(zip(names, losses)))
            apply(model, before)
            yield steps, trained
            apply(model, trained)
            del trained
    finally:
        apply(model, before)


def masked(model, masks: Mapping[str, torch.Tensor]) -> tuple[list[torch.nn.Parameter], Regularizer]:
    """Return the parameters that have masks, and a hook that zeroes the gradients of all other entries.

    masks: as in `tinymem.models.edit.Zeros`. Raise KeyError for a weight that the model lacks.
    """
    kept = []
    for name in masks:
        weight = weight_of(model, name)
        kept.append((weight.parameter, weight.view(masks[name].to(weight.parameter.device))))

    def after_backward() -> None:
        for parameter, mask in kept:
            if parameter.grad is not None:  # a loss need not reach every block
                parameter.grad.masked_fill_(~mask, 0)

    return [parameter for parameter, _ in kept], Regularizer(after_backward=after_backward)


def rows_of_step(count: int, size: int, seed: int, step: int) -> torch.Tensor:
    """Return the indices of a step's rows among `count` rows, int64 (min(size, count),), from seed and step alone.

    Each pass over the rows has a new order. A pass may end inside a step, so that all steps have the same size.
    Raise ValueError without rows.
    """
    if not count:
        raise ValueError("no sequences to draw batches from")
    size = min(size, count)
    places = torch.arange(step * size, (step + 1) * size)
    passes = range(step * size // count, ((step + 1) * size - 1) // count + 1)
    return torch.cat([epoch_permutation(count, seed, p)[places[places // count == p] % count] for p in passes])
