"""Exposure: how high a planted sequence ranks among others that could have been (Carlini et al., 1802.08232)."""

from __future__ import annotations

import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics.membership import LOGS, losses, placements
from tinymem.metrics.metric import MEMBERS, PLANTED, Metric, no_values
from tinymem.metrics.probe import Probe


def exposures(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return log2 |R| - log2 rank by loss, bits, float64 (A,); NaN without never-planted sequences.

    R is approximated by the n never-planted sequences of the same generator and the row itself, so log2(n + 1) is the
    maximum. Rank 1 is the lowest loss; rows with the same loss share the middle of their ranks.
    """
    if not probe.non_members:
        return no_values(artifacts)
    others = losses(probe, probe.non_members)
    count = int((~others.isnan()).sum())
    ranks = 1 + count * (1 - placements(losses(probe, artifacts), others))
    return torch.log2((count + 1) / ranks)


EXPOSURE = Metric(
    "exposure", "bits", "twin", PLANTED, LOGS,
    "log2(1 + never-planted sequences) - log2(rank of the sequence's loss among theirs); 1.44 where nothing "
    "was planted",
    exposures, splits=MEMBERS,
)  # fmt: skip
