"""(n, p)-discoverable extraction: the share of sequences that n samples extract, before and after editing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinymem.metrics.evaluate import saved_values
from tinymem.metrics.extraction import CHANCE, PERCENT_EXTRACTABLE, curve
from tinymem.plots.base import STYLES, common_legend, new_figure, save_figure
from tinymem.plots.labels import label_of
from tinymem.plots.unlearning import method_style
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.records.record import read_values, record_path
from tinymem.records.table import flat_row, method_of

SAMPLES = sorted({round(10 ** (step / 20)) for step in range(121)})  # 1 to 1e6
SPLITS = {"held_out": "held-out", "shown": "shown"}  # the first split with values is drawn


@dataclass(frozen=True)
class Extraction:
    """The curve of one run: `shares` (0 to 1) at each n of SAMPLES, at p = 0.5."""

    method: str
    label: str
    shares: Sequence[float]


def plot_extraction(folder: str | Path, records: Sequence[Mapping[str, Any]], path: str | Path) -> list[Path]:
    """Draw the curves of the records and write the figure; no file if no record has the values.

    folder: the folder of the records and their values.
    """
    split, curves = extraction_curves(folder, records)
    return save_figure(draw_extraction(split, curves), path) if curves else []


def extraction_curves(folder: str | Path, records: Sequence[Mapping[str, Any]]) -> tuple[str, list[Extraction]]:
    """Return the split (held_out if it has values, otherwise shown) and the curve of every record that has values.

    Curves are computed from the log p_z of every sequence, the values of `percent_extractable_SPLIT`. Attacks are left
    out.
    """
    records = [record for record in records if not record.get("attack")]
    values = [read_values(record_path(folder, record)) for record in records]
    for split in SPLITS:
        found = [(record, _log_p(tensors, split)) for record, tensors in zip(records, values)]
        curves = [
            Extraction(method_of(flat_row(record)), label_of(record), [share or 0.0 for share in curve(log_p, SAMPLES)])
            for record, log_p in found
            if len(log_p)
        ]
        if curves:
            return split, curves
    return "", []


def _log_p(tensors: Mapping[str, torch.Tensor], split: str) -> torch.Tensor:
    """Return the log p_z of the sequences that have one, float64 (rows,); may be empty."""
    values = saved_values(tensors, PERCENT_EXTRACTABLE.column(split))
    return torch.zeros(0) if values is None else values.sums[values.weights > 0]


def draw_extraction(split: str, curves: Sequence[Extraction]):
    """Draw the share of sequences against the number of samples, one line per run. Return the figure.

    The unedited model is a thick black line, the never-planted twin a thick grey one. Where a line coincides with the
    twin's, the memory is gone. Lines of a method share a colour; lines of a colour differ in line style and marker.
    """
    figure, (axis,) = new_figure(1, 7.4, 4.2)
    seen: dict[str, int] = {}
    for each in curves:
        colour = method_style(each.method)["edgecolor"]
        number = seen[colour] = seen.get(colour, -1) + 1
        axis.plot(
            SAMPLES, [100 * share for share in each.shares], label=each.label, ds="steps-post", **_style(each, number)
        )
    axis.set(xscale="log", xlim=(SAMPLES[0], SAMPLES[-1]), ylim=(-3, 103), xlabel="samples n")
    axis.set_ylabel(f"% of {SPLITS[split]} sequences extractable\nwith probability {CHANCE:g}")
    common_legend(figure, [axis])
    return figure


def _style(each: Extraction, number: int) -> dict[str, Any]:
    if each.method in (UNEDITED, NEVER_PLANTED):
        twin = each.method == NEVER_PLANTED
        return dict(color="0.55" if twin else "black", lw=2.6, ls="--" if twin else "-", zorder=1.5 if twin else 1)
    marker, line = STYLES[number % len(STYLES)]
    colour = method_style(each.method)["edgecolor"]
    return dict(color=colour, lw=1.2, ls=line, marker=marker, markersize=3.5, markevery=(4 + 3 * number, 15), zorder=2)
