"""Durable-agg (Zhang et al. 2022, Neurotoxin, arXiv 2206.10341; the study, section 4.3.2): Durable, ranked over all
parameters of the model at once.

Embeddings, attention and layer norms take part in the ranking but are never touched: only the MLP weights and biases
within the top ratio are zeroed, so the share of zeroed weights is smaller than the ratio.
"""

from __future__ import annotations

import torch

from tinymem.localize.ranking import Masks, WeightScores, how_many, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.durable import gradient_magnitudes
from tinymem.models.adapter import MLP, find_mlps, mlp_weights
from tinymem.options import settings


@settings
class HyperParameters:
    """Durable-agg"""

    ratio: tuple[float, ...] = weight_ratio((0.01,), "share of all parameters to rank first")


def score(model, task: UnlearningTask, hp: HyperParameters) -> WeightScores:
    """Return |gradient of the forget set's mean token loss| of every parameter, tied ones once. Leave the model
    unchanged. MLP weights are shaped (out, in), all others as stored.
    """
    weights = mlp_weights(find_mlps(model))
    names, parameters = zip(*model.named_parameters())
    magnitudes = gradient_magnitudes(model, task, parameters)
    return {
        name: weights[name].view(magnitude) if name in weights else magnitude
        for name, magnitude in zip(names, magnitudes)
    }


def drop(mlps: list[MLP], scores: WeightScores, ratio: float) -> Masks:
    """Return the MLP entries among the top ratio * parameters of the whole model. Ties go by tensor name, then by
    index, so that scores from a file give the same masks as scores just computed.
    """
    ordered = {name: scores[name] for name in sorted(scores)}
    count = how_many(ratio, sum(tensor.numel() for tensor in ordered.values()))
    threshold = kth_largest(list(ordered.values()), count) if count else torch.inf
    left = count - sum(int((tensor > threshold).sum()) for tensor in ordered.values())
    masks, mlp_names = {}, mlp_weights(mlps)
    for name, tensor in ordered.items():
        flat = tensor.flatten()
        ties = (flat == threshold).nonzero().flatten()[:left]
        left -= len(ties)
        if name in mlp_names:
            chosen = flat > threshold
            chosen[ties] = True
            masks[name] = chosen.view(tensor.shape)
    return masks


def kth_largest(tensors: list[torch.Tensor], k: int) -> float:
    """Return the exact k-th largest entry of all tensors together. Entries: float32, not negative, no NaN; k >= 1.

    Such floats have the same order as their bits read as int32. Bisecting the bits takes about 30 counts over the
    tensors and no memory, while sorting or joining them would need a copy as large as the model.
    """
    low, high = 0, max(int(tensor.view(torch.int32).max()) for tensor in tensors)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((tensor.view(torch.int32) >= middle).count_nonzero()) for tensor in tensors) >= k:
            low = middle
        else:
            high = middle - 1
    return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()
