"""Loss, perplexity and accuracy on clean sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tinymem.models.losses import counted, losses_and_hits


@dataclass(frozen=True)
class Quality:
    """Sums per sequence, R rows, so that any mean can be formed afterwards.

    loss, hits, tokens    over the positions that count: summed nats, correct arg-maxes, positions; each (R,)
    hits_no_pad, tokens_no_pad    the same without pad positions
    """

    loss: torch.Tensor
    hits: torch.Tensor
    tokens: torch.Tensor
    hits_no_pad: torch.Tensor
    tokens_no_pad: torch.Tensor

    @property
    def mean_loss(self) -> float:
        """Mean token negative log-likelihood in nats; lower is better."""
        return (self.loss.sum() / self.tokens.sum()).item()

    @property
    def accuracy(self) -> float:
        """Teacher-forced next-token accuracy, 0 to 1; higher is better."""
        return (self.hits.sum() / self.tokens.sum()).item()

    @property
    def accuracy_no_pad(self) -> float:
        """Teacher-forced next-token accuracy over positions whose target is not a pad, 0 to 1; higher is better."""
        return (self.hits_no_pad.sum() / self.tokens_no_pad.sum()).item()

    @property
    def perplexity(self) -> float:
        """exp(mean token loss); lower is better."""
        return math.exp(self.mean_loss) if not self.mean_loss > 700 else math.inf  # exp(710) overflows a double

    def perplexity_batch_mean(self, batch_size: int) -> float:
        """Mean over batches of exp(batch loss), the study's published figure; depends on the batch size."""
        losses = [
            loss.sum() / tokens.sum()
            for loss, tokens in zip(self.loss.split(batch_size), self.tokens.split(batch_size))
        ]
        return torch.stack(losses).clamp(max=700.0).exp().mean().item()


def quality(model, tokens: torch.Tensor, pad: int, pad_counts: bool, batch_size: int = 64) -> Quality:
    """Measures a model on sequences (R, T) of token ids, in batches of `batch_size` (which changes nothing)."""
    parts = []
    for batch in tokens.split(batch_size):
        with torch.inference_mode():
            losses, hits = (values.cpu().double() for values in losses_and_hits(model, batch))
        real = counted(batch, pad).double()
        mask = torch.ones_like(real) if pad_counts else real
        sums = (losses * mask, hits * mask, mask, hits * real, real)
        parts.append(torch.stack([values.sum(1) for values in sums]))
    return Quality(*torch.cat(parts, dim=1))
