"""Edge-popup (Ramanujan et al. 2020, arXiv 1911.13299): learns which weights of a frozen model to keep.

What Subnet and BalancedSubnet share: a score per MLP weight, a forward pass that keeps a weight unless its |score| is
among the lowest `ratio` of its matrix, and SGD on the scores with a straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tinymem.localize.edit import Masks, how_many, top
from tinymem.localize.learning import all_finite, frozen
from tinymem.models.adapter import Weight, find_mlps

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class ScoreOptimizer:
    """SGD on the scores: lr, momentum (0 keeps no buffer), weight_decay."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass
class _Scored:
    """A matrix while its subnet is learned; all tensors (out, in), laid out in memory like the matrix itself.

    original   the weights as they were, in their own type
    score      float32
    velocity   momentum of the score, float32, or None
    dropped    how many weights the subnet leaves out
    """

    matrix: Weight
    original: torch.Tensor
    score: torch.Tensor
    velocity: torch.Tensor | None
    dropped: int

    def mask(self) -> torch.Tensor:
        """True where the subnet leaves a weight out."""
        return top(-self.score.abs(), self.dropped)


def learn_subnet(
    model,
    batches: Iterable[Any],
    step: Callable[[Any], None],
    ratio: float,
    optimizer: ScoreOptimizer,
    generator: torch.Generator,
) -> Masks:
    """Runs one SGD step on the scores for each batch and returns the final mask of every MLP matrix.

    step(batch)   runs forward and backward passes of what is to be minimised; gradients add up in the MLP matrices

    They are turned into gradients of the scores by the chain rule through weight * keep(|score|), the threshold passed
    straight through: d/d score = gradient * weight * sign(score). A step whose gradient is not finite is skipped.
    The model is left as it was.
    """
    scored = [_new_scores(matrix, ratio, optimizer, generator) for mlp in find_mlps(model) for matrix in mlp.matrices]
    with frozen(model, trainable=[each.matrix.parameter for each in scored]):
        try:
            for batch in batches:
                for each in scored:
                    each.matrix.view().copy_(each.original).masked_fill_(each.mask(), 0)
                    each.matrix.parameter.grad = None
                step(batch)
                if all_finite(each.matrix.grad for each in scored):
                    for each in scored:
                        _update(each, optimizer)
        finally:
            for each in scored:
                each.matrix.view().copy_(each.original)
    return {each.matrix.name: each.mask() for each in scored}


def _new_scores(matrix: Weight, ratio: float, optimizer: ScoreOptimizer, generator: torch.Generator) -> _Scored:
    """Kaiming uniform with a = sqrt(5): bound 1 / sqrt(fan in). Drawn as (out, in) however the weight is stored."""
    original = matrix.view().clone()
    drawn = torch.rand(original.shape, generator=generator) * 2 - 1
    score = torch.empty_like(original, dtype=torch.float32).copy_(drawn / math.sqrt(original.shape[1]))
    velocity = torch.zeros_like(score) if optimizer.momentum else None
    return _Scored(matrix, original, score, velocity, how_many(ratio, score.numel()))


def _update(scored: _Scored, optimizer: ScoreOptimizer) -> None:
    gradient = scored.matrix.grad.float().mul_(scored.original).mul_(scored.score.sign())
    gradient.add_(scored.score, alpha=optimizer.weight_decay)
    if scored.velocity is not None:
        gradient = scored.velocity.mul_(optimizer.momentum).add_(gradient)
    scored.score.sub_(gradient, alpha=optimizer.lr)
