"""CE-U (Yang 2025, arXiv 2503.01224): cross-entropy to the model's own distribution without the true token.

Like UNDIAL with an unbounded b, but the targets come from the model as it is now. The first counted token of a row is
left out.
"""

from __future__ import annotations

import torch

from tinymem.localize.objective.terms import RetainSettings, cross_entropy, one_hot, with_retain
from tinymem.options import option, settings


@settings
class HyperParameters(RetainSettings):
    """CE-U"""

    lr: float = option(1e-4, "learning rate of AdamW", above=0.0, high=1e3, grid=(3e-5, 1e-4, 3e-4, 1e-3))
    retain_weight: float = option(0.0, "weight of the retain loss; 0: no retain rows", low=0.0)


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return the mean cross-entropy of each forget row, without its first token."""
    logits = forget.logits(model)
    targets = logits.detach().masked_fill(one_hot(forget, logits.shape[-1]), -torch.inf).softmax(-1)
    counted = forget.mask & (forget.mask.cumsum(1) > 1)
    values = (cross_entropy(targets, logits) * counted).sum(1) / counted.sum(1).clamp(min=1)
    return with_retain(hp, model, reference, retain, values)
