"""Figures, each written as PNG and PDF. Readable in grey: series differ in marker and line style too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem import files

STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":")]
Rows = Sequence[Mapping[str, Any]]


def new_figure(panels: int, width: float = 4.0, height: float = 3.2):
    """A figure with its panels side by side, independent of any display. Returns (figure, list of axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
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


def _trade(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["percent_memorized_train"], row["mean_test_accuracy"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (memorized, quality) that no other beats in both: low first value, high second. By first value."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
