"""Magnitude pruning: set the smallest weights of every linear layer to zero, as is common before deployment."""

from __future__ import annotations

import torch

from tinymem.attacks.weights import changed
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Magnitude pruning"""

    share: tuple[float, ...] = option(
        (0.1, 0.3, 0.5), "share of a layer's non-zero weights to set to zero", above=0.0,
        below=1.0, strength=True, small=(0.3,),
    )  # fmt: skip


def attack(model, task: UnlearningTask, hp: HyperParameters, share: float) -> Weights:
    """Return the edit that prunes all linear layers except the output layer."""
    return changed(model, lambda name, matrix: pruned(matrix, share))


def pruned(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """Set the smallest of a matrix's non-zero entries to zero, this share of them: zeros of an edit do not count."""
    sizes = matrix.abs()
    count = round(share * int(sizes.count_nonzero()))
    smallest = sizes.masked_fill(sizes == 0, torch.inf).flatten().argsort(stable=True)[:count]
    return matrix.flatten().index_fill(0, smallest, 0.0).view(matrix.shape)
