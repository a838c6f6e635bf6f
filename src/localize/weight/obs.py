"""Second-Order Unlearning (the study, section 4.3.2): Optimal Brain Surgeon applied to the forget set.

With F the empirical Fisher matrix of the forget loss in blocks of consecutive weights (Kurtic et al. 2022, The Optimal
BERT Surgeon, arXiv 2203.07259), removing weight i while its block adapts costs w_i^2 / (2 [F^-1]_ii). The weights with
the highest cost for the forget set are dropped first; each MLP matrix and bias is ranked separately.
"""

from __future__ import annotations

import torch

from tinymem.localize.ranking import WeightScores, weight_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.localize.weight.block_fisher import groups, inverse_fisher_diagonals
from tinymem.models.adapter import find_mlps, mlp_weights
from tinymem.options import option, settings


@settings
class HyperParameters:
    """Second-Order Unlearning"""

    ratio: tuple[float, ...] = weight_ratio((0.01,), "share of each MLP tensor to drop")
    num_grads: int = option(
        512, "forget sequences whose gradients make up the Fisher matrix; all if there are fewer", low=1
    )
    block_size: int = option(50, "consecutive weights per block of the Fisher matrix", low=1)
    damp: float = option(1e-7, "added to the diagonal of the Fisher matrix", above=0.0)


def score(model, task: UnlearningTask, hp: HyperParameters) -> WeightScores:
    """Return w^2 / (2 [F^-1]_ii) for every MLP weight and bias. Leave the model unchanged.

    With fewer forget sequences than num_grads each counts once: repeats would estimate the same mean.
    Raise UserError if the damping is too small for the gradients.
    """
    weights = mlp_weights(find_mlps(model))
    scores = {name: torch.empty_like(weight.view(), dtype=torch.float32) for name, weight in weights.items()}
    tokens = chosen_sequences(task, hp)
    diagonals = inverse_fisher_diagonals(model, task, tokens, list(weights.values()), hp.block_size, hp.damp)
    for weight, rows, diagonal in diagonals:
        scores[weight.name][rows] = (weight.view()[rows].double() ** 2 / (2 * diagonal)).float()
    return scores


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes: one over the chosen sequences for each part of F that fits into memory."""
    parts = groups(list(mlp_weights(find_mlps(model)).values()), hp.block_size)
    count = sum(1 for _ in parts) * task.passes(min(hp.num_grads, len(task.forget)))
    return count, count


def chosen_sequences(task: UnlearningTask, hp: HyperParameters) -> torch.Tensor:
    """Return the forget sequences that make up the Fisher matrix, (m, T): at most num_grads, in their order."""
    tokens = task.forget.planted
    return tokens[torch.randperm(len(tokens), generator=task.generator())[: hp.num_grads].sort().values]
