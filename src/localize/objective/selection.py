"""Parts of RepSelect: the gradient of a memory that was brought out, and what it shares with other text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinymem.data.dataset import evenly_spaced
from tinymem.errors import NotFinite, UserError
from tinymem.localize.learning import frozen, gradients_of_sides, kl_note
from tinymem.localize.objective.terms import divergence
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight
from tinymem.models.edit import Weights, applied, reversible
from tinymem.models.precision import autocast
from tinymem.training.reference import Reference
from tinymem.training.step import Side, next_token_loss

BATCH = 32  # forget rows per step of the low-rank change
SHARED_ROWS, BUDGET_ROWS = 512, 64  # retain rows for the shared gradient, and for the drift


def some(side: Side, most: int) -> Side:
    """Return at most `most` rows of a whole set, evenly spaced, as a whole set of their own."""
    rows = evenly_spaced(len(side), most)
    return Side(side.tokens[rows], torch.arange(len(rows)), side.mask[rows])


def gradients(model, task: UnlearningTask, hp: Any, matrices: Sequence[Weight], side: Side) -> list[torch.Tensor]:
    """Return the gradient of the mean token loss for each matrix, float32 (out, in). Leave `.grad` empty."""
    parameters = [matrix.parameter for matrix in matrices]
    with frozen(model, trainable=parameters):
        found, _ = gradients_of_sides(model, task, next_token_loss, [side.to(model.device)], parameters, hp.dtype)
        return [matrix.view(gradient).float() for matrix, gradient in zip(matrices, found)]


def memory_gradients(
    model, task: UnlearningTask, hp: Any, matrices: Sequence[Weight], forget: Side
) -> list[torch.Tensor]:
    """Return the gradients on the forget set after one pass of training a low-rank change A B on it.

    A (out, rank) starts at random, B (rank, in) at 0, as in LoRA. Leave the model unchanged.
    """
    generator = task.generator()
    with reversible() as changes:
        factors = []
        for matrix in matrices:
            changes.keep(matrix.parameter)
            view = matrix.view()
            left = torch.randn(view.shape[0], hp.rank, generator=generator) / hp.rank**0.5
            right = view.new_zeros(hp.rank, view.shape[1], dtype=torch.float32)
            factors.append((left.to(view.device).requires_grad_(), right.requires_grad_()))
        starts = [matrix.view().clone() for matrix in matrices]
        optimizer = torch.optim.Adam([factor for pair in factors for factor in pair], lr=hp.rank_lr)
        for part in forget.split(BATCH):
            for (left, right), gradient in zip(factors, gradients(model, task, hp, matrices, part)):
                left.grad, right.grad = gradient @ right.detach().T, left.detach().T @ gradient
            optimizer.step()
            for matrix, start, (left, right) in zip(matrices, starts, factors):
                matrix.view().copy_(start + (left @ right).detach())
        return gradients(model, task, hp, matrices, forget)


def check_dropped(dropped: int, matrix: torch.Tensor) -> None:
    """Raise UserError unless some of a matrix's singular directions are left."""
    if dropped >= min(matrix.shape):
        raise UserError(f"--dropped {dropped}: must be < {min(matrix.shape)}, the smaller side of an MLP matrix; it "
                        "would leave no direction")  # fmt: skip


def without_shared(gradient: torch.Tensor, shared: torch.Tensor, dropped: int) -> torch.Tensor:
    """Return a gradient (out, in) without the strongest `dropped` singular directions of another, on both sides.

    Raise UserError unless some are left.
    """
    check_dropped(dropped, gradient)
    left, _, right = torch.linalg.svd(shared, full_matrices=False)
    left, right = left[:, :dropped], right[:dropped]
    gradient = gradient - left @ (left.T @ gradient)
    return gradient - (gradient @ right.T) @ right


def drift(model, reference: Reference, side: Side, microbatch: int, precision: str) -> float:
    """Return the mean KL(before || after) over the counted tokens of some rows, in nats."""
    rows = side.select(torch.arange(len(side), device=model.device))
    with torch.no_grad(), autocast(model, precision):
        parts = rows.split(microbatch)
        total = sum((divergence(model, reference, part) * part.mask).sum() for part in parts)
    return (total / rows.mask.sum().clamp(min=1)).item()


def walk(
    model, task: UnlearningTask, hp: Any, matrices: Sequence[Weight], ways: Sequence[torch.Tensor], rows: Side
) -> Iterator[tuple[float, Weights]]:
    """Yield, for each budget, the weights farthest along `ways` (out, in) whose drift on the rows is within it."""
    views = [matrix.view() for matrix in matrices]
    weights, others = (torch.stack([t.float().square().sum() for t in each]).sum() for each in (views, ways))
    if others == 0:  # never true for a plan's fake tensors
        raise NotFinite("the gradient of the sequences to forget is 0, so that there is no direction to move along")
    length = weights / others
    reference = Reference(model, task.microbatch, hp.dtype)

    def moved(share: float, **notes: float) -> Weights:
        new = (m.view() + share * length.sqrt() * way for m, way in zip(matrices, ways))
        return Weights({m.name: m.view(values).to(m.parameter.dtype) for m, values in zip(matrices, new)}, notes)

    def spent() -> float:
        return drift(model, reference, rows, task.microbatch, hp.dtype)

    spent()
    reference.begin_edit()
    for budget in hp.kl_budget:
        share, reached, step = 0.0, 0.0, hp.lr
        for _ in range(hp.max_steps):
            with applied(model, moved(share + step)):
                now = spent()
            share, reached, step = (share + step, now, step) if now <= budget else (share, reached, step / 2)
        yield budget, moved(share, **kl_note("repselect", budget, max(0.0, reached)))


def work(task: UnlearningTask, hp: Any) -> tuple[int, int]:
    """Return the passes that find the directions, and those over the rows on which the drift is measured."""
    forget, retain = len(task.forget), len(task.retain)
    found = forget // BATCH * task.passes(BATCH) + task.passes(forget % BATCH) + task.passes(forget)
    shared = task.passes(min(retain, SHARED_ROWS)) if hp.directions == "retain" else 0
    return found + shared, task.passes(min(retain, BUDGET_ROWS))
