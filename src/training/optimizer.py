"""AdamW, with float32 master copies of half-precision weights: it updates the copies, the model holds them rounded.

Near 0.1, neighboring bfloat16 numbers are 0.0005 apart, so every step of Adam at learning rate 1e-5 would be rounded
away. In a master copy such steps add up (Micikevicius et al. 2018, arXiv 1710.03740).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tinymem.training.settings import TrainingSettings

BETAS = (0.9, 0.98)


def new_optimizer(model, settings: TrainingSettings) -> torch.optim.AdamW:
    """Return AdamW with weight decay on every trained parameter, as in the study (section 3.1).

    Weights in half precision get float32 master copies.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return adamw(trained, lr=settings.lr, betas=BETAS, weight_decay=settings.l2_reg, fused=True)


def adamw(parameters: Iterable[torch.nn.Parameter], **settings: Any) -> torch.optim.AdamW:
    """Return AdamW over the parameters, or over master copies of those in half precision.

    The gradients of half-precision parameters become float32, since sums over microbatches would lose small terms,
    until `tinymem.models.trainable.frozen` restores their type. After a step, their `.grad` is None.
    """
    trained = list(parameters)
    masters = {p: p.detach().float() for p in trained if torch.promote_types(p.dtype, torch.float32) != p.dtype}
    groups: dict[bool, list[torch.Tensor]] = {}  # the tensors of a fused step must be all sharded or all whole
    for p in trained:
        groups.setdefault(hasattr(p, "full_tensor"), []).append(masters.get(p, p))
    optimizer = torch.optim.AdamW([{"params": group} for group in groups.values()], **settings)
    if not masters:
        return optimizer
    for parameter in masters:
        parameter.grad, parameter.grad_dtype = None, torch.float32

    def hand_over(*_: object) -> None:
        for parameter, master in masters.items():
            master.grad, parameter.grad = parameter.grad, None

    @torch.no_grad()
    def round_off(*_: object) -> None:
        for parameter, master in masters.items():
            parameter.copy_(master)
            master.grad = None

    optimizer.register_step_pre_hook(hand_over)
    optimizer.register_step_post_hook(round_off)
    optimizer.masters = masters  # type: ignore[attr-defined]  # for `masters_of`
    return optimizer


def masters_of(optimizer: torch.optim.Optimizer) -> Mapping[torch.nn.Parameter, torch.Tensor]:
    """Return the master copy of each half-precision parameter; empty if there are none."""
    return getattr(optimizer, "masters", {})
