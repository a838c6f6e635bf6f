"""RepSelect (2026, arXiv 2606.17168): move against the forget set along one fixed direction, up to a budget of KL.

A low-rank change first brings the memory out. The strongest singular directions, which other text shares, are removed
from the gradient found there. The MLP matrices then move along the rest until the budget of KL(before || after) on
retain rows is spent.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinymem.localize.objective.selection import (
    BUDGET_ROWS,
    SHARED_ROWS,
    check_dropped,
    gradients,
    memory_gradients,
    some,
    walk,
    without_shared,
    work,
)
from tinymem.localize.training import sides
from tinymem.models.adapter import Weight, find_mlps
from tinymem.models.edit import Weights
from tinymem.models.precision import MEANING, PRECISIONS
from tinymem.options import option, settings
from tinymem.training.objective import FORGET_TOKENS

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
    dtype: str = option("auto", f"{MEANING}; weights keep their type", choices=PRECISIONS)


def run(model, task, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the weights at each budget. Leave the model unchanged."""
    check(model, task, hp)
    forget, retain = sides(task, hp.forget_tokens)
    assert retain is not None
    matrices = edited(model)
    found = memory_gradients(model, task, hp, matrices, forget)
    shared = found if hp.directions == "forget" else gradients(model, task, hp, matrices, some(retain, SHARED_ROWS))
    ways = [without_shared(*pair, hp.dropped) for pair in zip(found, shared)]
    yield from walk(model, task, hp, matrices, ways, some(retain, BUDGET_ROWS))


def check(model, task, hp: HyperParameters) -> None:
    """Raise UserError for a task without a retain set, and for more directions to drop than a matrix has."""
    task.check_retain("--localization_method repselect")
    for matrix in edited(model):
        check_dropped(hp.dropped, matrix.view())


def edited(model) -> list[Weight]:
    """Return the matrices that are moved: those of all MLPs."""
    return [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]


def passes(model, task, hp: HyperParameters) -> tuple[int, int]:
    """Return the forward and backward passes of all strengths."""
    searched, measured = work(task, hp)
    return searched + (2 + len(hp.kl_budget) * hp.max_steps) * measured, searched
