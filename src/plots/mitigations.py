"""All mitigations of one model side by side."""

from __future__ import annotations

from pathlib import Path

from tinymem.plots.base import Rows, new_figure, save_figure


def plot_mitigations(rows: Rows, path: str | Path) -> list[Path]:
    """Draw memorization, accuracy and seconds of methods side by side, one line per row, grouped by family.

    rows: family, method, percent_memorized_train, percent_memorized_test, mean_test_accuracy, seconds. The first is
    the model without mitigation; dashed lines extend its values down the figure.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    kinds = [families.index(row["family"]) for row in rows]
    places = [-i - 0.8 * kind for i, kind in enumerate(kinds)]
    figure, (memory, accuracy, seconds) = new_figure(3, 3.6, 1.2 + 0.27 * len(rows))
    memorized = [row["percent_memorized_train"] for row in rows]
    right = [100 * row["mean_test_accuracy"] for row in rows]
    taken = [row["seconds"] for row in rows]
    unseen = [row["percent_memorized_test"] for row in rows]
    # Values are to the right of bar and diamond: both values, the bar's first.
    ends = [max(*pair) for pair in zip(memorized, (u or 0 for u in unseen))]
    texts = [f"{m:.1f}" if u is None else f"{m:.1f}  ({u:.1f})" for m, u in zip(memorized, unseen)]
    _bars(memory, places, memorized, kinds, texts, ends)
    diamonds = [point for point in zip(unseen, places) if point[0] is not None]
    if diamonds:
        style = dict(markersize=4, color="white", markeredgecolor="black", linestyle="none")
        memory.plot(*zip(*diamonds), marker="D", label="triggers never seen (in brackets)", **style)
        memory.legend(fontsize=7, loc="lower right")
    memory.set(xlabel="% of artifacts memorized", xlim=(0, 140), xticks=range(0, 101, 20))
    _distances(accuracy, places, right, kinds, "{:.2f}")  # small differences: bars from 0 would hide them
    accuracy.set(xlabel="mean test accuracy (%)")
    accuracy.margins(x=0.25)
    _bars(seconds, places, taken, kinds, [f"{s:.0f}" if s >= 100 else f"{s:.3g}" for s in taken], taken)
    seconds.set_xscale("symlog", linthresh=1.0)
    seconds.set(xlabel="seconds", xlim=(0, 8 * max(taken)))
    for axis, values in ((memory, memorized), (accuracy, right), (seconds, taken)):
        axis.axvline(values[0], color="black", linewidth=0.8, linestyle="--", zorder=0.9)
        axis.set(axisbelow=True, ylim=(places[-1] - 1, 1))
        axis.set_yticks(
            places, [row["method"].replace("_", " ") for row in rows] if axis is memory else [""] * len(rows)
        )
    for kind, family in enumerate(families[1:], start=1):
        memory.text(0, places[kinds.index(kind)] + 0.55, family, fontsize=8, fontweight="bold")
    return save_figure(figure, path)


_GREYS = (("0.25", ""), ("0.55", "//"), ("0.75", ".."), ("0.92", ""))


def _bars(
    axis, places: list[float], values: list[float], kinds: list[int], texts: list[str], ends: list[float]
) -> None:
    """Draw horizontal bars with texts to the right of `ends`; each kind of row has its own grey and hatching."""
    for place, value, kind, text, end in zip(places, values, kinds, texts, ends):
        grey, hatch = _GREYS[kind % len(_GREYS)]
        axis.barh(place, value, 0.75, color=grey, hatch=hatch, edgecolor="black", linewidth=0.6)
        axis.annotate(
            text, (end, place), (6, 0), textcoords="offset points", fontsize=7, va="center",
            bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
        )  # fmt: skip


def _distances(axis, places: list[float], values: list[float], kinds: list[int], form: str) -> None:
    """Draw marks with their values, each joined to the position of the first value."""
    for place, value, kind in zip(places, values, kinds):
        grey, _ = _GREYS[kind % len(_GREYS)]
        axis.plot([values[0], value], [place, place], color="0.4", linewidth=1.5, zorder=1)
        axis.plot(value, place, "o", markersize=6, color=grey, markeredgecolor="black")
        side = 1 if value >= values[0] else -1
        axis.annotate(
            form.format(value), (value, place), (7 * side, 0), textcoords="offset points", fontsize=7, va="center",
            ha="left" if side > 0 else "right",
        )  # fmt: skip
