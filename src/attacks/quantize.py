"""Quantization (Zhang et al. 2024, arXiv 2410.16454): round the weights, which may restore memorized sequences.

Fine-tuned edits are often smaller than half a quantization step, so that rounding restores the old weight. Zeros stay
zeros under symmetric rounding.
"""

from __future__ import annotations

import torch

from tinymem.attacks.weights import changed
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Quantization"""

    bits: tuple[int, ...] = option((8, 4), "bits per weight", low=2, high=16, strength=True, small=(4,))


def attack(model, task: UnlearningTask, hp: HyperParameters, bits: int) -> Weights:
    """Return the edit that rounds all linear layers except the output layer to nearest, symmetrically, per row."""
    return changed(model, lambda name, matrix: rounded(matrix, bits))


def rounded(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each row of a matrix to multiples of its largest |entry| / (2^(bits - 1) - 1). Rows of zeros stay zero."""
    levels = 2 ** (bits - 1) - 1
    step = matrix.float().abs().amax(1, keepdim=True) / levels
    return torch.where(step > 0, (matrix / step).round() * step, 0.0).to(matrix.dtype)
