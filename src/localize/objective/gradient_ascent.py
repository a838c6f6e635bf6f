"""Gradient ascent (Jang et al. 2023, arXiv 2210.01504): raise the loss of the forget set.

Nothing bounds the ascent and nothing protects the retain set: too many steps ruin the model.
"""

from __future__ import annotations

from tinymem.localize.objective.terms import RetainSettings, learning_rate, no_retain_weight, with_retain
from tinymem.options import settings


@settings
class HyperParameters(RetainSettings):
    """Gradient ascent"""

    lr: float = learning_rate(grid=(1e-5, 3e-5, 1e-4, 3e-4))
    retain_weight: float = no_retain_weight()


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the negative loss of every forget token."""
    return with_retain(hp, model, reference, retain, -forget.losses(model))
