"""Hard Concrete (Louizos et al. 2018, arXiv 1712.01312, section 2; for memorization Chang et al. 2024, 2311.09060).

A random gate per neuron multiplies its activation: a binary concrete variable, stretched beyond [0, 1] and clipped,
so that it is exactly 0 or 1 with some probability and still has a gradient. A penalty on the expected share of open
gates closes them, while the loss on the forget set keeps open those that the memorized sequences need.
score = sigmoid(log alpha): the neurons with the most open gates are dropped.
"""

from __future__ import annotations

import math

import torch

from tinymem.localize.neuron.gates import joined, learn_gates
from tinymem.localize.neuron.gates import steps as steps  # part of the method contract
from tinymem.localize.ranking import neuron_ratio
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps
from tinymem.options import option, settings

BETA = 2 / 3  # temperature
GAMMA, ZETA = -0.1, 1.1  # the stretched interval
INITIAL_STD = 0.01  # of log alpha, whose mean is 0


ALIAS = "hc"  # the study's flag


@settings
class HyperParameters:
    """Hard Concrete"""

    ratio: tuple[float, ...] = neuron_ratio()
    epochs: int = option(
        20, "most passes over the forget set, each rounded up to whole batches", low=1, grid=(1, 10, 20), small=(10,)
    )
    batch_size: int = option(32, "sequences per step", low=1)
    lr: float = option(0.1, "learning rate of Adam on log alpha", above=0.0, high=1e3)
    lambda_l1: float = option(1000.0, "weight of the expected share of open gates in the loss", low=0.0)
    stop_loss: float = option(0.1, "stop once the expected share open is below this; 0 never stops", low=0.0, high=1.0)


def score(model, task: UnlearningTask, hp: HyperParameters) -> list[torch.Tensor]:
    """Return sigmoid(log alpha) of every neuron, float32 (inner_dim,) per layer. Leave the model unchanged."""
    mlps, generator = find_mlps(model), task.generator()
    log_alphas = [
        (INITIAL_STD * torch.randn(mlp.inner_dim, generator=generator)).to(mlp.output.parameter.device).requires_grad_()
        for mlp in mlps
    ]

    def sampled() -> list[torch.Tensor]:
        return [sample_gates(log_alpha, generator) for log_alpha in log_alphas]

    def openness() -> torch.Tensor:
        return expected_openness(joined(log_alphas)).mean()

    learn_gates(model, task, mlps, log_alphas, sampled, openness, hp, generator)
    return [log_alpha.detach().sigmoid() for log_alpha in log_alphas]


def sample_gates(log_alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one draw of every gate, in [0, 1], shaped like `log_alpha` and differentiable in it (equations 10 and 11).

    The generator is on the CPU, so that every device draws the same gates.
    """
    noise = torch.rand(log_alpha.shape, generator=generator).logit(eps=1e-6).to(log_alpha.device)
    concrete = ((noise + log_alpha) / BETA).sigmoid()
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def expected_openness(log_alpha: torch.Tensor) -> torch.Tensor:
    """Return the probability that a gate is not 0, shaped like `log_alpha` (equation 12)."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()
