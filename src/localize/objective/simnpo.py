"""SimNPO (Fan et al. 2024, arXiv 2410.07163): negative preference optimization of the mean token loss, no reference."""

from __future__ import annotations

import torch

from tinymem.localize.objective.terms import RetainSettings, learning_rate, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """SimNPO"""

    lr: float = learning_rate(3e-4)
    beta: float = option(4.5, "b: how soon a row stops pushing; lower is later", above=0.0, grid=(2.5, 4.5))
    delta: float = option(0.0, "d: nats to subtract from the mean token loss", low=0.0)
    forget_weight: float = option(0.125, "weight of the forget loss", low=0.0)


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return -(2 / b) log sigmoid(b (L - d)) of each forget row, and the values of retain tokens."""
    means = forget.row_means(forget.losses(model))
    values = -2 / hp.beta * torch.nn.functional.logsigmoid(hp.beta * (means - hp.delta))
    return with_retain(hp, model, reference, retain, values)
