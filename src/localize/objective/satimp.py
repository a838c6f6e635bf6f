"""SatImp (Yang et al. 2025, arXiv 2505.11953): ascent on tokens weighted by saturation and importance."""

from __future__ import annotations

from tinymem.localize.objective.terms import RetainSettings, learning_rate, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """SatImp"""

    lr: float = learning_rate(3e-4)
    beta_1: float = option(5.0, "b1: power of the token's probability p in its weight", above=0.0)
    beta_2: float = option(1.0, "b2: power of 1 - p in its weight", low=0.0)
    forget_weight: float = option(0.1, "weight of the forget loss", low=0.0, grid=(0.1, 1.0))


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return -p^b1 (1 - p)^b2 times the loss of every forget token, weights held fixed, and values of retain tokens."""
    losses = forget.losses(model)
    shares = (-losses.detach()).exp()
    return with_retain(hp, model, reference, retain, -(shares**hp.beta_1) * (1 - shares) ** hp.beta_2 * losses)
