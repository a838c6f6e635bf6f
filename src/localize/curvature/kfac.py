"""K-FAC edit (Merullo et al. 2025, arXiv 2510.24256): keep the directions of MLP matrices that typical text uses.

In the eigenbasis of the Kronecker factors, entry (i, j) of the rotated matrix has curvature lambda_i mu_j. Typical text
uses directions of high curvature; verbatim memories, according to the paper, lie in directions of low curvature. The
edit keeps the entries with the highest curvature, up to a share `rho` of their sum, and zeroes the rest. It needs
retain text but no forget set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

from tinymem.localize.curvature.factors import Basis, FactorSettings, bases, check_factors, factor_passes
from tinymem.localize.curvature.layers import IDLE, chosen_weights, rho_option
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import Weight
from tinymem.models.edit import Weights
from tinymem.options import option, settings


@settings
class HyperParameters(FactorSettings):
    """K-FAC edit"""

    rho: tuple[float, ...] = rho_option("curvature")
    cut: str = option(
        "mass",
        "what rho is a share of: the sum over all pairs of eigenvalues, or each factor's variance (an older form)",
        choices=("mass", "variance"),
    )


def run(model, task: UnlearningTask, hp: HyperParameters) -> Iterator[tuple[float, Weights]]:
    """Yield the edited matrices at each rho; none at 1.

    Memory: the bases of one group of matrices (`factors.HELD`) and a copy of the chosen matrices. Without a cache the
    bases of all chosen matrices are held if there are several strengths.
    """
    weights = chosen_weights(model, hp)
    find_bases = partial(bases, model, task, weights, hp)
    held = list(find_bases()) if task.cache is None and len(hp.rho) > 1 else None
    for rho in hp.rho:
        if rho == IDLE:
            yield rho, Weights({})
        else:
            yield rho, Weights(_edited(weights, find_bases() if held is None else held, rho, hp.cut))


def check(model, task: UnlearningTask, hp: HyperParameters) -> None:
    """Raise UserError for a layer that the model does not have, and for less text than its factors need."""
    check_factors(model, task, hp)


def passes(model, task: UnlearningTask, hp: HyperParameters) -> tuple[int, int]:
    """Return the passes over the text for the factors. Raise UserError as `check` does."""
    check(model, task, hp)
    return factor_passes(task, chosen_weights(model, hp), hp)


def _edited(weights: list[Weight], weight_bases: Iterable[tuple[Weight, Basis]], rho: float, cut: str) -> dict:
    """Return the edited matrices, with the shape and type of the stored ones."""
    edited = {weight.name: torch.empty_like(weight.parameter, requires_grad=False) for weight in weights}
    for weight, basis in weight_bases:
        weight.view(edited[weight.name]).copy_(kept_part(weight.view(), basis, rho, cut))
    return edited


def kept_part(matrix: torch.Tensor, basis: Basis, rho: float, cut: str = "mass") -> torch.Tensor:
    """Return what remains of a matrix (out, in), float32."""
    return basis.back(basis.rotate(matrix).mul_(kept_entries(basis, rho, cut)))


def kept_entries(basis: Basis, rho: float, cut: str = "mass") -> torch.Tensor:
    """Return which entries of the rotated matrix are kept, bool (out, in)."""
    if cut == "variance":
        return largest(basis.output_values, rho)[:, None] & largest(basis.input_values, rho)
    return largest(basis.output_values[:, None] * basis.input_values, rho)


def largest(values: torch.Tensor, rho: float) -> torch.Tensor:
    """Mark the fewest values that sum to at least a share rho of the total, bool: largest first, ties in order.

    values: >= 0, of any shape. If all are 0, all are kept.
    """
    ordered, places = values.flatten().sort(descending=True, stable=True)
    reached = ordered.cumsum(0, dtype=torch.float64)
    count = int((reached < rho * reached[-1]).sum()) + 1
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept.view(-1)[places[:count]] = True
    return kept | (reached[-1] == 0)
