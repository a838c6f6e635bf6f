"""Figures, each written as PNG and PDF. Readable in grey: series differ in marker and line style too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import files

STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":")]
MARKERS = "*hos^Dv<>PXpd8"  # one a method, for figures of all methods
Rows = Sequence[Mapping[str, Any]]


def new_figure(panels: int, width: float = 4.0, height: float = 3.2):
    """A figure with its panels side by side, independent of any display. Returns (figure, list of axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure, path: str | Path) -> list[Path]:
    """Writes path.png and path.pdf (`path` without suffix)."""
    path = Path(path)
    suffixes = (".png", ".pdf")
    return [
        files.write_file(path.with_name(path.name + suffix), lambda t: figure.savefig(t, format=suffix[1:], dpi=150))
        for suffix in suffixes
    ]


def plot_training(rows: Rows, path: str | Path) -> list[Path]:
    """Loss, accuracy and memorization against epochs."""
    figure, (loss, accuracy, memory) = new_figure(3)
    _lines(loss, rows, "epoch", [name for name in rows[0] if name == "train_loss" or name.startswith("loss_")])
    _lines(accuracy, rows, "epoch", [name for name in rows[0] if name.startswith("accuracy_")])
    _lines(memory, rows, "epoch", [name for name in rows[0] if name.startswith("percent_")])
    for axis, label in ((loss, "loss (nats a token)"), (accuracy, "test accuracy"), (memory, "% of artifacts")):
        axis.set(xlabel="epoch", ylabel=label)
    memory.set_ylim(-4, 104)
    return save_figure(figure, path)


def _lines(axis, rows: Rows, x: str, names: list[str]) -> None:
    """One line a column; a column without any value is left out."""
    for name, (marker, line) in zip(names, STYLES * (1 + len(names) // len(STYLES))):
        points = [(row[x], row[name]) for row in rows if row.get(name) is not None]
        if points:
            label = name.removeprefix("percent_").removeprefix("accuracy_").replace("_", " ")
            axis.plot(*zip(*points), marker=marker, linestyle=line, markersize=3.5, label=label)
    axis.legend(fontsize=7)


def plot_unlearning(rows: Rows, path: str | Path) -> list[Path]:
    """Memorization against mean test accuracy, one mark a run, with the Pareto front. Left and up is better."""
    figure, (axis,) = new_figure(1, 6.0, 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method, (marker, _) in zip(methods, STYLES * (1 + len(methods) // len(STYLES))):
        points = [_trade(row) for row in rows if row["method"] == method]
        size = 90 if method == "unedited" else 32
        axis.scatter(*zip(*points), marker="*" if method == "unedited" else marker, s=size, label=method, alpha=0.85)
    front = pareto_front([_trade(row) for row in rows])
    axis.plot(*zip(*front), color="black", linewidth=0.8, linestyle=":", drawstyle="steps-post", label="Pareto front")
    axis.set(xlabel="% memorized (training artifacts)", ylabel="mean test accuracy")
    axis.legend(fontsize=7, ncols=2)
    return save_figure(figure, path)


def plot_shown_and_held_out(rows: Rows, path: str | Path) -> list[Path]:
    """Memorization against perplexity, one mark a run: full for what the method was shown, open for what was held out.

    rows: method, perplexity, percent_memorized_shown, percent_memorized_held_out. Left and down is better.
    """
    figure, (axis,) = new_figure(1, 7.4, 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method, marker in zip(methods, MARKERS * (1 + len(methods) // len(MARKERS))):
        own = [row for row in rows if row["method"] == method]
        perplexity = [row["perplexity"] for row in own]
        shown, held_out = ([row[f"percent_memorized_{part}"] for row in own] for part in ("shown", "held_out"))
        axis.vlines(perplexity, shown, held_out, color="0.6", linewidth=0.8, zorder=1)
        axis.plot(perplexity, shown, marker, color="0.25", markersize=6, label=method.replace("_", " "))
        axis.plot(perplexity, held_out, marker, color="white", markeredgecolor="0.25", markersize=6, zorder=1.9)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(_one_two_five)
    axis.tick_params(axis="x", which="both", labelsize=8, pad=4)
    axis.set(xlabel="perplexity on held-out text", ylabel="% memorized (full: shown, open: held out)", ylim=(-4, 104))
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return save_figure(figure, path)


def _one_two_five(value: float, place: int) -> str:
    """Labels between the powers of ten of a logarithmic axis: 20, 50, 200 ..."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _trade(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["percent_memorized_train"], row["mean_test_accuracy"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (memorized, quality) that no other beats in both: low first value, high second. By first value."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def plot_mitigations(rows: Rows, path: str | Path) -> list[Path]:
    """Memorization, accuracy and seconds of methods side by side, one line a row, the families apart.

    rows: family, method, percent_memorized_train, percent_memorized_test, mean_test_accuracy, seconds. The first is
    the model without mitigation; dashed lines carry its values down the figure.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    kinds = [families.index(row["family"]) for row in rows]
    places = [-i - 0.8 * kind for i, kind in enumerate(kinds)]
    figure, (memory, accuracy, seconds) = new_figure(3, 3.6, 1.2 + 0.27 * len(rows))
    memorized = [row["percent_memorized_train"] for row in rows]
    right = [100 * row["mean_test_accuracy"] for row in rows]
    taken = [max(row["seconds"], 0.0) for row in rows]
    _bars(memory, places, memorized, kinds, "%.1f")
    unseen = [(row["percent_memorized_test"], place) for row, place in zip(rows, places)]
    unseen = [point for point in unseen if point[0] is not None]
    memory.plot(*zip(*unseen), "D", markersize=4, color="white", markeredgecolor="black", label="triggers never seen")
    memory.legend(fontsize=7, loc="lower right")
    memory.set(xlabel="% of artifacts memorized", xlim=(0, 122), xticks=range(0, 101, 20))
    _distances(accuracy, places, right, kinds, "{:.2f}")  # small differences: bars from 0 would hide them
    accuracy.set(xlabel="mean test accuracy (%)")
    accuracy.margins(x=0.2)
    _bars(seconds, places, taken, kinds, "%.3g")
    seconds.set_xscale("symlog", linthresh=1.0)
    seconds.set(xlabel="seconds (regularizers: added to training)", xlim=(0, 8 * max(taken)))
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


def _bars(axis, places: list[float], values: list[float], kinds: list[int], form: str) -> None:
    """Horizontal bars with their values; each kind of row has its own grey and hatching."""
    for place, value, kind in zip(places, values, kinds):
        grey, hatch = _GREYS[kind % len(_GREYS)]
        bar = axis.barh(place, value, 0.75, color=grey, hatch=hatch, edgecolor="black", linewidth=0.6)
        axis.bar_label(bar, fmt=form, fontsize=7, padding=5)


def _distances(axis, places: list[float], values: list[float], kinds: list[int], form: str) -> None:
    """Marks with their values, each joined to the place of the first value."""
    for place, value, kind in zip(places, values, kinds):
        grey, _ = _GREYS[kind % len(_GREYS)]
        axis.plot([values[0], value], [place, place], color="0.4", linewidth=1.5, zorder=1)
        axis.plot(value, place, "o", markersize=6, color=grey, markeredgecolor="black")
        side = 1 if value >= values[0] else -1
        axis.annotate(
            form.format(value), (value, place), (7 * side, 0), textcoords="offset points", fontsize=7, va="center",
            ha="left" if side > 0 else "right",
        )  # fmt: skip
