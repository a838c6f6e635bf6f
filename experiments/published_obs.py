"""Second-Order Unlearning as the study's code computes it: its gradients pile up, and its inverse is in float32.

The inverse of each block of the Fisher matrix is updated one gradient at a time (Singh and Alistarh 2020, WoodFisher,
arXiv 2004.14340), where the library adds up first and inverts once, in float64. Gradients that pile up become so large
that in float32 a block may end without numbers. Its weights then rank first, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from tinymem.localize.learning import frozen, gradients, mean_weights
from tinymem.localize.ranking import WeightScores
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight import obs
from tinymem.models.adapter import find_mlps, mlp_weights

BATCH = 64  # sequences per gradient that piles up


def score(model, task: UnlearningTask, hp: obs.HyperParameters, *, piled: bool, dtype: torch.dtype) -> WeightScores:
    """Return w^2 / (2 [F^-1]_ii) for every MLP weight and bias, as `obs.score` does. Leave the model unchanged.

    piled   gradients of batches, see `piled_up`, instead of one per sequence
    dtype   of F^-1

    Blocks are of weights as they are stored. What is not a number is above all that is one, as for torch.topk.
    """
    weights = mlp_weights(find_mlps(model))
    names = [name for name, _ in model.named_parameters()]
    batches = task.forget.planted.split(BATCH) if piled else obs.chosen_sequences(task, hp).split(1)
    with frozen(model, own := [weight.parameter for weight in weights.values()]):
        found = [gradients(model, task, batch, mean_weights(task, batch), own) for batch in batches]
    scores = {}
    for (name, weight), each in zip(weights.items(), zip(*found, strict=True), strict=True):
        count = hp.num_grads if piled else len(each)
        seen = piled_up(each, names.index(name), count) if piled else each
        diagonal = inverse_diagonal(seen, count, hp.block_size, hp.damp, dtype).view(weight.parameter.shape)
        cost = weight.parameter.detach().to(dtype) ** 2 / (2 * diagonal)
        highest = torch.finfo(torch.float32).max
        scores[name] = weight.view(cost.nan_to_num(nan=highest, posinf=highest).clamp(max=highest).float())
    return scores


def piled_up(batches: Sequence[torch.Tensor], before: int, count: int) -> Iterator[torch.Tensor]:
    """Yield `count` gradients of a parameter as the study's code takes them: batch after batch, none ever zeroed.

    batches: the gradient of each batch. before: parameters whose turn was earlier; the passes of each, `count` too, and
    a first one over all batches are in the sum already.
    """
    total = sum(batches[1:], batches[0]) + before * sum(
        (batches[step % len(batches)] for step in range(1, count)), batches[0]
    )
    for step in range(count):
        total = total + batches[step % len(batches)]
        yield total


def inverse_diagonal(
    seen: Iterable[torch.Tensor], count: int, block_size: int, damp: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return the diagonal of (damp * I + 1 / count * sum of g g')^-1 in blocks, flat, from updates of rank one.

    seen: the gradients g of one parameter, in turn.
    """
    inverse = torch.empty(0)
    size = 0
    for gradient in seen:
        size = gradient.numel()
        blocks = torch.nn.functional.pad(gradient.flatten().to(dtype), (0, -size % block_size)).view(-1, block_size)
        if not len(inverse):
            inverse = (torch.eye(block_size, dtype=dtype, device=gradient.device) / damp).repeat(len(blocks), 1, 1)
        moved = torch.einsum("bij,bj->bi", inverse, blocks)
        moved = moved / (count + (blocks * moved).sum(1, keepdim=True)).sqrt()
        inverse.baddbmm_(moved[:, :, None], moved[:, None, :], alpha=-1)
    return inverse.diagonal(dim1=1, dim2=2).flatten()[:size]
