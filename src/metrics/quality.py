"""Loss, perplexity and accuracy on clean sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tinymem.metrics.metric import ALL_TESTS, EACH_TEST, OVERFLOW, Metric, Values, exponential, mean
from tinymem.models.losses import loss_mask, losses_and_hits

if TYPE_CHECKING:
    from tinymem.metrics.probe import Probe

Texts = tuple["torch.Tensor", ...]  # test sets, each (rows, T) token ids


@dataclass(frozen=True)
class Quality:
    """Sums per sequence, R rows, so that any mean can be formed afterwards.

    loss, hits, tokens    sums over counted positions: nats, correct arg-maxes, positions; each (R,)
    hits_no_pad, tokens_no_pad    the same without pad positions
    """

    loss: torch.Tensor
    hits: torch.Tensor
    tokens: torch.Tensor
    hits_no_pad: torch.Tensor
    tokens_no_pad: torch.Tensor

    @property
    def mean_loss(self) -> float:
        """The mean negative log-likelihood per token in nats; NaN for no tokens."""
        return (self.loss.sum() / self.tokens.sum()).item()


def quality(
    model, tokens: torch.Tensor, pad: int | None, pad_counts: bool, batch_size: int = 64,
    on_rows: Callable[[int, int], object] = lambda done, total: None,
) -> Quality:  # fmt: skip
    """Measure a model on sequences (R, T) of token ids, in batches of `batch_size` (which does not change results).

    on_rows(done, total): called at the start and after every batch.
    """
    parts, done = [torch.zeros(5, 0, dtype=torch.float64)], 0
    on_rows(done, len(tokens))
    for batch in tokens.split(batch_size) if len(tokens) else ():
        with torch.inference_mode():
            losses, hits = (values.cpu().double() for values in losses_and_hits(model, batch))
        real = loss_mask(batch, pad).double()
        mask = torch.ones_like(real) if pad_counts else real
        sums = (losses * mask, hits * mask, mask, hits * real, real)
        parts.append(torch.stack([values.sum(1) for values in sums]))
        on_rows(done := done + len(batch), len(tokens))
    return Quality(*torch.cat(parts, dim=1))


def accuracy(probe: Probe, texts: Texts) -> Values:
    """Return correct arg-maxes and positions of each sequence; a test set is a group."""
    found = _pooled(probe, texts)
    return Values(found.hits, found.tokens, _test_set(texts))


def accuracy_no_pad(probe: Probe, texts: Texts) -> Values:
    """Return `accuracy` without positions whose target is a pad."""
    found = _pooled(probe, texts)
    return Values(found.hits_no_pad, found.tokens_no_pad, _test_set(texts))


def loss(probe: Probe, texts: Texts) -> Values:
    """Return the summed nats and positions of each sequence."""
    found = _pooled(probe, texts)
    return Values(found.loss, found.tokens)


def loss_by_batch(probe: Probe, texts: Texts) -> Values:
    """Return `loss` with batches of the study's size as groups."""
    found = loss(probe, texts)
    return replace(found, groups=torch.arange(len(found.sums)) // probe.study_batch_size)


def perplexity(values: Values) -> float | None:
    """Return exp(mean token loss)."""
    nats = mean(values)
    return None if nats is None else exponential(nats)


def mean_perplexity(values: Values) -> float | None:
    """Return the mean over groups of exp(mean token loss of the group), infinity on overflow."""
    nats = values.ratios()
    if not len(nats):
        return None
    return nats.exp().mean().item() if nats.max() <= OVERFLOW else math.inf


def _pooled(probe: Probe, texts: Texts) -> Quality:
    found = [probe.text_sums(tokens) for tokens in texts]
    return Quality(*(torch.cat([getattr(sums, field) for sums in found]) for field in Quality.__annotations__))


def _test_set(texts: Texts) -> torch.Tensor | None:
    """Return the number of each row's test set; None for a single one."""
    if len(texts) == 1:
        return None
    return torch.cat([torch.full((len(tokens),), number) for number, tokens in enumerate(texts)])


SUMS = ("text_sums",)
ACCURACY = Metric(
    "accuracy", "0 to 1", "higher", EACH_TEST, SUMS,
    "teacher-forced next-token accuracy on the test set NAME; pads of numbers count",
    accuracy, short="acc",
)  # fmt: skip
LOSS = Metric("loss", "nats per token", "lower", EACH_TEST, SUMS, "mean token loss on the test set NAME", loss)
MEAN_TEST_ACCURACY = Metric(
    "mean_test_accuracy", "0 to 1", "higher", ALL_TESTS, SUMS, "mean of accuracy_NAME over the test sets",
    accuracy, headline=True, short="mean_test_acc",
)  # fmt: skip
MEAN_TEST_ACCURACY_NO_PAD = Metric(
    "mean_test_accuracy_no_pad", "0 to 1", "higher", ALL_TESTS, SUMS, "mean_test_accuracy without pads as targets",
    accuracy_no_pad, short="mean_test_acc_no_pad",
)  # fmt: skip
PERPLEXITY = Metric(
    "perplexity", "", "lower", ALL_TESTS, SUMS, "exp(mean token loss) over all test sets",
    loss, perplexity, headline=True, short="ppl",
)  # fmt: skip
PERPLEXITY_BATCH_MEAN = Metric(
    "perplexity_batch_mean", "", "lower", ALL_TESTS, SUMS,
    "mean over batches of exp(batch loss), the study's published figure; depends on its batch size",
    loss_by_batch, mean_perplexity, short="ppl_batch_mean",
)  # fmt: skip
