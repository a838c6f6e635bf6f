"""Edge-popup (Ramanujan et al. 2020, arXiv 1911.13299): learns which weights of a frozen model to keep.

What Subnet and BalancedSubnet share: a score per MLP weight, a forward pass that keeps a weight unless its |score| is
among the lowest `ratio` of its matrix, and SGD on the scores with a straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tinymem.localize.edit import Masks, how_many, top
from tinymem.models.adapter import Weight, find_mlps


@dataclass(frozen=True)
class ScoreOptimizer:
    """SGD on the scores: lr, momentum (0 keeps no buffer), weight_decay."""

    lr: float
    momentum: float
    weight_decay: float


def learn_subnet(
    model,
    steps: Iterable[Callable[[], None]],
    ratio: float,
    optimizer: ScoreOptimizer,
    generator: torch.Generator,
) -> Masks:
    """Runs one SGD step on the scores for each of `steps` and returns the final mask of every MLP matrix.

    Each step is a function that runs forward and backward passes of what is to be minimised; gradients add up in the
    MLP matrices. They are turned into gradients of the scores by the chain rule through weight * keep(|score|), the
    threshold passed straight through: d/d score = gradient * weight * sign(score). Steps with a gradient that is not
    finite are skipped. The model is left as it was.
    """
    matrices = [matrix for mlp in find_mlps(model) for matrix in mlp.matrices]
    scores = [_kaiming_uniform(matrix, generator) for matrix in matrices]
    velocity = [torch.zeros_like(score) if optimizer.momentum else None for score in scores]
    counts = [how_many(ratio, score.numel()) for score in scores]
    with _only_gradients_of(model, matrices):
        originals = [matrix.view().clone() for matrix in matrices]
        try:
            for step in steps:
                _hide(matrices, originals, scores, counts)
                step()
                _update(matrices, originals, scores, velocity, optimizer)
        finally:
            for matrix, original in zip(matrices, originals):
                matrix.view().copy_(original)
    return {matrix.name: top(-score.abs(), count) for matrix, score, count in zip(matrices, scores, counts)}


def _kaiming_uniform(matrix: Weight, generator: torch.Generator) -> torch.Tensor:
    """Kaiming uniform with a = sqrt(5): bound 1 / sqrt(fan in). Drawn as (out, in) whichever way the weight is stored."""
    out, fan_in = matrix.view().shape
    drawn = torch.rand(out, fan_in, generator=generator) * 2 - 1
    return (drawn / math.sqrt(fan_in)).to(matrix.parameter.device)


@torch.no_grad()
def _hide(matrices, originals, scores, counts) -> None:
    """Shows the model only the weights that its subnet keeps."""
    for matrix, original, score, count in zip(matrices, originals, scores, counts):
        matrix.view().copy_(original).masked_fill_(top(-score.abs(), count), 0)
        matrix.parameter.grad = None


@torch.no_grad()
def _update(matrices, originals, scores, velocity, optimizer: ScoreOptimizer) -> None:
    gradients = [
        matrix.grad.float() * original * score.sign() for matrix, original, score in zip(matrices, originals, scores)
    ]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return
    for i, (score, gradient) in enumerate(zip(scores, gradients)):
        gradient.add_(score, alpha=optimizer.weight_decay)
        if velocity[i] is not None:
            gradient = velocity[i].mul_(optimizer.momentum).add_(gradient)
        score.sub_(gradient, alpha=optimizer.lr)


@contextmanager
def _only_gradients_of(model, matrices: list[Weight]) -> Iterator[None]:
    """Within the block only the MLP matrices collect gradients; everything is put back on leaving."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for matrix in matrices:
        matrix.parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
