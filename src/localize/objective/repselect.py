"""RepSelect (2026, arXiv 2606.17168): move against the forget set along one fixed direction, up to a budget of KL.

A low-rank change first brings the memory out. The gradient found there loses its strongest singular directions, which
other text shares. The MLP matrices then move along the rest until KL(before || after) on retain rows is spent.
"""

from collections.abc import Iterator

import torch

from tinymem.errors import UserError
from tinymem.localize.method import sides
from tinymem.localize.objective.selection import (
    BUDGET_ROWS,
    SHARED_ROWS,
    drift,
    gradients,
    memory_gradients,
    some,
    without_shared,
    work,
)
from tinymem.models.adapter import find_mlps
from tinymem.models.edit import Weights, applied
from tinymem.models.precision import MEANING, PRECISIONS
from tinymem.options import option, settings
from tinymem.training.objective import FORGET_TOKENS
from tinymem.training.reference import Reference

CUMULATIVE = True


@settings
class HyperParameters:
    """RepSelect"""

    kl_budget: tuple[float, ...] = option(
        (0.01, 0.03, 0.1), "KL on retain rows to spend, nats per token", above=0.0, strength=True,
        grid=(0.01, 0.03, 0.1, 0.3), small=(0.03,),
    )  # fmt: skip
    rank: int = option(4, "rank of the change that brings the memory out", low=1)
    rank_lr: float = option(0.01, "learning rate of that change, for one pass over the forget set", above=0.0)
    directions: str = option("retain", "set whose gradient names the shared directions", choices=("retain", "forget"))
    dropped: int = option(4, "strongest singular directions to remove on both sides", low=0, grid=(0, 4, 16))
    lr: float = option(0.05, "first step, relative to the length of all MLP matrices; halved at the budget", above=0.0)
    max_steps: int = option(30, "steps to try per budget", low=1)
    forget_tokens: str = option("continuation", "tokens of a forget row that count", choices=FORGET_TOKENS)
    dtype: str = option("auto", f"{MEANING}; weights keep their type", choices=PRECISIONS)


def run(model, task, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the weights at each budget. Leave the model unchanged."""
    forget, retain = sides(task, hp.forget_tokens)
    if retain is None:
        raise UserError("--localization_method repselect: needs a retain set, on which its budget is spent")
    matrices = [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]
    found = memory_gradients(model, task, hp, matrices, forget)
    shared = found if hp.directions == "forget" else gradients(model, task, hp, matrices, some(retain, SHARED_ROWS))
    ways = [without_shared(*pair, hp.dropped) for pair in zip(found, shared)]
    length = sum(m.view().float().square().sum() for m in matrices) / sum(way.square().sum() for way in ways)
    reference, rows = Reference(model, task.microbatch, hp.dtype), some(retain, BUDGET_ROWS)

    def moved(share: float) -> Weights:
        new = (m.view() + share * length.sqrt() * way for m, way in zip(matrices, ways))
        return Weights({m.name: m.view(values).to(m.parameter.dtype) for m, values in zip(matrices, new)})

    def spent() -> float:
        return drift(model, reference, rows, task.microbatch, hp.dtype)

    spent()
    reference.begin_edit()
    for budget in hp.kl_budget:
        share, step = 0.0, hp.lr
        for _ in range(hp.max_steps):
            with applied(model, moved(share + step)):
                within = spent() <= budget
            share, step = (share + step, step) if within else (share, step / 2)
        yield budget, moved(share)


def passes(model, task, hp: HyperParameters) -> tuple[int, int]:
    """Return the forward and backward passes of all strengths."""
    searched, measured = work(task, hp)
    return searched + (2 + len(hp.kl_budget) * hp.max_steps) * measured, searched
