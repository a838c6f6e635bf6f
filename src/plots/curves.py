"""Memorization and quality over training: one run, by model size, by regularizer, fine-tunings.

Seeds of the same settings share one line, their mean, with a band from the lowest seed to the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem.plots.base import STYLES, Rows, common_legend, new_figure, new_grid, plain_numbers, save_figure, set_title
from tinymem.records.choose import SEEDS, on_numbers
from tinymem.records.curves import Curve
from tinymem.records.grouping import grouped, key_of
from tinymem.records.titles import layers, titles
from tinymem.regularizers.registry import REGULARIZERS

LENGTH = (
    "training.epochs",
    "training.checkpoint_every",
    "method.ft_epochs",
)  # a longer run is on the same line
COLUMNS = 4  # maximum number of panels side by side
MEMORIZED = "percent_memorized_train"
DECAY = "training.l2_reg"
STRENGTH = tuple(f"training.{name}" for entry in REGULARIZERS for name in entry.flags) + (DECAY,)


def plot_training(rows: Rows, path: str | Path) -> list[Path]:
    """Draw loss, accuracy and memorization against epochs."""
    figure, (loss, accuracy, memory) = new_figure(3)
    losses = [name for name in rows[0] if name == "train_loss" or name.startswith("loss_")]
    accuracies = [name for name in rows[0] if name.startswith("accuracy_")]
    tasks = list(dict.fromkeys(map(_named, [*losses, *accuracies])))  # a task has the same style in both panels
    _lines(loss, rows, losses, tasks)
    _lines(accuracy, rows, accuracies, tasks)
    percentages = [name for name in rows[0] if name.startswith("percent_")]
    _lines(memory, rows, percentages, list(map(_named, percentages)))
    for axis, label in ((loss, "loss (nats per token)"), (accuracy, "test accuracy"), (memory, "% of artifacts")):
        axis.set(xlabel="epoch", ylabel=label)
    memory.set_ylim(-4, 104)
    return save_figure(figure, path)


def _named(column: str) -> str:
    """Return a column's label in the legend."""
    name = column.replace("_never_planted", "_non-members")
    for kind in ("percent_", "accuracy_", "loss_"):
        name = name.removeprefix(kind)
    return name.replace("_", " ")


def _lines(axis, rows: Rows, names: list[str], labels: list[str]) -> None:
    """Draw one line per column against epochs; skip columns without values. labels: of all panels that share styles."""
    for name in names:
        place = labels.index(_named(name))
        marker, line = STYLES[place % len(STYLES)]
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            look = dict(color=f"C{place % 10}", marker=marker, linestyle=line, markersize=3.5)
            axis.plot(*zip(*points), label=_named(name), **look)
    _whole_epochs(axis)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)  # below the panel


def _whole_epochs(axis) -> None:
    """Label only whole epochs, even if there is a single one."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def draw_by_size(curves: Sequence[Curve]):
    """Draw training runs without regularizers: one line per model size, two panels per data set."""
    order = sorted(curves, key=lambda curve: curve.settings["model.n_layers"])
    return _draw(order, lambda curve: layers(curve.settings["model.n_layers"]), ("model.n_layers",), "epoch")


def draw_regularizers(curves: Sequence[Curve]):
    """Draw training runs: one line per regularizer and strength, two panels per data set and model size.

    A data set and model size with only unregularized runs gets no panels.
    """
    both = [
        some
        for some in grouped(curves, lambda curve: key_of(_panel(curve, STRENGTH)))
        if any(map(is_regularized, some))
    ]
    curves = sorted((curve for some in both for curve in some), key=_strength)
    return _draw(curves, regularizer_labels(curves), STRENGTH, "epoch")


def draw_finetuning(curves: Sequence[Curve]):
    """Draw fine-tunings against training seconds: one line per fine-tuning set, two panels per model."""
    order = sorted(curves, key=lambda curve: ("clean", "extra", "both").index(curve.settings["method.name"]))
    return _draw(order, lambda curve: curve.settings["method.name"], ("method.name",), "seconds")


def is_regularized(curve: Curve) -> bool:
    """Return whether a run was trained with one of the registry's regularizers."""
    return any(curve.settings.get(f"training.{entry.flags[0]}") for entry in REGULARIZERS)


def regularizer_labels(curves: Sequence[Curve]) -> Callable[[Curve], str]:
    """Return curve -> label: "none", or its regularizers with the settings that differ between these curves."""
    varied = {
        name
        for name in STRENGTH
        if len({curve.settings[name] for curve in curves if curve.settings.get(name) is not None}) > 1
    }

    def label(curve: Curve) -> str:
        words = []
        for entry in REGULARIZERS:
            if curve.settings.get(f"training.{entry.flags[0]}"):
                strengths = [
                    f"{name} {_written(curve.settings[f'training.{name}'])}"
                    for name in entry.flags
                    if f"training.{name}" in varied
                ]
                words.append(" ".join([entry.name.replace("_", " "), *strengths]))
        if DECAY in varied:
            words.append(f"weight decay {curve.settings[DECAY]:g}")
        return " + ".join(words) or "none"

    return label


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _strength(curve: Curve) -> list[float]:
    """Return a sort key: runs without a regularizer first, then by regularizer and strength."""
    values = (curve.settings.get(name) for name in STRENGTH)
    return [float(value) if isinstance(value, (int, float)) else 0.0 for value in values]  # some values are words


def _draw(curves: Sequence[Curve], label: Callable[[Curve], str], hidden: tuple[str, ...], x: str):
    """Draw two panels (memorization above quality) per kind of run, with one line per label. Return the figure.

    hidden: settings that are in the label and therefore do not separate panels.
    """
    by_panel = grouped(curves, lambda curve: key_of(_panel(curve, hidden)))
    panels = [(_panel(some[0], hidden), some) for some in by_panel]
    panels.sort(key=lambda panel: [str(panel[0].get(name, "")) for name in ("data.data_name", "data.artifact")])
    labels = list(dict.fromkeys(map(label, curves)))
    styles = dict(zip(labels, _styles(len(labels), ordered=hidden == ("model.n_layers",))))
    lines = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // lines)
    figure, grid = new_grid(2 * lines, columns, max(3.2, 6.4 / columns), 2.5)
    for axis in grid.flat:
        axis.set_visible(False)
    names = titles([settings for settings, _ in panels])
    alike: dict[tuple, list] = {}
    for i, (title, (settings, some)) in enumerate(zip(names, panels)):
        memory, quality = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        set_title(memory, title)
        for line in grouped(some, label):
            style = styles[label(line[0])]
            _line(memory, line, x, MEMORIZED, style, label(line[0]))
            _line(quality, line, x, "mean_test_accuracy" if on_numbers(settings) else "perplexity", style)
        _finish(memory, quality, x, on_numbers(settings))
        alike.setdefault((settings.get("data.data_name"), settings.get("data.artifact")), []).append(quality)
    for some_axes in alike.values():  # for comparing a model and its twin, or two sizes
        ends = [axis.get_ylim() for axis in some_axes]
        for axis in some_axes:
            axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
            if axis.get_yscale() == "log":
                plain_numbers(axis.yaxis)
    common_legend(figure, grid.flat)
    return figure


def _panel(curve: Curve, hidden: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings that decide the panel of a curve."""
    ignored = {*SEEDS, *LENGTH, *hidden}
    if curve.settings.get("training.lr_decay"):  # then a longer run is another one from its first decayed step on
        ignored.discard("training.epochs")
    return {name: value for name, value in curve.settings.items() if name not in ignored}


def _styles(count: int, ordered: bool) -> list[dict[str, Any]]:
    """Return line styles that differ in marker and dashes, readable in grey; `ordered` goes from dark to light."""
    from matplotlib import colormaps

    colours = [colormaps["viridis"](0.85 * i / count) if ordered else f"C{i % 10}" for i in range(count)]
    styles = STYLES * (1 + count // len(STYLES))
    return [dict(marker=marker, linestyle=line, color=colour) for (marker, line), colour in zip(styles, colours)]


def _line(axis, curves: Sequence[Curve], x: str, name: str, style: Mapping[str, Any], label: str | None = None) -> None:
    """Draw the mean of a column over seeds, with its range; epoch 0 of a fine-tuning is a dashed horizontal line."""
    points = over_seeds(curves, x, name)
    if x == "seconds" and points and points[0][0] == 0.0:
        axis.axhline(points[0][1], color="black", linewidth=0.8, linestyle="--", zorder=0.9)
        points = points[1:]
    if not points:
        return
    place, mean, low, high = zip(*points)
    axis.set_visible(True)
    every = max(1, len(place) // 12)
    axis.plot(place, mean, markersize=4, linewidth=1.3, markevery=every, label=label, **style)
    if len(curves) > 1:
        axis.fill_between(place, low, high, color=style["color"], alpha=0.13, linewidth=0)


def over_seeds(curves: Sequence[Curve], x: str, name: str) -> list[tuple[float, float, float, float]]:
    """Return (mean x, mean, lowest, highest) of a column at each epoch measured by every run that is long enough."""
    ends = [curve.rows[-1]["epoch"] for curve in curves if curve.rows]
    by_epoch: dict[int, list[tuple[float, float]]] = {}
    for curve in curves:
        for row in curve.rows:
            if row.get(name) is not None and row.get(x) is not None:
                by_epoch.setdefault(row["epoch"], []).append((row[x], row[name]))
    points = []
    for epoch, found in sorted(by_epoch.items()):
        if len(found) == sum(end >= epoch for end in ends):
            places, values = zip(*found)
            points.append((sum(places) / len(places), sum(values) / len(values), min(values), max(values)))
    return points


def _finish(memory, quality, x: str, numbers: bool) -> None:
    """Set labels and scales of the two panels of one kind of run."""
    for axis in (memory, quality):
        axis.set_visible(True)
        if x == "seconds":
            axis.set_xscale("log")
        else:
            _whole_epochs(axis)
    memory.set(ylabel="% memorized", ylim=(-4, 104))
    quality.set(xlabel="epoch" if x == "epoch" else "seconds (dashed: before)")
    if numbers:
        quality.set(ylabel="mean test accuracy")
    else:
        quality.set(ylabel="test perplexity", yscale="log")
        plain_numbers(quality.yaxis)
    if x == "seconds":
        for axis in (memory, quality):
            plain_numbers(axis.xaxis)
