"""Weight noise: add Gaussian noise to every linear layer. A memory that is only masked may come back.

Noise is drawn several times, and the results are averaged. A draw depends only on the task's seed, the layer's name and
the draw's number, so a twin gets the same noise.
"""

from __future__ import annotations

import zlib

import torch

from tinymem.attacks.weights import changed
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Draws, Weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Weight noise"""

    scale: tuple[float, ...] = option(
        (0.01, 0.03, 0.1), "standard deviation of the noise, relative to that of a layer's weights", above=0.0,
        strength=True, small=(0.1,),
    )  # fmt: skip
    draws: int = option(
        5, "independent draws of the noise; results are their means", low=1, high=1000, small=(1,), unrecorded=True,
        earlier=1,
    )  # fmt: skip


def attack(model, task: UnlearningTask, hp: HyperParameters, scale: float) -> Draws:
    """Return the edits, one per draw, that add noise to all linear layers except the output layer."""
    return Draws(tuple(_noisy(model, scale, task.seed, draw) for draw in range(hp.draws)))


def _noisy(model, scale: float, seed: int, draw: int) -> Weights:
    return changed(model, lambda name, matrix: matrix + noise(matrix, scale, seed + zlib.crc32(name.encode(), draw)))


def noise(matrix: torch.Tensor, scale: float, seed: int) -> torch.Tensor:
    """Return normal noise for a matrix: its standard deviation is `scale` times the matrix's."""
    drawn = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed)).to(matrix.device)
    return (scale * matrix.float().std() * drawn).to(matrix.dtype)
