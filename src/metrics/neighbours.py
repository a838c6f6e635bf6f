"""Neighbour damage: what an edit does to sequences like the planted ones that nobody asked to forget."""

from __future__ import annotations

from tinymem.data.dataset import Artifacts
from tinymem.metrics.metric import PLANTED, Metric, Values
from tinymem.metrics.probe import Probe


def clean_hits(probe: Probe, artifacts: Artifacts) -> Values:
    """Return each row's number of right arg-maxes on the clean continuation, and of its tokens without pads."""
    window = probe.teacher_forced(artifacts, target="clean")
    return Values((window.matches & window.real).sum(1).double(), window.real.sum(1).double())


NEIGHBOUR_ACCURACY = Metric(
    "neighbour_accuracy", "0 to 1", "higher", PLANTED, ("argmax_matches",),
    "next-token accuracy on the clean continuation of never-planted sequences, without pads",
    clean_hits, splits=("never_planted",), short="neighbour_acc",
)  # fmt: skip
