"""Published numbers and ours, side by side, or the published point among all our runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinymem.plots.base import STYLES, common_legend, new_grid, save_figure, set_title

SOURCES = (("published", "white", 0.16), ("ours", "0.25", -0.16))  # name, colour of the mark, offset from the line


@dataclass(frozen=True)
class Panel:
    """One panel: title, label of its axis, and (label, published values, our values) for each line.

    There is one value per seed, drawn as a mark at their mean and a bar over their range. Without values there is no
    mark.
    """

    title: str
    axis: str
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]


def plot_side_by_side(panels: Sequence[Panel], path: str | Path) -> list[Path]:
    """Draw panels in rows of two. The panels of a row have the same lines; only the left one labels them."""
    tallest = max(len(panel.lines) for panel in panels)
    figure, grid = new_grid(-(-len(panels) // 2), 2, 4.6, 1.1 + 0.3 * tallest)
    for place_in_grid, (axis, panel) in enumerate(zip(grid.flat, panels)):
        for number, (_, *both) in enumerate(panel.lines):
            for (name, colour, offset), values in zip(SOURCES, both):
                if not values:
                    continue
                place = offset - number
                axis.hlines(place, min(values), max(values), color="0.45", linewidth=1.5, zorder=1)
                axis.plot(sum(values) / len(values), place, "o" if name == "ours" else "D", markersize=5.5,
                          color=colour, markeredgecolor="0.1", label=name if number == 0 else None)  # fmt: skip
        labels = [label if place_in_grid % 2 == 0 else "" for label, *_ in panel.lines]
        axis.set_yticks([-number for number in range(len(labels))], labels, fontsize=8)
        axis.set(xlabel=panel.axis, ylim=(-len(labels) + 0.4, 0.6))
        axis.margins(x=0.08)
        set_title(axis, panel.title)
    grid[0, 0].legend(fontsize=8, loc="best")
    return save_figure(figure, path)


Point = tuple[float, float]


def plot_trade_offs(methods: Mapping[str, tuple[Point, Mapping[str, Sequence[Point]]]], path: str | Path) -> list[Path]:
    """Draw one panel per method: the published point among all our runs. Left and down is better.

    methods: name -> (published, {series, such as a seed: ours}); points are (accuracy lost in percentage points,
    % memorized). Points in the shaded corner are at least as good as published.
    """
    figure, grid = new_grid(-(-len(methods) // 4), 4, 2.7, 2.3)
    bottom, top = -4, 104
    names = sorted({name for _, ours in methods.values() for name in ours})
    styles = {name: {"marker": marker, "color": f"C{i}"} for i, (name, (marker, _)) in enumerate(zip(names, STYLES))}
    for axis, (method, (published, ours)) in zip(grid.flat, methods.items()):
        axis.plot(*published, "D", markersize=8, color="white", markeredgecolor="0.1", label="published")
        for name in names:  # all names in every panel, so that the legend has this order
            points = ours.get(name) or [(math.nan, math.nan)]
            axis.scatter(*zip(*points), **styles[name], s=16, alpha=0.8, label=name, zorder=3)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set(ylim=(bottom, top), xlim=(min(-0.1, axis.get_xlim()[0]), 100))
        axis.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
        axis.axvspan(
            axis.get_xlim()[0], published[0], ymax=(published[1] - bottom) / (top - bottom), color="0.9", zorder=0
        )
        set_title(axis, method)
    for axis in list(grid.flat)[len(methods) :]:
        axis.set_visible(False)
    for axis in grid[:, 0]:
        axis.set_ylabel("% memorized")
    for axis in grid[-1]:
        axis.set_xlabel("accuracy lost, points")
    common_legend(figure, grid.flat)
    return save_figure(figure, path)
