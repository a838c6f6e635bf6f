"""Gradient ascent with KL (Maini et al. 2024, TOFU, arXiv 2401.06121, section 4).

Ascent on the forget set; on the retain set the model's distributions stay close to those before the edit.
"""

from __future__ import annotations

from tinymem.localize.objective.terms import RetainSettings, learning_rate, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """Gradient ascent with KL"""

    lr: float = learning_rate()
    retain_weight: float = option(1.0, "weight of the retain loss", low=0.0, grid=(1.0, 5.0))
    retain_loss: str = option(
        "kl", "loss on the retain set: its token loss, or KL(before || after)", choices=("nll", "kl")
    )


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the negative loss of every forget token, and the divergence at every retain token."""
    return with_retain(hp, model, reference, retain, -forget.losses(model))
