"""Obliviate (Russinovich and Salem 2025, arXiv 2502.15010): break the memory at every few tokens and keep the others.

At a chosen token, the target is the distribution before the edit without the true token; elsewhere it is that
distribution itself. Both are reduced to their most likely tokens.
"""

from __future__ import annotations

import torch

from tinymem.localize.objective.terms import RetainSettings, learning_rate, no_retain_weight, one_hot, with_retain
from tinymem.options import option, settings
from tinymem.training.step import Side


@settings
class HyperParameters(RetainSettings):
    """Obliviate"""

    lr: float = learning_rate()
    start: int = option(0, "index of the first chosen token among the counted tokens of a row", low=0)
    stride: int = option(8, "tokens from one choice to the next", low=1, grid=(2, 4, 8))
    span: int = option(1, "tokens per choice", low=1)
    top_k: int = option(8, "most likely tokens to keep in a target", low=1)
    retain_weight: float = no_retain_weight()


def loss(hp: HyperParameters, model, reference, forget, retain):
    """Return KL(target || model) of every forget token."""
    before, after = reference.logits(forget), forget.logits(model).log_softmax(-1)
    banned = one_hot(forget, before.shape[-1]) & chosen(hp, forget)[..., None]
    best = before.masked_fill(banned, -torch.inf).topk(min(hp.top_k, before.shape[-1]), dim=-1)
    logs = best.values.log_softmax(-1)
    difference = (logs - after.gather(-1, best.indices)).masked_fill(logs.isneginf(), 0.0)
    return with_retain(hp, model, reference, retain, (logs.exp() * difference).sum(-1))


def chosen(hp: HyperParameters, side: Side) -> torch.Tensor:
    """Return the tokens at which the memory is broken, bool (R, T - 1)."""
    place = side.mask.cumsum(1) - 1 - hp.start
    return side.mask & (place >= 0) & (place % hp.stride < hp.span)
