"""Next-token losses and arg-maxes of a causal LM: the one place where its output layer is run."""

from __future__ import annotations

import torch


def token_losses(model, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each next token in nats, float32 (rows, length - 1). Differentiable.

    tokens: integer (rows, length), any integer type, on any device.
    """
    tokens = tokens.to(model.device).long()
    logits = model(tokens, use_cache=False).logits[:, :-1]
    return _cross_entropy(logits, tokens[:, 1:])


def losses_and_hits(model, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token losses, and whether the arg-max is the next token: float32 and bool, both (rows, length - 1)."""
    tokens = tokens.to(model.device).long()
    logits = model(tokens, use_cache=False).logits[:, :-1]
    return _cross_entropy(logits, tokens[:, 1:]), logits.argmax(-1) == tokens[:, 1:]


def greedy_hits(model, tokens: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Whether greedy decoding from each prefix gives the next token, for positions first <= position < last.

    Runs the output layer on those positions only. Returns bool (rows, last - first): entry j is about token first + j.
    """
    tokens = tokens.to(model.device).long()
    kept = torch.arange(first - 1, last - 1, device=tokens.device)
    logits = model(tokens[:, : last - 1], use_cache=False, logits_to_keep=kept).logits
    return logits.argmax(-1) == tokens[:, first:last]


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def counted(tokens: torch.Tensor, ignored_token: int | None) -> torch.Tensor:
    """Which of the predicted positions count in a mean, bool (rows, length - 1)."""
    targets = tokens[:, 1:]
    return torch.ones_like(targets, dtype=torch.bool) if ignored_token is None else targets != ignored_token
