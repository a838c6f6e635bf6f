"""Verdicts on the best run of a method: it has no effect, or it has forgotten more than was ever learned."""

from __future__ import annotations

from tinymem.records.choose import POINTS, Configuration, without_effect
from tinymem.records.identity import UNEDITED
from tinymem.records.interval import mean_and_interval

NO_EFFECT, OVER_FORGOTTEN = "no effect", "over-forgotten"
MARGIN = 1.1  # times the twin's loss: a higher loss of planted sequences shows that they were unlearned
LOSSES = ("planted_loss_held_out", "planted_loss_shown", "planted_loss_train")  # the first known one counts


def verdict(configuration: Configuration) -> str | None:
    """Return NO_EFFECT, OVER_FORGOTTEN, or None for neither.

    Over-forgotten: on average over the seeds, planted sequences are memorized at least a point less than by the
    never-planted twin, or their loss is more than MARGIN times the twin's. Without a record of the twin, nothing is
    over-forgotten.
    """
    if configuration.method == UNEDITED:
        return None
    if without_effect(configuration):
        return NO_EFFECT
    known = next((name for name in LOSSES if _both(configuration, name)), None)
    memorized = _both(configuration, "percent_memorized_train")
    losses = _both(configuration, known) if known else None
    less = memorized is not None and memorized[0] <= memorized[1] - POINTS
    higher = losses is not None and losses[0] > MARGIN * losses[1]
    return OVER_FORGOTTEN if less or higher else None


def _both(configuration: Configuration, name: str) -> tuple[float, float] | None:
    """Return the mean of a result, and of the twins' results; None if a run or its twin lacks it."""
    pairs = [(run.row.get(name), (run.twin or {}).get(name)) for run in configuration.runs]
    if any(value is None for pair in pairs for value in pair):
        return None
    ours, twins = zip(*pairs)
    return mean_and_interval(ours)[0], mean_and_interval(twins)[0]
