"""Random mask: zero weights of the MLPs at random. An anchor of the leaderboard: the effect of any such mask."""

from __future__ import annotations

import torch

from tinymem.localize.ranking import weight_ratio
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.options import settings


@settings
class HyperParameters:
    """Random mask"""

    ratio: tuple[float, ...] = weight_ratio((0.01, 0.05, 0.1), "share of each MLP tensor to drop")


def score(model, task, hp) -> dict[str, torch.Tensor]:
    """Return a random number in [0, 1) for every weight of the MLPs, by state-dict key."""
    generator = torch.Generator().manual_seed(task.seed)
    weights = mlp_weights(find_mlps(model))
    return {name: torch.rand(weight.view().shape, generator=generator) for name, weight in weights.items()}
