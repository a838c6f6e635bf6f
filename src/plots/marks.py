"""Marks of a scatter figure that stay readable: strengths beside them, ruined models at the edge, none behind another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RUINED = 20.0  # factor on the lowest perplexity above which a mark is in the strip at the edge
STRIP = 3.0  # factor between the perplexities at the ends of that strip
SIZE = 6.5  # points: marks that are closer are moved apart
Mark = tuple[Any, tuple[float, float], str]  # collection of one point, the point, text beside it


def edge(perplexities: Sequence[float]) -> float:
    """Return the perplexity beyond which marks are cut off."""
    return RUINED * min(perplexities)


def cut_off(perplexities: Sequence[float]) -> list[float]:
    """Return the perplexities as they are drawn: those beyond the edge below each other by rank, in a narrow strip."""
    beyond = sorted(value for value in perplexities if value > edge(perplexities))
    step = STRIP ** (1 / max(len(beyond), 8))
    return [
        edge(perplexities) * step ** (beyond.index(value) + 1) if value in beyond else value for value in perplexities
    ]


def draw_strip(axis, start: float) -> None:
    """Shade the strip of the ruined models, from this perplexity on, down to the lower edge."""
    low = axis.get_ylim()[0]
    axis.axhspan(start, low, color="0.94", lw=0, zorder=0.2)
    axis.set_ylim(bottom=low)
    axis.text(0.99, start, "ruined models, by rank: ↓ perplexity ", fontsize=6, color="0.35",
              transform=axis.get_yaxis_transform(), ha="right", va="top")  # fmt: skip


def note(strength: tuple[str, float] | None, beyond: float | None = None) -> str:
    """Return the text beside a mark: the strength, and, with an arrow, a perplexity beyond the edge."""
    words = [f"{strength[1]:g}"] if strength else []
    if beyond is not None:
        words.append(f"\N{DOWNWARDS ARROW} {beyond:.2g}")
    return " ".join(words)


def spread(axis, marks: Sequence[Mark]) -> None:
    """Move marks that hide another one to the right, with a line to their true place, and write the texts beside them.

    axis: with its final limits and scales. The data of the marks stay as they are.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = axis.figure
    points = 72 / figure.dpi
    taken: list[tuple[float, float, float]] = []
    for collection, point, text in marks:
        x, y = (points * float(place) for place in axis.transData.transform(point))
        width = SIZE + 3.6 * len(text)  # its text must not be hidden either
        shift = 0.0
        while any(left - width < x + shift < left + right and abs(y - up) < SIZE for left, up, right in taken):
            shift += SIZE / 2
        taken.append((x + shift, y, width))
        if shift:
            moved = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
            collection.set_offset_transform(axis.transData + moved)
            axis.annotate("", point, (shift, 0), textcoords="offset points", zorder=0.8,
                          arrowprops=dict(arrowstyle="-", color="0.75", lw=0.6, shrinkA=0, shrinkB=0))  # fmt: skip
        axis.annotate(text, point, (shift + 5, 0), textcoords="offset points", fontsize=5.5, va="center", color="0.25")
