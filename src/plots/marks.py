"""Keep the marks of a scatter figure readable: strengths beside them, ruined models at the edge, no overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

RUINED = 20.0  # times the lowest perplexity: marks above it are in the strip at the edge
STRIP = 3.0  # factor between the perplexities at the ends of that strip
SIZE = 6.5  # points: closer marks are moved apart
NEAREST = [(SIZE * i, SIZE * j) for i in range(-8, 9) for j in range(-8, 9)]
AROUND = sorted(NEAREST, key=lambda place: (math.hypot(*place), -place[0], -place[1]))  # where a mark may move to
Text = tuple[tuple[float, float], tuple[float, float], str]
Mark = tuple[Any, tuple[float, float], str]  # collection of one point, the point, text beside it
Box = tuple[float, float, float, float]  # left, lower, right, upper end, in points
# Where a text may be: points to the right of its mark and above it, and its alignment; best first.
BESIDE: tuple[tuple[float, float, str], ...]
BESIDE = ((5, 0, "left"), (4, 5, "left"), (4, -5, "left"), (-5, 0, "right"), (0, 7.5, "center"), (0, -7.5, "center"))
BESIDE += (
    (-4, 5, "right"),
    (-4, -5, "right"),
    (4, 11, "left"),
    (4, -11, "left"),
    (-4, 11, "right"),
    (-4, -11, "right"),
)


def edge(perplexities: Sequence[float]) -> float:
    """Return the perplexity beyond which marks are cut off."""
    return RUINED * min(perplexities)


def cut_off(perplexities: Sequence[float]) -> list[float]:
    """Return the perplexities as drawn: those beyond the edge are spaced by rank in a narrow strip."""
    beyond = sorted(value for value in perplexities if value > edge(perplexities))
    step = STRIP ** (1 / max(len(beyond), 8))
    return [
        edge(perplexities) * step ** (beyond.index(value) + 1) if value in beyond else value for value in perplexities
    ]


def draw_strip(axis, start: float) -> None:
    """Shade the strip of ruined models, from this perplexity to the lower edge."""
    low = axis.get_ylim()[0]
    axis.axhspan(start, low, color="0.94", lw=0, zorder=0.2)
    axis.set_ylim(bottom=low)
    axis.text(0.99, start, "ruined models, by rank: ↓ perplexity ", fontsize=6, color="0.35",
              transform=axis.get_yaxis_transform(), ha="right", va="top")  # fmt: skip


def note(strength: tuple[str, float] | None, beyond: float | None = None) -> str:
    """Return the text beside a mark: the strength and, with an arrow, a perplexity beyond the edge."""
    words = [f"{strength[1]:g}"] if strength else []
    if beyond is not None:
        words.append(f"\N{DOWNWARDS ARROW} {beyond:.2g}")
    return " ".join(words)


def spread(axis, marks: Sequence[Mark]) -> None:
    """Move each mark that hides another to the nearest free place, and write the texts beside the marks.

    A line leads to a dot at the mark's true place; a note below the axis explains it.

    axis: with its final limits and scales. The data of the marks stay as they are.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = axis.figure
    points = 72 / figure.dpi
    taken: list[tuple[float, float]] = []
    texts, moved_some = [], False
    west, south, east, north = (points * float(end) for end in axis.bbox.extents)
    for collection, point, text in marks:
        x, y = (points * float(place) for place in axis.transData.transform(point))
        free = (
            (right, up)
            for right, up in AROUND
            if not any(abs(x + right - a) < SIZE and abs(y + up - b) < SIZE for a, b in taken)
            and (right == up == 0 or (west <= x + right <= east and south <= y + up <= north))
        )
        shift = next(free, (0.0, 0.0))
        taken.append((x + shift[0], y + shift[1]))
        if shift != (0.0, 0.0):
            moved_some = True
            axis.plot(*point, ".", color="0.6", markersize=2.5, zorder=0.9)
            moved = ScaledTranslation(shift[0] / 72, shift[1] / 72, figure.dpi_scale_trans)
            collection.set_offset_transform(axis.transData + moved)
            axis.annotate("", point, shift, textcoords="offset points", zorder=0.8,
                          arrowprops=dict(arrowstyle="-", color="0.75", lw=0.6, shrinkA=0, shrinkB=0))  # fmt: skip
        texts.append((point, shift, text))
    write(axis, texts, 5.5)
    if moved_some:
        axis.annotate("a line leads from a moved mark to its true place", (1, 0), (0, -28), fontsize=5.5, color="0.35",
                      xycoords="axes fraction", textcoords="offset points", ha="right", va="top")  # fmt: skip


def write(axis, texts: Sequence[Text], size: float) -> None:
    """Write a text beside each mark, if there is room, without covering marks, other texts or lines.

    axis: with its final position, limits and scales. texts: (point, points by which its mark is moved right and up,
    text). size: of the letters, in points.
    """
    scale = 72 / axis.figure.dpi
    places = [scale * axis.transData.transform(point) + shift for point, shift, _ in texts]
    marks = [_box(x, y, SIZE, SIZE) for x, y in places]
    west, south, east, north = (scale * end for end in axis.bbox.extents)
    lines = [(west - 1, south - 9, east, south + 1), (west - 9, south, west + 1, north)]  # the axes, with their ticks
    lines += [segment for line in axis.lines for segment in _segments(line, scale)]
    written: list[Box] = []
    for (point, shift, text), (x, y) in zip(texts, places):
        if not text:
            continue
        width, height = 0.58 * size * len(text), size
        others = [mark for mark in marks if mark != _box(x, y, SIZE, SIZE)]
        choices = []
        for order, (right, up, align) in enumerate(BESIDE):
            start = x + right + {"left": 0.0, "center": -width / 2, "right": -width}[align]
            box = (start, y + up - height / 2, start + width, y + up + height / 2)
            covered = sum(10 * _meet(box, other) for other in written) + sum(5 * _meet(box, one) for one in others)
            choices.append((covered + sum(4 * _meet(box, line) for line in lines), order, box))
        _, best, box = min(choices)
        written.append(box)
        right, up, align = BESIDE[best]
        axis.annotate(text, point, (shift[0] + right, shift[1] + up), textcoords="offset points", fontsize=size,
                      va="center", ha=align, color="0.25")  # fmt: skip


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _segments(line, scale: float) -> list[Box]:
    """Return the horizontal and vertical pieces of a line as boxes of the line's width, in points."""
    places = [tuple(scale * place) for place in line.get_transform().transform(line.get_xydata())]
    if line.get_drawstyle() == "steps-post":
        places = [corner for a, b in zip(places, places[1:]) for corner in (a, (b[0], a[1]), b)] or places
    pairs = zip(places, places[1:])
    return [(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1) for a, b in pairs]
