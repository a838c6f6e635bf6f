"""Gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121, section 4).

Ascent on the forget set, with descent on the retain set. Nothing bounds the ascent.
"""

from __future__ import annotations

from tinymem.localize.objective.terms import RetainSettings, learning_rate, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """Gradient difference"""

    lr: float = learning_rate()
    retain_weight: float = option(1.0, "weight of the retain loss", low=0.0, grid=(1.0, 5.0))


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the negative loss of every forget token, and the loss of every retain token."""
    return with_retain(hp, model, reference, retain, -forget.losses(model))
