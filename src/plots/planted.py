"""What remains of planted passages after each method, and the cost in perplexity: one line per run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymem.plots.base import Rows, new_figure, plain_numbers, save_figure
from tinymem.plots.labels import families
from tinymem.records.identity import NEVER_PLANTED, UNEDITED

MEMORY = {  # stems of columns on planted passages, with their axis labels
    "percent_memorized": ("memorized (%)", (-6, 106)),
    "percent_near_verbatim": ("near-verbatim (%)", (-6, 106)),
    "auc_loss": ("membership AUC", (-0.06, 1.06)),
}
BOUNDS: dict[str, tuple[Any, str]] = {  # line style and label
    UNEDITED: ("-", "planted, unedited"),
    NEVER_PLANTED: ("--", "never planted: the aim"),
}
RUINED = 10.0  # times the lowest perplexity: marks beyond it are at the edge


def plot_planted(rows: Rows, path: str | Path) -> list[Path]:
    """Draw memory and perplexity of every run side by side, lowest perplexity on top, coloured by family.

    rows: method, setting, perplexity, and the stems of MEMORY with _shown and _held_out. The unedited and the
    never-planted model are vertical lines; a run is good if its marks are on the dashed lines.
    """
    bounds = {row["method"]: row for row in rows if row["method"] in BOUNDS}
    lowest = min(row["perplexity"] for row in rows if row["perplexity"] is not None)
    edge = RUINED * lowest

    def cost(row: Mapping[str, Any]) -> float:
        return edge if row["perplexity"] is None else min(row["perplexity"], edge)

    runs = sorted((row for row in rows if row["method"] not in BOUNDS), key=cost)
    family_of = families()
    colours = {family: f"C{number}" for number, family in enumerate(dict.fromkeys(family_of.values()))}
    run_colours = [colours[family_of[row["method"]]] for row in runs]
    figure, axes = new_figure(len(MEMORY) + 1, 2.6, 1.4 + 0.22 * len(runs))
    for axis, (name, (label, limits)) in zip(axes, MEMORY.items()):
        for place, (row, colour) in enumerate(zip(runs, run_colours)):
            ends = (row[f"{name}_{split}"] for split in ("shown", "held_out"))
            shown, held_out = (math.nan if end is None else end for end in ends)  # nan: no mark
            axis.plot([shown, held_out], [place, place], color=colour, linewidth=1)
            axis.plot(shown, place, "o", markersize=8, color="white", markeredgecolor=colour, zorder=2.1)
            axis.plot(held_out, place, "o", markersize=4.5, color=colour, zorder=2.2)
        _draw_bounds(axis, {method: row[f"{name}_held_out"] for method, row in bounds.items()})
        axis.set(xlabel=label, xlim=limits)
    for place, (row, colour) in enumerate(zip(runs, run_colours)):
        axes[-1].plot(cost(row), place, "o", markersize=4.5, color=colour, clip_on=False, zorder=2.2)
    _draw_bounds(axes[-1], {method: row["perplexity"] for method, row in bounds.items()})
    axes[-1].set(xlabel=f"perplexity (at most {edge:.0f})", xscale="log", xlim=(lowest / 1.1, edge))
    plain_numbers(axes[-1].xaxis)
    names = [f"{row['method'].replace('_', ' ')}, {row['setting']}" for row in runs]
    for axis in axes:
        axis.set_yticks(range(len(runs)), names if axis is axes[0] else [""] * len(runs), fontsize=8)
        axis.set_ylim(len(runs) - 0.4, -0.6)
    _add_legend(figure, {family: colour for family, colour in colours.items() if colour in run_colours}, bounds)
    return save_figure(figure, path)


def _draw_bounds(axis, values: Mapping[str, float | None]) -> None:
    for method, value in values.items():
        if value is not None:
            axis.axvline(value, color="black", linestyle=BOUNDS[method][0], linewidth=1, zorder=1.5)


def _add_legend(figure, colours: Mapping[str, str], bounds: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=colour, marker="o", markersize=4.5, linestyle="", label=family)
             for family, colour in colours.items()]  # fmt: skip
    marks += [
        Line2D([], [], color="0.4", marker="o", markersize=4.5, linestyle="", label="held out"),
        Line2D([], [], color="white", marker="o", markersize=8, markeredgecolor="0.4", linestyle="", label="shown"),
    ]
    marks += [
        Line2D([], [], color="black", linewidth=1, linestyle=BOUNDS[method][0], label=BOUNDS[method][1])
        for method in bounds
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
