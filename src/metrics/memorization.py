"""Exact (n, k) memorization in one forward pass (the study, definition 2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tinymem.data.dataset import Artifacts
from tinymem.metrics import metric
from tinymem.metrics.metric import PLANTED, Metric, as_values
from tinymem.metrics.probe import OnRows, Probe, silent


def memorized_rows(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return whether the model continues the clean twin's prompt with the planted continuation."""
    return exact(probe, artifacts)


def recovered_rows(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return whether the model gives the clean twin's own continuation; no value for rows equal to their twin."""
    recovered = exact(probe, artifacts, target="clean")
    return recovered.masked_fill((artifacts.planted == artifacts.clean).all(1), torch.nan)


def exact(
    probe: Probe, artifacts: Artifacts, target: str = "planted", loss_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return 1.0 where greedy decoding, prompted with the clean twin, gives every counted token of the target.

    Greedy decoding reproduces a target exactly if and only if every teacher-forced arg-max on prompt + target equals
    the target, so one forward pass replaces the generation loop: same answer in the same precision.

    target: "planted" or "clean". loss_mask: bool (A, k), the tokens that must come out, for rows whose ends have
    moved; default: the target's. Return float64 (A,), NaN where no token counts.
    """
    window = probe.teacher_forced(artifacts, target=target)
    return all_right(window.matches, window.loss_mask if loss_mask is None else loss_mask)


def all_right(matches: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Return 1.0 for rows whose counted tokens all match, float64 (A,), NaN where none counts. Both: bool (A, k)."""
    return (matches | ~loss_mask).all(1).double().masked_fill(~loss_mask.any(1), torch.nan)


def memorized(
    model, artifacts: Artifacts, continuation: int, batch_size: int = 64, ignored_token: int | None = None,
    on_rows: OnRows = silent,
) -> torch.Tensor:  # fmt: skip
    """Return which planted continuations greedy decoding gives after the clean twin's prompt, bool (A,).

    continuation: k, or fewer tokens if the row ends first. ignored_token: a token id that need not match.
    on_rows: as in `tinymem.metrics.evaluate.measure`.
    """
    return memorized_rows(Probe(model, continuation, batch_size, ignored_token, on_rows=on_rows), artifacts) == 1


def percent(flags: torch.Tensor) -> float | None:
    """Return the share of true flags in percent; None for no flags (0/0 is not 0)."""
    return metric.percent(as_values(flags))


PERCENT_MEMORIZED = Metric(
    "percent_memorized", "%", "lower", PLANTED, ("argmax_matches",),
    "sequences whose planted continuation the model gives exactly",
    memorized_rows, metric.percent, headline=True, short="mem",
)  # fmt: skip
PERCENT_CLEAN_RECOVERY = Metric(
    "percent_clean_recovery", "%", "higher", PLANTED, ("argmax_matches",),
    "sequences that continue as their clean twin",
    recovered_rows, metric.percent, splits=("train",), short="clean_recovery", known_when="low",
)  # fmt: skip


def judged_split(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the split by which forgetting is judged: held_out if any results have values of it, else shown."""
    column = PERCENT_MEMORIZED.column("held_out")
    return "held_out" if any(values.get(column) is not None for values in results) else "shown"
