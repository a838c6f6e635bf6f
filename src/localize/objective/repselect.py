"""RepSelect (2026, arXiv 2606.17168): move against the forget set along one fixed direction, up to a budget of KL.

A low-rank change first brings the memory out. The strongest singular directions, which other text shares, are removed
from the gradient found there. The MLP matrices then move along the rest until the budget of KL(before || after) on
retain rows is spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tinymem.data.dataset import evenly_spaced
from tinymem.errors import NotFinite, UserError
from tinymem.localize.learning import frozen, gradients_of_sides, kl_note
from tinymem.localize.objective.terms import divergence
from tinymem.localize.objective_method import sides
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight, find_mlps
from tinymem.models.edit import Weights, applied, reversible
from tinymem.models.precision import PRECISION_HELP, PRECISIONS, autocast
from tinymem.options import option, settings
from tinymem.training.objective import FORGET_TOKENS
from tinymem.training.reference import Reference
from tinymem.training.step import Side, next_token_loss

BATCH = 32  # forget rows per step of the low-rank change
SHARED_ROWS, BUDGET_ROWS = 512, 64  # retain rows for the shared gradient, and for the drift
CUMULATIVE = True  # a budget's cost includes the shared work and the walks to smaller budgets


@settings
class HyperParameters:
    """RepSelect"""

    kl_budget: tuple[float, ...] = option(
        (0.01, 0.03, 0.1), "KL on retain rows to spend, nats per token", above=0.0, strength=True,
        grid=(0.01, 0.03, 0.1, 0.3), small=(0.03,),
    )  # fmt: skip
    rank: int = option(4, "rank of the change that brings the memory out", low=1)
    rank_lr: float = option(0.01, "learning rate of that change, for one pass over the forget set", above=0.0, high=1e3)
    directions: str = option("retain", "set whose gradient defines the shared directions", choices=("retain", "forget"))
    dropped: int = option(4, "strongest singular directions to remove on both sides", low=0, grid=(0, 4, 16))
    lr: float = option(
        0.05, "first step, relative to the norm of all MLP matrices; halved beyond the budget", above=0.0, high=1e3
    )
    max_steps: int = option(30, "steps to try per budget", low=1)
    forget_tokens: str = option("continuation", "tokens of a forget row that count", choices=FORGET_TOKENS)
    dtype: str = option("auto", f"{PRECISION_HELP}; weights keep their type", choices=PRECISIONS)


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the weights at each budget. Leave the model unchanged."""
    check(model, task, hp)
    forget, retain = sides(task, hp.forget_tokens)
    assert retain is not None
    matrices = mlp_matrices(model)
    memory = memory_gradients(model, task, hp, matrices, forget)
    shared = memory
    if hp.directions == "retain":
        shared = matrix_gradients(model, task, hp, matrices, evenly_spaced_rows(retain, SHARED_ROWS))
    directions = [without_shared(*pair, hp.dropped) for pair in zip(memory, shared)]
    yield from walk(model, task, hp, matrices, directions, evenly_spaced_rows(retain, BUDGET_ROWS))


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a task without a retain set, and for more directions to drop than a matrix has."""
    task.check_retain("--localization_method repselect")
    for matrix in mlp_matrices(model):
        check_dropped(hp.dropped, matrix.view())


def mlp_matrices(model) -> list[Weight]:
    """Return the matrices that are moved: those of all MLPs."""
    return [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the forward and backward passes of all strengths."""
    search_passes, drift_passes = search_and_drift_passes(task, hp)
    return search_passes + (2 + len(hp.kl_budget) * hp.max_steps) * drift_passes, search_passes


def evenly_spaced_rows(side: Side, most: int) -> Side:
    """Return at most `most` rows of a whole set, evenly spaced, as a whole set of their own."""
    rows = evenly_spaced(len(side), most)
    return Side(side.tokens[rows], torch.arange(len(rows)), side.mask[rows])


def matrix_gradients(
    model, task: UnlearningTask, hp: HyperParameters, matrices: Sequence[Weight], side: Side
) -> list[torch.Tensor]:
    """Return the gradient of the mean token loss for each matrix, float32 (out, in). Leave `.grad` empty."""
    parameters = [matrix.parameter for matrix in matrices]
    with frozen(model, trainable=parameters):
        gradients, _ = gradients_of_sides(model, task, next_token_loss, [side.to(model.device)], parameters, hp.dtype)
        return [matrix.view(gradient).float() for matrix, gradient in zip(matrices, gradients)]


def memory_gradients(
    model, task: UnlearningTask, hp: HyperParameters, matrices: Sequence[Weight], forget: Side
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
            for (left, right), gradient in zip(factors, matrix_gradients(model, task, hp, matrices, part)):
                left.grad, right.grad = gradient @ right.detach().T, left.detach().T @ gradient
            optimizer.step()
            for matrix, start, (left, right) in zip(matrices, starts, factors):
                matrix.view().copy_(start + (left @ right).detach())
        return matrix_gradients(model, task, hp, matrices, forget)


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


def squared_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of all squared entries, a scalar in float32."""
    return torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()


def walk(
    model,
    task: UnlearningTask,
    hp: HyperParameters,
    matrices: Sequence[Weight],
    directions: Sequence[torch.Tensor],
    rows: Side,
) -> Iterator[tuple[float, Weights]]:
    """Yield, for each budget, the weights farthest along the directions whose drift on the rows is within it.

    directions: one tensor (out, in) per matrix.
    """
    weight_norm = squared_norm([matrix.view() for matrix in matrices])
    direction_norm = squared_norm(directions)
    if direction_norm == 0:  # never true for a plan's fake tensors
        raise NotFinite("the gradient of the sequences to forget is 0, so that there is no direction to move along")
    length = (weight_norm / direction_norm).sqrt()
    reference = Reference(model, task.microbatch, hp.dtype)

    def weights_at(share: float, **notes: float) -> Weights:
        moved = (matrix.view() + share * length * direction for matrix, direction in zip(matrices, directions))
        return Weights({m.name: m.view(values).to(m.parameter.dtype) for m, values in zip(matrices, moved)}, notes)

    def current_kl() -> float:
        return drift(model, reference, rows, task.microbatch, hp.dtype)

    current_kl()
    reference.begin_edit()
    for budget in hp.kl_budget:
        share, reached, step = 0.0, 0.0, hp.lr
        for _ in range(hp.max_steps):
            with applied(model, weights_at(share + step)):
                kl = current_kl()
            if kl <= budget:
                share, reached = share + step, kl
            else:
                step /= 2
        yield budget, weights_at(share, **kl_note("repselect", budget, max(0.0, reached)))


def search_and_drift_passes(task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes that find the directions, and those over the rows on which the drift is measured."""
    forget, retain = len(task.forget), len(task.retain)
    memory = forget // BATCH * task.passes(BATCH) + task.passes(forget % BATCH) + task.passes(forget)
    shared = task.passes(min(retain, SHARED_ROWS)) if hp.directions == "retain" else 0
    return memory + shared, task.passes(min(retain, BUDGET_ROWS))
