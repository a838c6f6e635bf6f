"""Spectral norm regularization (Yoshida & Miyato 2017, arXiv 1705.10941)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinymem.models.trainable import gradient_of
from tinymem.options import option, settings
from tinymem.regularizers.protocol import Regularizer


@settings
class Settings:
    """Regularizer: spectral norm (Yoshida & Miyato 2017)"""

    spectral_reg: bool = option(False, "penalize the largest singular value of every attention and MLP matrix")
    lam: float = option(
        0.01, "adds lam / 2 times the sum of the singular values; the study has 0.001, 0.01, 0.1", low=0.0
    )


@dataclass(frozen=True)
class Matrices:
    """`count` adjacent matrices of one shape in a parameter: below each other, or next to each other.

    A matrix and its transpose have the same singular values, so matrices below each other are transposed: queries,
    keys, values and output projections of all heads get one shape, and so do both matrices of an MLP.
    """

    parameter: torch.nn.Parameter
    count: int
    below_each_other: bool

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor shaped like the parameter, as (count, width of the model, other dimension). Not a copy."""
        if self.below_each_other:
            return tensor.view(self.count, -1, tensor.shape[1]).mT
        return tensor.view(tensor.shape[0], self.count, -1).transpose(0, 1)


def weight_matrices(model) -> dict[str, list[Matrices]]:
    """Return the penalized matrices of a GPT-2, grouped by shape. Its Conv1D stores weights as (in, out)."""
    heads = model.config.n_head
    groups: dict[str, list[Matrices]] = {"attention": [], "mlp": []}
    for block in model.transformer.h:
        groups["attention"] += [
            Matrices(block.attn.c_attn.weight, 3 * heads, False),
            Matrices(block.attn.c_proj.weight, heads, True),
        ]
        groups["mlp"] += [Matrices(block.mlp.c_fc.weight, 1, False), Matrices(block.mlp.c_proj.weight, 1, True)]
    return groups


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Add the gradient of (lam / 2) * sum of largest singular values, one power-iteration step per training step.

    The penalty is linear in the singular values, as in the study; Yoshida & Miyato square them. With u and v held
    constant, the gradient of u' W v is the outer product of u and v, so no graph is needed.
    """
    groups, state = weight_matrices(model), {}
    generator = torch.Generator().manual_seed(seed)
    for name, parts in groups.items():
        shape = (sum(part.count for part in parts), model.config.n_embd, 1)
        start = torch.randn(shape, generator=generator).to(model.device, model.dtype)
        state[name] = torch.nn.functional.normalize(start, dim=1)

    @torch.no_grad()
    def after_backward() -> None:
        for name, parts in groups.items():
            u, v = power_step(torch.cat([part.view(part.parameter) for part in parts]), state[name])
            state[name].copy_(u)
            counts = [part.count for part in parts]
            for part, left, right in zip(parts, u.split(counts), v.split(counts)):
                part.view(gradient_of(part.parameter)).add_(left * right.mT, alpha=settings.lam / 2)

    return Regularizer(after_backward=after_backward, state=state)


def power_step(matrices: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do one power-iteration step: matrices (n, a, b), left vectors (n, a, 1) -> new left and right vectors (n, b, 1).

    All vectors have length 1. u' W v then estimates the largest singular value and never exceeds it.
    """
    v = torch.nn.functional.normalize(matrices.mT @ u, dim=1)
    return torch.nn.functional.normalize(matrices @ v, dim=1), v
