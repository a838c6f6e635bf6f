"""Mitigations of one model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinymem.plots.base import FOREIGN, Rows, new_figure, plain_numbers, save_figure
from tinymem.records.interval import fixed

OWN = "others"  # the family of methods that are not TinyMem's, drawn in the colour FOREIGN
PERCENT, CHANGE, LOG_CHANGE, SECONDS = "percent", "change", "log change", "seconds"
LINES = ("--", ":")  # lines at the values of the first rows, which have no mitigation
LETTERS = 6.5  # font size of values, in points


@dataclass(frozen=True)
class Measure:
    """A panel of the figure.

    column   a column of the rows; COLUMN_low and COLUMN_high, if present, are the ends of its 95 % interval
    title    above the panel
    scale    PERCENT and SECONDS have bars from 0, CHANGE and LOG_CHANGE bars from the first row's value
    digits   decimals of the values beside the bars; None: two significant digits
    beside   a second column, drawn as a diamond with its value in brackets, and its label
    note     a column with a text after the value
    """

    column: str
    title: str
    scale: str = PERCENT
    digits: int | None = 0
    beside: tuple[str, str] | None = None
    note: str | None = None

    def words(self, value: float) -> str:
        """Return a value as written beside its bar."""
        if self.digits is None:
            return two_digits(value)
        return fixed(value, self.digits)


def two_digits(value: float) -> str:
    """Return a number of seconds with at least two significant digits."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def plot_mitigations(rows: Rows, measures: Sequence[Measure], path: str | Path, title: str = "") -> list[Path]:
    """Draw `draw_mitigations` and write it."""
    return save_figure(draw_mitigations(rows, measures, title), path)


def draw_mitigations(rows: Rows, measures: Sequence[Measure], title: str = ""):
    """Draw measures of mitigations side by side: a line per row, grouped by family, a panel per measure.

    rows: family, method and the measures' columns, None for unknown values; `note`, if any, says why. The first family
    is the models without mitigation; lines extend their values down the figure. The first row has all values. Rows of
    the family OWN are in the colour FOREIGN. Return the figure.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    kinds = [families.index(row["family"]) for row in rows]
    places = [-i - kind for i, kind in enumerate(kinds)]
    figure, axes = new_figure(len(measures), 1.9 + 1.9 / len(measures), 1.4 - 0.175 * places[-1])
    for axis, measure in zip(axes, measures):
        _draw(axis, rows, places, measure)
        for row, style in zip((row for row in rows if row["family"] == families[0]), LINES):
            if row[measure.column] is not None:
                axis.axvline(row[measure.column], color="black", lw=0.8, ls=style, zorder=0.9, label=row["method"])
        axis.set_title(measure.title, fontsize=8, loc="left")
        axis.set_ylim(places[-1] - 0.8, 1.6)
        axis.set_yticks(places, [""] * len(rows))
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", alpha=0.15)
    names = axes[0]
    names.set_yticks(places, [row["method"].replace("_", " ") for row in rows], fontsize=8)
    for kind, family in enumerate(families):
        names.annotate(family, (0, places[kinds.index(kind)] + 1), (-4, 0), xycoords=names.get_yaxis_transform(),
                       textcoords="offset points", fontsize=8, fontweight="bold", ha="right", va="center")  # fmt: skip
    for row, place in zip(rows, places):
        if row.get("note"):
            _write(names, 0.0, place, row["note"], color="0.4", style="italic")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def _draw(axis, rows: Rows, places: Sequence[float], measure: Measure) -> None:
    """Draw the bars of a measure, with intervals and values."""
    base = rows[0][measure.column] if measure.scale in (CHANGE, LOG_CHANGE) else 0.0
    largest = 1.0
    for row, place in zip(rows, places):
        value = row.get(measure.column)
        if value is None:
            continue
        low, high = (row.get(f"{measure.column}_{end}", value) for end in ("low", "high"))
        colour, end, words = FOREIGN if row["family"] == OWN else "black", max(high, base), measure.words(value)
        axis.barh(place, value - base, 0.66, left=base, color="0.83", linewidth=0)
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, markersize=3.2,
                      linewidth=0.9, capsize=1.6, zorder=3,
                      label="mean, 95 % interval" if high > low else None)  # fmt: skip
        if measure.beside and (other := row.get(measure.beside[0])) is not None:
            style = dict(markersize=4, color="white", markeredgecolor=colour, markeredgewidth=0.8, linestyle="none")
            axis.plot(other, place, marker="D", label=measure.beside[1], zorder=2.9, **style)
            end, words = max(end, other), f"{words} ({measure.words(other)})"
        note = row.get(measure.note or "") or ""
        lower = value < base and measure.beside is None  # than the first row's: the line there is on the right
        _write(axis, low if lower else end, place, f"{words} {note}".rstrip().replace("_", " "), left=lower)
        largest = max(largest, end)
    _scale(axis, measure, largest)


def _scale(axis, measure: Measure, largest: float) -> None:
    """Set the limits and ticks of a panel, with room for the values. largest: the value farthest from the start."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.use_sticky_edges = False  # otherwise there is no margin at the start of bars
    if measure.scale == PERCENT:
        axis.set(xlim=(0, 130 + 25 * bool(measure.beside) + 60 * bool(measure.note)), xticks=range(0, 101, 25))
    elif measure.scale == SECONDS:
        axis.set_xscale("symlog", linthresh=1.0)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_xlim(0, 8 * largest)
    elif measure.scale == LOG_CHANGE:
        axis.set_xscale("log")
        axis.margins(x=0.25)
        plain_numbers(axis.xaxis)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.margins(x=0.25)


def _write(axis, x: float, y: float, words: str, left: bool = False, **style: str) -> None:
    """Write words to the right or left of a point, in front of the lines there."""
    look = dict(fontsize=LETTERS, bbox=dict(facecolor="white", edgecolor="none", pad=0.3), **style)
    side = dict(xytext=(-4, 0), ha="right") if left else dict(xytext=(4, 0), ha="left")
    axis.annotate(words, (x, y), textcoords="offset points", va="center", **side, **look)
