"""The protocol of regularizers in a training step. The loop needs nothing else.

Order within a step of one batch: `positions` once; per microbatch `before_forward`, forward pass, `token_losses`,
backward pass; then `after_backward` once, and the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tinymem.models.edit import Zeros


def _nothing(*ignored: object) -> None:
    return None


def _all_that_count(tokens: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    return loss_mask


def _unchanged(losses: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    return losses


@dataclass(frozen=True)
class Regularizer:
    """The hooks of a regularizer, all optional. B sequences in the batch, R in a microbatch, T tokens in each.

    positions(tokens, loss_mask)     tokens (B, T) and loss mask, bool (B, T - 1) -> the loss mask to use;
                                     the loss is the mean over its tokens
    before_forward(ids)              the example ids (R,) of the sequences in the next forward pass
    token_losses(losses, loss_mask)  float32 losses (R, T - 1) in nats and their loss mask -> losses to learn from
    after_backward()                 may add the gradient of a penalty to the parameters' .grad, may update the state
    state                            tensors that are updated in place, and only in after_backward; saved in every
                                     checkpoint and restored on resuming
    deleted                          the weights that a checkpoint's model does not have; None: it has all
    write(folder)                    writes more files into a checkpoint's folder
    """

    positions: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _all_that_count
    before_forward: Callable[[torch.Tensor], None] = _nothing
    token_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _unchanged
    after_backward: Callable[[], None] = _nothing
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    deleted: Zeros | None = None
    write: Callable[[Path], None] = _nothing
