"""How far an edit moved the predictions on typical text: what accuracy hides on a task that the model knows well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinymem.metrics.metric import TYPICAL, Metric, Values, percent

if TYPE_CHECKING:
    from tinymem.metrics.probe import Probe


def divergence(probe: Probe, name: str) -> Values:
    """Return KL(before || after) per token."""
    return _values(probe, name, "kl")


def flips(probe: Probe, name: str) -> Values:
    """Return whether the likeliest token differs from the one before the edit, per position."""
    return _values(probe, name, "flips")


def ndcg(probe: Probe, name: str) -> Values:
    """Return nDCG of the ten likeliest tokens, graded 10 to 1 by their ranks before the edit (2510.24256, metrics)."""
    return _values(probe, name, "gains")


def _values(probe: Probe, name: str, field: str) -> Values:
    drift = probe.drift(name)
    return Values(getattr(drift, field), drift.positions)


KL = Metric("kl", "nats per token", "lower", TYPICAL, ("before",),
            "KL divergence from the predictions before the edit to those after it", divergence)  # fmt: skip
FLIP_RATE = Metric("flip_rate", "%", "lower", TYPICAL, ("before",),
                   "positions whose likeliest token differs from the one before the edit", flips, percent)  # fmt: skip
NDCG = Metric("ndcg", "0 to 1", "higher", TYPICAL, ("before",),
              "nDCG@10 of the likeliest tokens against those before the edit", ndcg)  # fmt: skip
