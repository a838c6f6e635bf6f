"""Edge-popup (Ramanujan et al. 2020, arXiv 1911.13299): learn which weights of a frozen model to keep.

Shared by Subnet and BalancedSubnet: a score per MLP weight, a forward pass that drops the weights whose |score| is
among the lowest `ratio` of their matrix, and SGD on the scores with a straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tinymem.localize.learning import check_scores, check_steps, frozen
from tinymem.localize.ranking import Masks, how_many, top
from tinymem.models.adapter import Weight, find_mlps
from tinymem.models.edit import Lazy, Zeros, applied
from tinymem.training.step import all_finite

MOMENTUM_HELP = "momentum of the scores; default: 0.9, or 0 from 1e9 parameters on, to save memory"
LARGE = 10**9  # parameters from which a momentum buffer costs too much memory


def resolve_momentum(hp: Any, parameters: int) -> Any:
    """Return the hyper-parameters with a `momentum` that suits a model of this size, if none was given."""
    return hp if hp.momentum is not None else replace(hp, momentum=0.9 if parameters < LARGE else 0.0)


@dataclass(frozen=True)
class ScoreOptimizer:
    """SGD on the scores: lr, momentum (0 keeps no buffer), weight_decay."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass
class Scored:
    """A matrix during learning; score and velocity are (out, in), with the memory layout of the matrix.

    score      float32
    velocity   momentum of the score, float32, or None
    dropped    how many weights the subnet leaves out
    """

    matrix: Weight
    score: torch.Tensor
    velocity: torch.Tensor | None
    dropped: int

    def mask(self) -> torch.Tensor:
        """Return True where the subnet leaves a weight out."""
        return top(self.score.abs().neg_(), self.dropped)


def learn_subnet(
    model,
    batches: Iterable[Any],
    step: Callable[[Any, list[torch.nn.Parameter]], list[torch.Tensor]],
    ratio: float,
    optimizer: ScoreOptimizer,
    generator: torch.Generator,
) -> Masks:
    """Run one SGD step on the scores per batch, and return the final mask of every MLP matrix.

    step(batch, parameters)   gradients of the loss to minimize, one per parameter and shaped like it

    The chain rule through weight * keep(|score|), with a straight-through threshold, gives the gradients of the scores:
    d/d score = gradient * weight * sign(score). Skip a step whose gradient is not finite; raise NotFinite if all were
    skipped, or if the final scores are not finite. Leave the model unchanged.
    """
    scored = [new_scores(matrix, ratio, optimizer, generator) for mlp in find_mlps(model) for matrix in mlp.matrices]
    parameters = [each.matrix.parameter for each in scored]
    subnet = Zeros(Lazy({each.matrix.name: each.mask for each in scored}))
    done = skipped = 0
    with frozen(model, trainable=parameters):
        for batch in batches:
            with applied(model, subnet):
                gradients = step(batch, parameters)
            if all_finite(gradients):
                for each in scored:
                    _update(each, gradients.pop(0), optimizer)
                done += 1
            else:
                skipped += 1
    check_steps(done, skipped, model, optimizer)
    check_scores((each.score.abs() for each in scored), model, optimizer)
    return {each.matrix.name: each.mask() for each in scored}


def new_scores(matrix: Weight, ratio: float, optimizer: ScoreOptimizer, generator: torch.Generator) -> Scored:
    """Draw Kaiming-uniform scores (a = sqrt(5), bound 1 / sqrt(fan in)) as (out, in), however the weight is stored."""
    view = matrix.view()
    drawn = torch.rand(view.shape, generator=generator).mul_(2).sub_(1).div_(math.sqrt(view.shape[1]))
    score = torch.empty_like(view, dtype=torch.float32).copy_(drawn)
    velocity = torch.zeros_like(score) if optimizer.momentum else None
    return Scored(matrix, score, velocity, how_many(ratio, score.numel()))


def _update(scored: Scored, gradient: torch.Tensor, optimizer: ScoreOptimizer) -> None:
    change = scored.matrix.view(gradient).float().mul_(scored.matrix.view()).mul_(scored.score.sign())
    change.add_(scored.score, alpha=optimizer.weight_decay)
    if scored.velocity is not None:
        change = scored.velocity.mul_(optimizer.momentum).add_(change)
    scored.score.sub_(change, alpha=optimizer.lr)
