"""How a regularizer takes part in a training step. The loop knows nothing else about it.

Order within a step of one batch: `positions` once; per microbatch `before_forward`, forward pass, `token_losses`,
backward pass; then `after_backward` once, and the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def _nothing(*ignored: torch.Tensor) -> None:
    return None


def _all_that_count(tokens: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    return loss_mask


def _unchanged(losses: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    return losses


@dataclass(frozen=True)
class Regularizer:
    """What a regularizer does, all parts optional. B sequences in the batch, R in a microbatch, T tokens in each.

    positions(tokens, loss_mask)     tokens (B, T) and which predictions count, bool (B, T - 1) -> those that shall count;
                                   the loss is the mean over them
    before_forward(ids)            the example ids (R,) of the sequences that go through the model next
    token_losses(losses, loss_mask)  float32 losses (R, T - 1) in nats and which of them count -> losses to learn from
    after_backward()               may add the gradient of a penalty to the parameters' .grad, may update the state
    state                          tensors that are updated in place, and only in after_backward; saved in every
                                   checkpoint and put back on resuming
    """

    positions: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _all_that_count
    before_forward: Callable[[torch.Tensor], None] = _nothing
    token_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _unchanged
    after_backward: Callable[[], None] = _nothing
    state: dict[str, torch.Tensor] = field(default_factory=dict)
