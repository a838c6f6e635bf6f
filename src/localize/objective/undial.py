"""UNDIAL (Dong et al. 2024, arXiv 2402.10052): self-distillation to distributions in which each true token is demoted.

Every token has a bounded target, so no loss can blow up, and no retain set is needed.
"""

from __future__ import annotations

from tinymem.localize.objective.terms import (
    RetainSettings,
    cross_entropy,
    learning_rate,
    no_retain_weight,
    one_hot,
    with_retain,
)
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """UNDIAL"""

    lr: float = learning_rate()
    beta: float = option(10.0, "b: by how much the true token's logit is lowered", above=0.0, grid=(3.0, 10.0, 30.0))
    retain_weight: float = no_retain_weight()


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the cross-entropy to softmax(logits before - b at the true token), of every forget token."""
    before = reference.logits(forget)
    targets = (before - hp.beta * one_hot(forget, before.shape[-1])).softmax(-1)
    return with_retain(hp, model, reference, retain, cross_entropy(targets, forget.logits(model)))
