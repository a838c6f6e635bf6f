"""Parts that all figures share: panels, styles that are readable in grey, files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinymem import files

STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":")]
LINE, ROOM = 0.17, 3  # height of a legend line in inches, and number of lines that fit a figure
FOREIGN = "#e6007e"  # the colour of methods in users' files only
Rows = Sequence[Mapping[str, Any]]


def new_figure(panels: int, width: float = 4.0, height: float = 3.2):
    """Return (figure, list of axes): panels side by side, independent of any display."""
    figure, grid = new_grid(1, panels, width, height)
    return figure, list(grid[0])


def new_grid(rows: int, columns: int, width: float = 4.0, height: float | Sequence[float] = 3.2):
    """Return (figure, array of axes (rows, columns)) with panels of this size in inches. height: one, or per row."""
    from matplotlib.figure import Figure

    heights = [height] * rows if isinstance(height, (int, float)) else height
    figure = Figure(figsize=(width * columns, sum(heights)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axis in grid.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, grid


def set_title(axis, title: str) -> None:
    """Set a small title, broken at commas into lines no wider than the panel."""
    inches = axis.figure.get_figwidth() / axis.get_gridspec().ncols
    parts = title.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    axis.set_title(textwrap.fill(parts, int(14 * inches)).replace("\N{NO-BREAK SPACE}", " "), fontsize=8)


def common_legend(figure, axes: Iterable) -> None:
    """Add one legend below all panels, as wide as they are.

    Every label occurs once, in the order of the panel with most labels.
    """
    entries = [axis.get_legend_handles_labels() for axis in axes]
    handles: dict[str, Any] = {}
    for entry in sorted(entries, key=lambda entry: -len(entry[1])):
        for handle, label in zip(*entry):
            handles.setdefault(label, handle)
    inches = 0.55 + 0.075 * max(map(len, handles), default=0)  # width of one entry: its sample, then 8-point letters
    columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + LINE * max(0, lines - ROOM))  # or long legends squeeze panels
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def plain_numbers(axis) -> None:
    """Label a logarithmic axis with numbers such as 20, 30, 100, not powers of ten. axis: axes.xaxis or axes.yaxis."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    subs = (
        (1, 1.5, 2, 3, 5, 7)
        if high < 8 * low
        else (1, 2, 5) if high < 60 * low else (1, 3) if high < 1000 * low else (1,)
    )
    narrow = high < 2 * low  # nearly linear, with at most one of these numbers in it
    axis.set_major_locator(AutoLocator() if narrow else LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _as_written(figure) -> None:
    """Show every text literally, since a $ in a name would begin a formula. Numbers on axes keep powers of ten."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    numbers = {
        id(label)
        for axis in figure.findobj(Axis)
        if not isinstance(axis.get_major_formatter(), FixedFormatter)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if id(text) not in numbers:
            text.set_parse_math(False)


def save_figure(figure, path: str | Path, suffixes: Sequence[str] = (".png", ".pdf")) -> list[Path]:
    """Write path.png and path.pdf, or only one of them. The same figure gives the same files. path: without suffix."""
    path = Path(path)
    metadata = {".png": {}, ".pdf": {"CreationDate": None}}
    _as_written(figure)
    figure.draw_without_rendering()  # lay out the panels only once for both files: this takes longer than writing
    figure.set_layout_engine("none")
    return [
        files.write_file(
            path.with_name(path.name + suffix),
            partial(figure.savefig, format=suffix[1:], dpi=150, metadata=metadata[suffix]),
        )
        for suffix in suffixes
    ]
