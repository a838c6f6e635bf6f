"""Recovery under attacks: what a model gives back, between its never-planted twin and its unedited original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinymem.attacks.recovery import ON_SHOWN, Attacked, Curve, twin_of
from tinymem.plots.base import common_legend, new_grid, save_figure, set_title
from tinymem.plots.labels import file_name, label_of
from tinymem.records.identity import NEVER_PLANTED, UNEDITED

COLUMNS = 4


def plot_recovery(folder: str | Path, split: str, models: Sequence[Attacked]) -> list[Path]:
    """Draw one figure per attacked method and write FOLDER/recovery/METHOD_STRENGTH_DIGEST.png and .pdf.

    split, models: as from `tinymem.attacks.recovery.attacked_models`.
    """
    bounds = [model for model in models if model.record["kind"] in (UNEDITED, NEVER_PLANTED)]
    written = []
    for model in models:
        if model not in bounds:
            figure = draw_recovery(split, model, bounds)
            written += save_figure(figure, Path(folder) / "recovery" / file_name(model.record))
    return written


def draw_recovery(split: str, model: Attacked, bounds: Sequence[Attacked]):
    """Draw one panel per attack: percent memorized against its strength. Return the figure.

    The twin is a grey and the unedited model a black line; dots at the left are what came out without an attack. A memory
    is only hidden where the model's line rises above its twin's. The area in a title is the curve's mean (`Curve.area`).
    """
    rows, twin = -(-len(model.curves) // COLUMNS), twin_of(bounds)
    figure, grid = new_grid(rows, min(COLUMNS, max(2, len(model.curves))), 2.6, 2.3)
    for axis, curve in zip(grid.flat, model.curves):
        for other in (*bounds, model):
            if found := other.curve(curve):
                _draw(axis, found, other)
        axis.set(ylim=(-4, 104), xlabel=(curve.strength or "").replace("_", " "))
        of = " (shown)" if curve.attack in ON_SHOWN and split != "shown" else ""
        bound = twin.curve(curve) if twin else None
        beside = f", twin {bound.area:.0f}" if bound else ""
        set_title(axis, f"{curve.attack.replace('_', ' ')}{of}, area {curve.area:.0f}{beside}")
    for axis in list(grid.flat)[len(model.curves) :]:
        axis.set_visible(False)
    for row in grid:
        row[0].set_ylabel(f"% of {split.replace('_', '-')}\nsequences recovered", fontsize=8)
    common_legend(figure, grid.flat)
    worst = model.worst_excess(twin)
    note = f": up to {worst[0]:+.1f} points against the twin ({worst[1].replace('_', ' ')})" if worst else ""
    figure.suptitle(label_of(model.record) + note, fontsize=10)
    return figure


def _draw(axis, curve: Curve, model: Attacked) -> None:
    """Draw a curve; its strengths are evenly spaced, behind a place for no attack."""
    styles: dict[str, dict[str, Any]] = {
        UNEDITED: dict(color="black", lw=2.2, ls="-", label="unedited"),
        NEVER_PLANTED: dict(color="0.6", lw=2.2, ls="--", label="never-planted twin"),
    }
    style = styles.get(model.record["kind"], dict(color="C3", lw=1.5, ls="-", marker="o", markersize=4, label="edited"))
    places, values = range(len(curve.points) + 1), [curve.before, *(value for _, value in curve.points)]
    axis.plot(places, values, **style)
    axis.set_xticks(places, ["none", *(f"{strength:g}" for strength, _ in curve.points)], fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
