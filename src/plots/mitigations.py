"""Mitigations of one model side by side."""

from __future__ import annotations

from pathlib import Path

from tinymem.plots.base import FOREIGN, Rows, new_figure, plain_numbers, save_figure

OWN = "others"  # the family of methods that TinyMem does not have, in the colour FOREIGN


def plot_mitigations(rows: Rows, path: str | Path, column: str = "percent_memorized_train") -> list[Path]:
    """Draw `draw_mitigations` and write it."""
    return save_figure(draw_mitigations(rows, column), path)


def draw_mitigations(rows: Rows, column: str = "percent_memorized_train"):
    """Draw memorization, quality and seconds of methods side by side, one line per row, grouped by family.

    column: what is memorized. rows: family, method, that column, percent_memorized_test, mean_test_accuracy (None for text, of which
    perplexity is drawn), seconds (None: not known). The first is the model without mitigation; dashed lines extend its
    values down the figure. Rows of the family OWN are in the colour FOREIGN. Return the figure.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    families = list(dict.fromkeys(row["family"] for row in rows))
    kinds = [families.index(row["family"]) for row in rows]
    styles = [_FOREIGN if row["family"] == OWN else _GREYS[kind % len(_GREYS)] for row, kind in zip(rows, kinds)]
    places = [-i - 0.8 * kind for i, kind in enumerate(kinds)]
    figure, (memory, quality, seconds) = new_figure(3, 3.6, 1.4 + 0.27 * len(rows))
    memorized = [row[column] for row in rows]
    numbers = rows[0]["mean_test_accuracy"] is not None
    kept = [100 * row["mean_test_accuracy"] if numbers else row["perplexity"] for row in rows]
    taken = [row["seconds"] or 0.0 for row in rows]
    unseen = [row["percent_memorized_test"] for row in rows]
    # Values are to the right of bar and diamond: both values, the bar's first.
    ends = [max(*pair) for pair in zip(memorized, (u or 0 for u in unseen))]
    texts = [f"{m:.1f}" if u is None else f"{m:.1f}  ({u:.1f})" for m, u in zip(memorized, unseen)]
    _bars(memory, places, memorized, styles, texts, ends)
    diamonds = [point for point in zip(unseen, places) if point[0] is not None]
    if diamonds:
        style = dict(markersize=4, color="white", markeredgecolor="black", linestyle="none")
        memory.plot(*zip(*diamonds), marker="D", label="triggers never seen (in brackets)", **style)
        figure.legend(*memory.get_legend_handles_labels(), fontsize=7, loc="outside lower left", frameon=False)
    memory.set(xlabel="% of artifacts memorized", xlim=(0, 140), xticks=range(0, 101, 20))
    _distances(quality, places, kept, styles, "{:.2f}")  # small differences: bars from 0 would hide them
    quality.set(xlabel="mean test accuracy (%)" if numbers else "perplexity")
    if numbers:
        quality.xaxis.set_major_locator(MaxNLocator(4))
    else:
        quality.set_xscale("log")
    quality.margins(x=0.25)
    _bars(seconds, places, taken, styles, [_spelled(row["seconds"]) for row in rows], taken)
    seconds.set_xscale("symlog", linthresh=1.0)
    seconds.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    seconds.set(xlabel="seconds", xlim=(0, 8 * max(*taken, 1.0)))
    for axis, values in ((memory, memorized), (quality, kept), (seconds, taken)):
        axis.axvline(values[0], color="black", linewidth=0.8, linestyle="--", zorder=0.9)
        axis.set(axisbelow=True, ylim=(places[-1] - 1, 1))
        axis.set_yticks(
            places, [row["method"].replace("_", " ") for row in rows] if axis is memory else [""] * len(rows)
        )
    if not numbers:
        plain_numbers(quality.xaxis)
    for kind, family in enumerate(families[1:], start=1):
        memory.text(0, places[kinds.index(kind)] + 0.55, family, fontsize=8, fontweight="bold")
    return figure


def _spelled(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


Style = tuple[str, str]  # colour and hatch
_GREYS: tuple[Style, ...] = (("0.25", ""), ("0.55", "//"), ("0.75", ".."), ("0.92", ""))
_FOREIGN: Style = (FOREIGN, "")


def _bars(
    axis, places: list[float], values: list[float], styles: list[Style], texts: list[str], ends: list[float]
) -> None:
    """Draw horizontal bars with texts to the right of `ends`."""
    for place, value, (colour, hatch), text, end in zip(places, values, styles, texts, ends):
        axis.barh(place, value, 0.75, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
        axis.annotate(
            text, (end, place), (6, 0), textcoords="offset points", fontsize=7, va="center",
            bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
        )  # fmt: skip


def _distances(axis, places: list[float], values: list[float], styles: list[Style], form: str) -> None:
    """Draw marks with their values, each joined to the position of the first value."""
    for place, value, (colour, _) in zip(places, values, styles):
        axis.plot([values[0], value], [place, place], color="0.4", linewidth=1.5, zorder=1)
        axis.plot(value, place, "o", markersize=6, color=colour, markeredgecolor="black")
        side = 1 if value >= values[0] else -1
        axis.annotate(
            form.format(value), (value, place), (7 * side, 0), textcoords="offset points", fontsize=7, va="center",
            ha="left" if side > 0 else "right",
        )  # fmt: skip
