"""BalancedSubnet with a bounded forget term: NPO's sigmoid or UNDIAL's targets in place of the forget loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tinymem.localize.learning import endless_batches, frozen, gradients_of_sides
from tinymem.localize.objective import npo, undial
from tinymem.localize.objective_method import sides
from tinymem.localize.task import UnlearningTask
from tinymem.models.precision import autocast
from tinymem.training.reference import Reference
from tinymem.training.step import Side, rows_per_side

LOSS, TERMS = "loss", {"npo": npo, "undial": undial}  # the unbounded term, and objectives with their default settings
Rows = tuple["torch.Tensor", "torch.Tensor"]


def row_batches(task: UnlearningTask, hp: Any, generator: torch.Generator) -> Iterator[Rows]:
    """Yield endless batches as row numbers of forget and retain set, int64, in the order of `mixed_batches`."""
    counts = len(task.forget), len(task.retain)
    sizes = rows_per_side(hp.batch_size, hp.unlearn_share)
    return zip(*(endless_batches(torch.arange(n), size, generator) for n, size in zip(counts, sizes)))


def bounded_step(
    model, task: UnlearningTask, hp: Any
) -> Callable[[Rows, list[torch.nn.Parameter]], list[torch.Tensor]]:
    """Return a step of `learn_subnet`: rows of a batch -> the gradient of (1 - w) * term + w * retain loss.

    The term counts the same tokens as its objective: no prompts and no pads. In NPO, a row's term is divided by its
    length, so the row pulls at most twice as hard as its mean loss would.
    """
    term, reference = TERMS[hp.forget_term], Reference(model, task.microbatch, hp.dtype)
    settings = term.HyperParameters()
    whole = sides(task, settings.forget_tokens)

    def loss(model, forget: Side, retain: Side) -> tuple[torch.Tensor, torch.Tensor]:
        values = term.loss(settings, model, reference, forget, None)
        return values / forget.lengths if values.dim() == 1 else values, retain.losses(model)

    def some(rows: Rows) -> list[Side]:
        return [side.select(ids.to(model.device)) for side, ids in zip(whole, rows) if side is not None]

    def step(rows: Rows, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
        weights, drawn = (1 - hp.loss_weighting, hp.loss_weighting), some(rows)
        found, means = gradients_of_sides(model, task, loss, drawn, parameters, hp.dtype, weights)
        tokens = sum(side.tokens.numel() for side in drawn)
        task.watch.note(tokens, forget_loss=means[0], retain_loss=means[1])
        return found

    first = torch.zeros(1, dtype=torch.long)
    with frozen(model), torch.no_grad(), autocast(model, hp.dtype):
        loss(model, *some((first, first)))
    reference.begin_edit()
    return step
