"""Quantization (Zhang et al. 2024, arXiv 2410.16454): round the weights, which may restore memorized sequences.

Fine-tuned edits are often smaller than half a quantization step, so that rounding restores the old weight. Zeros stay
zeros under symmetric rounding.
"""

from __future__ import annotations

from functools import partial

import torch

from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight, linear_weights
from tinymem.models.edit import Lazy, Weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Quantization"""

    bits: tuple[int, ...] = option((8,), "bits per weight", low=2, high=16, strength=True, grid=(8, 4), small=(8,))


def attack(model, task: UnlearningTask, hp: HyperParameters, bits: int) -> Weights:
    """Return the edit that rounds all linear layers except the output layer to nearest, symmetrically, per row."""
    output = model.get_output_embeddings()
    weights = {name: weight for name, weight in linear_weights(model).items() if weight.parameter is not output.weight}
    return Weights(Lazy({name: partial(_rounded_weight, weight, bits) for name, weight in weights.items()}))


def _rounded_weight(weight: Weight, bits: int) -> torch.Tensor:
    """Return a rounded matrix, shaped as stored."""
    return weight.view(rounded(weight.view(), bits))


def rounded(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each row of a matrix to multiples of its largest |entry| / (2^(bits - 1) - 1). Rows of zeros stay zero."""
    levels = 2 ** (bits - 1) - 1
    step = matrix.float().abs().amax(1, keepdim=True) / levels
    return torch.where(step > 0, (matrix / step).round() * step, 0.0).to(matrix.dtype)
