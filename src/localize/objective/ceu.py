"""CE-U (Yang 2025, arXiv 2503.01224): cross-entropy to the model's own distribution without the true token.

Like UNDIAL with an unbounded b, but the targets come from the model as it is now. The first counted token of a row is
left out.
"""

from __future__ import annotations

import torch

from tinymem.localize.objective.terms import (
    RetainSettings,
    cross_entropy,
    learning_rate,
    no_retain_weight,
    one_hot,
    with_retain,
)
from tinymem.options import settings


@settings
class HyperParameters(RetainSettings):
    """CE-U"""

    lr: float = learning_rate()
    retain_weight: float = no_retain_weight()


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the mean cross-entropy of each forget row, without its first token."""
    logits = forget.logits(model)
    targets = logits.detach().masked_fill(one_hot(forget, logits.shape[-1]), -torch.inf).softmax(-1)
    counted = forget.mask & (forget.mask.cumsum(1) > 1)
    values = (cross_entropy(targets, logits) * counted).sum(1) / counted.sum(1).clamp(min=1)
    return with_retain(hp, model, reference, retain, values)
