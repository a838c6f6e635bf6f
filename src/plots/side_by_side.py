"""Two sources of the same numbers side by side, such as published ones and ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinymem.plots.base import new_grid, save_figure, set_title

SOURCES = (("published", "white", 0.16), ("ours", "0.25", -0.16))  # name, colour of the mark, place above the line


@dataclass(frozen=True)
class Panel:
    """What one panel shows: title, label of its axis, and (label, published values, our values) for each line.

    Values are those of the seeds: a mark at their mean, a bar over their range. No values, no mark.
    """

    title: str
    axis: str
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]


def plot_side_by_side(panels: Sequence[Panel], path: str | Path) -> list[Path]:
    """Panels in rows of two; those of a row have the same lines, which only the left one names."""
    tallest = max(len(panel.lines) for panel in panels)
    figure, grid = new_grid(-(-len(panels) // 2), 2, 4.6, 1.1 + 0.3 * tallest)
    for axis, panel in zip(grid.flat, panels):
        for number, (_, *both) in enumerate(panel.lines):
            for (name, colour, offset), values in zip(SOURCES, both):
                if not values:
                    continue
                place = offset - number
                axis.hlines(place, min(values), max(values), color="0.45", linewidth=1.5, zorder=1)
                axis.plot(sum(values) / len(values), place, "o" if name == "ours" else "D", markersize=5.5,
                          color=colour, markeredgecolor="0.1", label=name if number == 0 else None)  # fmt: skip
        left = axis is grid[:, 0][[axis in row for row in grid].index(True)]
        labels = [label if left else "" for label, *_ in panel.lines]
        axis.set_yticks([-number for number in range(len(labels))], labels, fontsize=8)
        axis.set(xlabel=panel.axis, ylim=(-len(labels) + 0.4, 0.6))
        axis.margins(x=0.08)
        set_title(axis, panel.title)
    grid[0, 0].legend(fontsize=8, loc="best")
    return save_figure(figure, path)
