"""Weighted gradient ascent (Wang et al. 2025, arXiv 2502.19301): a token that is forgotten stops pushing."""

from __future__ import annotations

from tinymem.localize.objective.terms import RetainSettings, learning_rate, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """Weighted gradient ascent"""

    lr: float = learning_rate()
    beta: float = option(1.0, "b: power of the token's probability in its weight", above=0.0, grid=(0.5, 1.0))


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return -p^b times the loss of every forget token, with p^b held fixed, and the values of retain tokens."""
    losses = forget.losses(model)
    weights = (-hp.beta * losses.detach()).exp()
    return with_retain(hp, model, reference, retain, -weights * losses)
