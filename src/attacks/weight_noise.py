"""Weight noise: add Gaussian noise to every linear layer. A memory that is only masked may come back.

What is random depends on the task's seed and a layer's name alone.
"""

from __future__ import annotations

import zlib

import torch

from tinymem.attacks.weights import changed
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Weight noise"""

    scale: tuple[float, ...] = option(
        (0.01, 0.03, 0.1), "standard deviation of the noise, relative to that of a layer's weights", above=0.0,
        strength=True, small=(0.1,),
    )  # fmt: skip


def attack(model, task: UnlearningTask, hp: HyperParameters, scale: float) -> Weights:
    """Return the edit that adds noise to all linear layers except the output layer."""
    return changed(model, lambda name, matrix: matrix + noise(matrix, scale, task.seed + zlib.crc32(name.encode())))


def noise(matrix: torch.Tensor, scale: float, seed: int) -> torch.Tensor:
    """Return normal noise for a matrix: its standard deviation is `scale` times the matrix's."""
    drawn = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed)).to(matrix.device)
    return (scale * matrix.float().std() * drawn).to(matrix.dtype)
