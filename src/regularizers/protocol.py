"""How a regularizer takes part in a training step. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def _no_preparation(ids: torch.Tensor) -> None:
    return None


def _unchanged(losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return losses


@dataclass(frozen=True)
class Regularizer:
    """What a regularizer does, all parts optional.

    before_forward(ids)      called before every forward pass with the example ids (rows,) of its sequences
    token_losses(losses, tokens)   float32 losses (rows, T - 1) of tokens (rows, T) -> the losses to average instead
    penalty()                a scalar added to the loss once a step
    state                    tensors that it updates in place; saved in every checkpoint and put back on resuming
    """

    before_forward: Callable[[torch.Tensor], None] = _no_preparation
    token_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _unchanged
    penalty: Callable[[], torch.Tensor] | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
