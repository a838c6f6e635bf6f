"""From scores to masks, and from masks to zeros: the only code that changes weights.

Masks: state-dict key -> bool tensor in (out, in) orientation (biases: (out,)); True marks an entry to set to zero.
High scores are dropped first; ties go to the lower index, so that every run drops the same entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinymem.models.adapter import MLP, Weight, find_mlps

Masks = dict[str, "torch.Tensor"]
Scores = dict[str, "torch.Tensor"]


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Marks the `count` highest entries, ties by lowest index. NaN ranks lowest. bool, shaped like `scores`."""
    if count <= 0 or count >= scores.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    flat = scores.detach().flatten()
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))  # half precision has no kthvalue
    flat = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if flat.is_cuda:  # there kthvalue has one block of threads for all of a tensor
        threshold = flat.topk(count, sorted=False).values.min()
    else:
        threshold = flat.kthvalue(flat.numel() - count + 1).values
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def how_many(ratio: float, total: int) -> int:
    """Entries dropped for a ratio: rounded to the nearest, so that 0.1 of 30 is 3 in spite of binary fractions."""
    return int(ratio * total + 0.5)


def neuron_masks(mlps: list[MLP], scores: list[torch.Tensor], ratio: float) -> Masks:
    """Drops the top ratio * inner_dim neurons of every layer: their rows of W_in and entries of b_in.

    scores: one tensor (inner_dim,) a layer.
    """
    masks = {}
    for mlp, layer_scores in zip(mlps, scores, strict=True):
        dropped = top(layer_scores, how_many(ratio, mlp.inner_dim))
        for matrix in mlp.inputs:  # a matrix that holds gate and up has twice the rows
            masks[matrix.name] = dropped.repeat(len(matrix.view()) // mlp.inner_dim)[:, None].expand(
                matrix.view().shape
            )
        masks |= {bias.name: dropped.repeat(len(bias.view()) // mlp.inner_dim) for bias in mlp.biases}
    return masks


def weight_masks(mlps: list[MLP], scores: Scores, ratio: float) -> Masks:
    """Drops the top `ratio` of every MLP tensor that has scores, each by itself. scores: (out, in) per tensor."""
    return {name: top(tensor, how_many(ratio, tensor.numel())) for name, tensor in scores.items()}


def mlp_weights(mlps: list[MLP]) -> dict[str, Weight]:
    """Every MLP weight and bias by its state-dict key."""
    return {weight.name: weight for mlp in mlps for weight in mlp.weights}


def apply_masks(model, masks: Masks) -> None:
    """Sets the masked entries to zero, in place. KeyError, and nothing changed, for a name that is no MLP weight."""
    weights = mlp_weights(find_mlps(model))
    for weight, mask in [(weights[name], mask) for name, mask in masks.items()]:
        weight.view().masked_fill_(mask.to(weight.parameter.device), 0)


@contextmanager
def edited(model, masks: Masks) -> Iterator:
    """The model with the masked entries set to zero, put back as it was on leaving. No second copy of the model."""
    weights = mlp_weights(find_mlps(model))
    removed = {name: weights[name].view()[mask.to(weights[name].parameter.device)] for name, mask in masks.items()}
    try:
        apply_masks(model, masks)
        yield model
    finally:
        for name, values in removed.items():
            weights[name].view()[masks[name].to(values.device)] = values


def share_dropped(model, masks: Masks) -> float:
    """Share of all the model's parameters that the masks set to zero, 0 to 1."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(p.numel() for p in model.parameters())
