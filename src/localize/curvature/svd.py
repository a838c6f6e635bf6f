"""SVD edit: keep the largest singular values of an MLP matrix. It uses no data at all.

This is the control for `kfac`: it shows what the curvature basis adds to a plain low-rank approximation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tinymem.errors import NotFinite
from tinymem.localize.curvature.layers import IDLE, LayerSettings, chosen_weights, rho_option
from tinymem.localize.task import UnlearningTask
from tinymem.models.edit import Weights
from tinymem.options import settings
from tinymem.training.step import all_finite


@settings
class HyperParameters(LayerSettings):
    """SVD edit"""

    rho: tuple[float, ...] = rho_option("singular values")


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the edited matrices at each rho; none at 1. Memory: a copy of the chosen matrices, one decomposition."""
    weights = chosen_weights(model, hp)
    for rho in hp.rho:
        yield rho, Weights({} if rho == IDLE else {w.name: w.view(low_rank(w.view(), rho)) for w in weights})


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a layer that the model does not have."""
    chosen_weights(model, hp)


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return no passes. Raise UserError for a layer that the model does not have."""
    check(model, task, hp)
    return 0, 0


def low_rank(matrix: torch.Tensor, rho: float) -> torch.Tensor:
    """Return the best approximation of a matrix (out, in) of rank floor(rho * min(out, in)), of its type.

    Raise NotFinite for a matrix that is not finite.
    """
    if not all_finite([matrix]):
        raise NotFinite("its weights are not finite numbers; the model is damaged or diverged")
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int(rho * len(values) + 1e-9)  # 0.29 * 100 is 28.999...
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).to(matrix.dtype)
