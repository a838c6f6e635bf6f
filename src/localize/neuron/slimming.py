"""Slimming (Liu et al. 2017, arXiv 1708.06519, section 3; for memorization Chang et al. 2024, arXiv 2311.09060).

One coefficient in [0, 1] per neuron multiplies its activation. An L1 penalty pushes all coefficients down, while the
loss on the forget set holds up those that the memorized sequences need. score = coefficient: the highest are dropped.

The clip to [0, 1] passes gradients straight through: a coefficient outside the interval still receives the loss's
gradient and can return, and one below 0 keeps its rank, while a projection would create ties. With the study's
lambda = 1000 the penalty's gradient first exceeds the loss's, and Adam, which follows signs more than sizes, lowers
all coefficients by nearly lr per step. Training stops after about ten steps; the small differences are the ranking.
"""

from __future__ import annotations

import torch

from tinymem.localize.neuron.gates import joined, learn_gates
from tinymem.localize.neuron.gates import steps as steps  # part of the method contract
from tinymem.localize.ranking import neuron_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps
from tinymem.options import option, settings

ALIAS = "slim"  # the study's flag


@settings
class HyperParameters:
    """Slimming"""

    ratio: tuple[float, ...] = neuron_ratio()
    epochs: int = option(
        20, "most passes over the forget set, each rounded up to whole batches", low=1, grid=(1, 10, 20), small=(10,)
    )
    batch_size: int = option(32, "sequences per step", low=1)
    lr: float = option(0.1, "learning rate of Adam on the coefficients", above=0.0, high=1e3)
    lambda_l1: float = option(1000.0, "weight of the mean coefficient in the loss", low=0.0)
    stop_loss: float = option(0.1, "stop once the mean coefficient is below this; 0 never stops", low=0.0, high=1.0)


def score(model, task: UnlearningTask, hp: HyperParameters) -> list[torch.Tensor]:
    """Return the coefficient of every neuron, float32 (inner_dim,) per layer. Leave the model unchanged."""
    mlps = find_mlps(model)
    coefficients = [torch.ones(mlp.inner_dim, device=mlp.output.parameter.device, requires_grad=True) for mlp in mlps]

    def clipped() -> list[torch.Tensor]:
        return [coefficient + (coefficient.clamp(0, 1) - coefficient).detach() for coefficient in coefficients]

    def openness() -> torch.Tensor:
        return joined(coefficients).abs().mean()

    learn_gates(model, task, mlps, coefficients, clipped, openness, hp, task.generator())
    return [coefficient.detach() for coefficient in coefficients]
