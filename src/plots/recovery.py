"""Recovery under attacks: what a model gives back, compared with its never-planted twin and its unedited original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinymem.attacks.recovery import ON_SHOWN, Attacked, Curve, find_twin_model, judged_by, weakest_first
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

    The twin is a grey line and the unedited model a black one; dots at the left are the results without an attack.
    Where the model's line rises above the twin's, the memory is only hidden. In a title, the area is the curve's mean
    (`Curve.area`), and R its ratio of speeds (`Curve.speed_ratio`). The last panel, if records hold utility, is the way
    back to the unedited model.
    """
    twin, panels = find_twin_model(bounds), len(model.curves) + bool(model.back)
    figure, grid = new_grid(-(-panels // COLUMNS), min(COLUMNS, max(2, panels)), 2.6, 2.3)
    for axis, curve in zip(grid.flat, model.curves):
        lines = [(found, other) for other in (*bounds, model) if (found := other.curve(curve))]
        strengths = weakest_first(curve.attack, (strength for found, _ in lines for strength, _ in found.points))
        for found, other in lines:
            _draw(axis, found, other, strengths)
        labels = [f"{strength:g}" for strength in strengths] if curve.strength else ["attacked"]
        axis.set_xticks(range(len(strengths) + 1), ["none", *labels], fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set(ylim=(-4, 104), xlabel=(curve.strength or "").replace("_", " "))
        own_split = judged_by(curve.attack, split)
        of = "" if own_split == split else f" ({own_split})"
        set_title(axis, f"{curve.attack.replace('_', ' ')}{of}, area {curve.area:.0f}{_against(twin, curve)}")
    if model.back:
        _draw_way_back(grid.flat[len(model.curves)], [*bounds, model])
    for axis in list(grid.flat)[panels:]:
        axis.set_visible(False)
    for row in grid:
        row[0].set_ylabel(f"% of {split.replace('_', '-')}\nsequences recovered", fontsize=8)
    common_legend(figure, grid.flat)
    worst = model.worst_excess(twin)
    note = f": up to {worst[0]:+.1f} points against the twin ({worst[1].replace('_', ' ')})" if worst else ""
    figure.suptitle(label_of(model.record) + note, fontsize=10)
    return figure


def _against(twin: Attacked | None, curve: Curve) -> str:
    """Return the twin's area at the same strengths, for a title, and, where speed counts, the ratio of speeds."""
    of_twin = twin.curve(curve) if twin else None
    bound = of_twin.beside(curve) if of_twin else None
    ratio = curve.speed_ratio(of_twin) if curve.attack in ON_SHOWN else None
    return (f", twin {bound.area:.0f}" if bound else "") + ("" if ratio is None else f", R {ratio:.2f}")


def _style(model: Attacked) -> dict[str, Any]:
    """Return the style of a model's lines."""
    styles: dict[str, dict[str, Any]] = {
        UNEDITED: dict(color="black", lw=2.2, ls="-", label="unedited"),
        NEVER_PLANTED: dict(color="0.6", lw=2.2, ls="--", label="never-planted twin"),
    }
    return styles.get(model.record["kind"], dict(color="C3", lw=1.5, ls="-", marker="o", markersize=4, label="edited"))


def _draw(axis, curve: Curve, model: Attacked, strengths: Sequence[float]) -> None:
    """Draw a curve. strengths: those of all models, evenly spaced after a place for no attack."""
    places = [0, *(1 + strengths.index(strength) for strength, _ in curve.points)]
    axis.plot(places, [curve.before, *(value for _, value in curve.points)], **_style(model))


def _draw_way_back(axis, models: Sequence[Attacked]) -> None:
    """Draw memorization against loss of utility, from each model to the unedited one, and the compared loss.

    The axis is linear up to that loss and logarithmic beyond. Points whose loss is not finite are left out.
    """
    import numpy as np

    backs = [(model, model.back) for model in models if model.back]
    utility, notes = backs[0][1].utility, []
    limit = utility.limits[0]
    axis.set_xscale("symlog", linthresh=limit)
    for model, back in backs:
        style, points = _style(model), [point for point in back.points if math.isfinite(point.lost)]
        lost, memorized = [point.lost for point in points], [point.memorized for point in points]
        steps = np.linspace(0, len(points) - 1, 50 * len(points))  # the axis bends straight lines
        line = [np.interp(steps, range(len(points)), values) for values in (lost, memorized)]
        axis.plot(*line, **style | {"marker": ""})
        axis.plot(lost, memorized, ls="", color=style["color"], marker="o", markersize=4 if len(points) > 1 else 7)
        if model.record["kind"] != UNEDITED:
            notes.append(f"{'twin ' * (model.record['kind'] == NEVER_PLANTED)}{back.at_equal_utility:.0f}")
    axis.axvline(limit, color="0.3", lw=0.8, ls=":")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(labelsize=7)
    axis.set(ylim=(-4, 104), xlabel=f"{utility.unit} lost")
    set_title(axis, f"back to the original, at equal utility {', '.join(reversed(notes))}")
