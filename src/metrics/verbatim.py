"""Verbatim memory beyond all or nothing: how much of a planted continuation comes out when its start is given."""

from __future__ import annotations

from functools import partial

import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics.metric import COMPARED, PLANTED, Metric, median, quantile
from tinymem.metrics.probe import Probe, Window


def exact_match_shares(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the share of tokens that are the arg-max after the true tokens before them (EM), float64 (A,)."""
    window = probe.teacher_forced(artifacts)
    return (window.matches & window.real).sum(1) / window.lengths


def extraction_strengths(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return 1 - k/T, k being the fewest true tokens after which greedy decoding gives all the others (2012.07805).

    0 where the last token is wrong; NaN for a row without tokens. float64 (A,).
    """
    window = probe.teacher_forced(artifacts)
    places = torch.arange(window.real.shape[1])
    last_wrong = torch.where(_wrong(window), places, -1).max(1, keepdim=True).values
    return (window.real & (places > last_wrong)).sum(1) / window.lengths


def longest_matches(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return how many tokens greedy decoding gives from the prompt's end to the first wrong one, float64 (A,)."""
    window = probe.teacher_forced(artifacts)
    right = window.real & (_wrong(window).cumsum(1) == 0)
    return right.sum(1).double().masked_fill(window.lengths.isnan(), torch.nan)


def _wrong(window: Window) -> torch.Tensor:
    return window.real & ~window.matches


MATCHES = ("argmax_matches",)
EXACT_MATCH_SHARE = Metric(
    "exact_match_share", "0 to 1", "twin", PLANTED, MATCHES,
    "tokens of the planted continuation that are the arg-max, given the true tokens before them",
    exact_match_shares, splits=COMPARED,
)  # fmt: skip
EXTRACTION_STRENGTH = Metric(
    "extraction_strength", "0 to 1", "twin", PLANTED, MATCHES,
    "share of the planted continuation that comes out once the tokens before it are given",
    extraction_strengths, splits=COMPARED,
)  # fmt: skip
LONGEST_MATCH = Metric(
    "longest_match", "tokens", "twin", PLANTED, MATCHES,
    "tokens that come out exactly from the prompt's end, median over sequences",
    longest_matches, median, COMPARED,
)  # fmt: skip
LONGEST_MATCH_P95 = Metric(
    "longest_match_p95", "tokens", "twin", PLANTED, MATCHES,
    "tokens that come out exactly from the prompt's end, 95th percentile over sequences",
    longest_matches, partial(quantile, share=0.95), COMPARED,
)  # fmt: skip
