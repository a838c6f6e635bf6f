"""From scores to masks: the entries that a ranking drops at a ratio.

High scores are dropped first. Ties go to the lower index, so that every run drops the same entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tinymem.models.adapter import MLP
from tinymem.options import option

NEURON_RATIOS = (0.001, 0.01, 0.05, 0.1)  # the study's
WEIGHT_RATIOS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.3)

Masks = dict[str, "torch.Tensor"]
WeightScores = dict[str, "torch.Tensor"]  # one tensor (out, in) per MLP weight or bias
NeuronScores = Sequence["torch.Tensor"]  # one tensor (inner_dim,) per layer
Scores = WeightScores | NeuronScores


def neuron_ratio() -> Any:
    """Return the ratio option of neuron-level methods: the share of neurons to drop."""
    return weight_ratio(NEURON_RATIOS, "share of each layer's neurons to drop", NEURON_RATIOS)


def weight_ratio(
    default: tuple[float, ...], help: str, grid: tuple = WEIGHT_RATIOS, small: tuple = (0.01, 0.05)
) -> Any:
    """Return the option for the share of weights to drop. grid, small: as in `option`."""
    return option(default, help, above=0.0, below=1.0, strength=True, grid=grid, small=small)


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` highest entries, ties by lowest index. NaN ranks lowest. bool, shaped like `scores`."""
    if count <= 0 or count >= scores.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    flat = scores.detach().flatten()
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))  # half precision has no kthvalue
    flat = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if flat.is_cuda:  # on a GPU kthvalue uses one block of threads for a whole tensor
        threshold = flat.topk(count, sorted=False).values.min()
    else:
        threshold = flat.kthvalue(flat.numel() - count + 1).values
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def how_many(ratio: float, total: int) -> int:
    """Return how many entries a ratio drops, rounded to nearest, so that 0.1 of 30 is 3 despite binary fractions."""
    return int(ratio * total + 0.5)


def drop_top(mlps: list[MLP], scores: Scores, ratio: float) -> Masks:
    """Drop the top `ratio` of every layer's neurons or of every MLP tensor, depending on the scores."""
    return weight_masks(scores, ratio) if isinstance(scores, dict) else neuron_masks(mlps, scores, ratio)


def neuron_masks(mlps: list[MLP], scores: NeuronScores, ratio: float) -> Masks:
    """Drop the top ratio * inner_dim neurons of every layer: their rows of W_in and entries of b_in.

    scores: one tensor (inner_dim,) per layer.
    """
    masks = {}
    for mlp, layer_scores in zip(mlps, scores, strict=True):
        dropped = top(layer_scores, how_many(ratio, mlp.inner_dim))
        for matrix in mlp.inputs:  # a matrix that joins gate and up projections has twice the rows
            masks[matrix.name] = dropped.repeat(len(matrix.view()) // mlp.inner_dim)[:, None].expand(
                matrix.view().shape
            )
        masks |= {bias.name: dropped.repeat(len(bias.view()) // mlp.inner_dim) for bias in mlp.biases}
    return masks


def weight_masks(scores: WeightScores, ratio: float) -> Masks:
    """Drop the top `ratio` of each tensor that has scores, ranked separately."""
    return {name: top(tensor, how_many(ratio, tensor.numel())) for name, tensor in scores.items()}
