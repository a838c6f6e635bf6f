"""Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868).

A bounded ascent: a row stops pushing once its summed loss has risen by a few times 1 / b. At a fixed b, that is only a
small rise per token in a long row, which greedy decoding may still recite. So b is scaled to the length by default.
"""

from __future__ import annotations

from tinymem.localize.objective.terms import PreferenceSettings, learning_rate, preference, rises, with_retain
from tinymem.options import settings


@settings
class HyperParameters(PreferenceSettings):
    """Negative preference optimization"""

    lr: float = learning_rate()


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return one value per forget row, and the loss or divergence of every retain token."""
    return with_retain(hp, model, reference, retain, preference(hp, forget, rises(model, reference, forget)))
