"""L1 penalty on every parameter; the study's flag --l1_reg."""

from __future__ import annotations

import torch

from tinymem.options import option, settings
from tinymem.regularizers.protocol import Regularizer


@settings
class Settings:
    """Regularizer: L1"""

    l1_reg: float = option(0.0, "adds this times the sum of |w| to the loss", low=0.0, alias=("--l1-reg",))


def build(model, settings: Settings, seed: int) -> Regularizer:
    """Add the gradient of l1_reg * sum |w| over all parameters of the model, biases included."""

    @torch.no_grad()
    def after_backward() -> None:
        for parameter in model.parameters():
            parameter.grad.add_(parameter.sign(), alpha=settings.l1_reg)

    return Regularizer(after_backward=after_backward)
