"""Unlearning: memorization against quality with Pareto fronts, against time, and box plots of changes by method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinymem.plots import marks
from tinymem.plots.base import FOREIGN, Rows, common_legend, new_figure, new_grid, plain_numbers, save_figure, set_title
from tinymem.plots.labels import families
from tinymem.records.choose import ComparedRun, Configuration, on_numbers, pareto_front, twins
from tinymem.records.grouping import differing, grouped, key_of
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.records.interval import over_all
from tinymem.records.strength import strength_in
from tinymem.records.table import method_of
from tinymem.records.titles import HEADLINE, titles

MEMORIZED = "percent_memorized_train"
SECONDS = "cost.seconds"
LOST = "accuracy_lost"  # points of mean test accuracy, against the unedited model
LINEAR = 0.1  # points of accuracy up to which an axis is linear: less is noise, and most good runs cost little
KINDS = ("numbers", "text", "production models")
SHAPES = "os^DvPX<>hp"
LEVELS = ("neuron", "weight")  # families whose methods are drawn as shapes; all others are drawn as letters
FOREIGN_SHAPES = "8dH*p"  # of methods in users' files
Texts = list[marks.Text]  # texts beside marks, as `marks.write` takes them
UNMOVED = (0.0, 0.0)
ROOM_OF_MARK = 0.02  # inches that a mark adds to a figure's height, since overlapping marks are moved apart
WIDEST = 100 * (marks.RUINED - 1)  # percent: where boxes are cut off, at the perplexity of a ruined model
LETTERS = [f"${letter}$" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def plot_unlearning(rows: Rows, path: str | Path) -> list[Path]:
    """Draw `draw_unlearning` and write it."""
    return save_figure(draw_unlearning(rows), path)


def shows_a_trade_off(rows: Rows) -> bool:
    """Return whether the rows have memorization and quality, which `draw_unlearning` draws."""
    return bool(rows) and {MEMORIZED, quality_name(rows[0])} <= set().union(*rows)


def draw_unlearning(rows: Rows):
    """Draw memorization against what quality costs, one mark per run, with the Pareto front. Left and up is better.

    Quality of number models is the accuracy lost against the unedited model, in points, linear up to LINEAR and
    logarithmic beyond. That of other models is perplexity, where ruined ones (`marks.edge`) are in a strip at the lower
    edge, with an arrow and their perplexity. The number beside a mark is its strength. The never-planted twin is the
    target, not a rival. The area left of it is shaded, since memorizing less than a model that never saw the sequences
    is over-forgetting.
    """
    numbers, quality = on_numbers(rows[0]), quality_name(rows[0])
    rows = [row for row in rows if row.get(MEMORIZED) is not None and row.get(quality) is not None]  # some are ruined
    figure, (axis,) = new_figure(1, 7.4, 4.2 + ROOM_OF_MARK * len(rows))
    if not rows:
        return figure
    rows.sort(key=lambda row: row["kind"] != NEVER_PLANTED)
    values = [row[quality] for row in rows]
    if numbers:
        before = next((row[quality] for row in rows if row["kind"] == UNEDITED), max(values))
        values = [100 * (before - value) for value in values]
    edge, places = (math.inf, values) if numbers else (marks.edge(values), marks.cut_off(values))
    drawn, labels = [], set()
    for row, value, place in zip(rows, values, places):
        method = method_of(row)
        point, beyond = (row[MEMORIZED], place), value if value > edge else None
        label = method.replace("_", " ")
        label = f"_{label}" if label in labels else label  # one entry of the legend per method
        mark = axis.scatter(*zip(point), label=label, clip_on=False, **method_style(method))
        labels.add(label)
        drawn.append((mark, point, marks.note(strength_in(_settings(row)), beyond)))
    rivals = [(row, value) for row, value in zip(rows, values) if row["kind"] != NEVER_PLANTED]
    if rivals:
        _front_and_axes(axis, [(row[MEMORIZED], value) for row, value in rivals if value <= edge], numbers)
    if max(values) > edge:
        marks.draw_strip(axis, edge)
    for memorized in {row[MEMORIZED] for row in rows if row["kind"] == NEVER_PLANTED}:
        _over_forgetting(axis, memorized)
    common_legend(figure, [axis])
    figure.draw_without_rendering()  # only now are the marks' positions on the page known
    marks.spread(axis, drawn)
    return figure


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's settings of the method, under their own names."""
    return {name.removeprefix("method."): value for name, value in row.items() if name.startswith("method.")}


def _over_forgetting(axis, memorized: float) -> None:
    """Draw the twin's memorization as a line and shade the area below it, down to 0 %."""
    left = axis.get_xlim()[0]
    axis.axvline(memorized, color="0.45", lw=0.9, ls="--", zorder=0.5)
    if memorized > 0:
        region = dict(facecolor="0.88", edgecolor="0.7", hatch="//", linewidth=0, zorder=0.4)
        axis.axvspan(min(left, 0), memorized, label="over-forgetting", **region)
        axis.set_xlim(left=min(left, 0))


def _front_and_axes(axis, points: Sequence[tuple[float, float]], numbers: bool) -> None:
    """Draw the Pareto front of points (memorized, accuracy lost or perplexity) and set the axes, low values on top."""
    front = [(memorized, -value) for memorized, value in pareto_front([(m, -value) for m, value in points])]
    if len(front) > 1:  # a single point gives no line
        axis.plot(*zip(*front), color="black", lw=0.9, ls=":", drawstyle="steps-post", label="Pareto front", zorder=1)
    axis.set(xlabel="% memorized", ylabel="accuracy lost, points" if numbers else "perplexity (lower is better)")
    if numbers:
        axis.set_yscale("symlog", linthresh=LINEAR)
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
    axis.invert_yaxis()


def draw_scatter(configurations: Sequence[Configuration], column: str = "model.n_layers"):
    """Draw memorization against what quality costs, a panel per experiment with Pareto front, as `draw_unlearning`.

    A mark is a method with its hyper-parameters, mean over seeds; the number beside it is its strength. column: the
    setting whose values are side by side (such as model sizes). Experiments that differ in other settings are below
    each other.
    """

    def draw(axis, some: Sequence[Configuration]) -> Texts:
        numbers = some[0].on_numbers
        quality = LOST if numbers else "perplexity"
        points, texts = _marks(axis, some, MEMORIZED, quality)
        edge = math.inf if numbers or not points else marks.edge([value for _, value in points])
        inside = [point for point in points if point[1] <= edge]
        _front_and_axes(axis, inside, numbers)
        if len(inside) < len(points):
            marks.draw_strip(axis, edge)
        memorized, of_twin = _of_twin(some, MEMORIZED), _of_twin(some, quality)
        if memorized is not None and of_twin is not None:
            axis.scatter([memorized], [min(of_twin, edge)], label=NEVER_PLANTED.replace("_", " "), clip_on=False,
                         **method_style(NEVER_PLANTED))  # fmt: skip
            _over_forgetting(axis, memorized)
            texts.append(((memorized, min(of_twin, edge)), UNMOVED, ""))
        return texts

    return _panels(configurations, column, draw)


def draw_time(configurations: Sequence[Configuration], column: str = "model.n_layers"):
    """Draw memorization against a method's seconds, one panel per experiment. Left and down is better.

    Marks and panels as in `draw_scatter`; the dashed line is the unedited model, the dotted one its never-planted twin.
    """

    def draw(axis, panel: Sequence[Configuration]) -> Texts:
        unedited = [configuration.mean(MEMORIZED) for configuration in panel if configuration.method == UNEDITED]
        before = [memorized for memorized in unedited if memorized is not None]
        for memorized in before:
            axis.axhline(memorized, color="black", linewidth=0.9, linestyle="--", label=UNEDITED, zorder=1)
        if (of_twin := _of_twin(panel, MEMORIZED)) is not None:
            axis.axhline(
                of_twin, color="0.45", linewidth=0.9, linestyle=":", label=NEVER_PLANTED.replace("_", " "), zorder=1
            )
        points, texts = _marks(axis, [c for c in panel if c.method != UNEDITED], SECONDS, MEMORIZED)
        top = max([*before, *(memorized for _, memorized in points)]) or 100
        axis.set(xscale="log", xlabel="seconds", ylabel="% memorized", ylim=(-0.05 * top, 1.08 * top))
        plain_numbers(axis.xaxis)
        return texts

    return _panels(configurations, column, draw)


def _panels(configurations: Sequence[Configuration], column: str, draw):
    """Draw one panel per experiment: values of the setting `column` side by side, other differences vertically."""
    by_experiment = grouped(configurations, lambda c: key_of(c.experiment))
    settings = [some[0].experiment for some in by_experiment]
    side_by_side = sorted({each.get(column) for each in settings}, key=lambda value: (value is None, value))
    below = _row_names(settings, column)
    rows = [key_of({name: each.get(name) for name in below}) for each in settings]
    places = {row: _place(each) for row, each in zip(rows, settings)}
    order = sorted(places, key=places.__getitem__)
    figure, grid = new_grid(len(order), len(side_by_side), max(3.1, 6.4 / len(side_by_side)), 2.9)
    for axis in grid.flat:
        axis.set_visible(False)
    drawn = []
    for title, each, some, row in zip(titles(settings), settings, by_experiment, rows):
        axis = grid[order.index(row), side_by_side.index(each.get(column))]
        axis.set_visible(True)
        set_title(axis, title)
        drawn.append((axis, draw(axis, some)))
    common_legend(figure, grid.flat)
    figure.draw_without_rendering()  # only now are the marks' positions on the page known
    for axis, texts in drawn:
        marks.write(axis, texts, 5)
    return figure


def _of_twin(some: Sequence[Configuration], name: str) -> float | None:
    """Return a result of an experiment's never-planted twins, mean over its seeds; None if one lacks it."""
    return over_all([_result(twin, name) for twin in twins(run for one in some for run in one.runs)])[0]


def _result(row: Mapping[str, Any], name: str) -> float | None:
    """Return a result, or LOST in points; None without a value."""
    if name != LOST:
        return row.get(name)
    change = row.get("change_accuracy")
    return None if change is None else -100 * change


def _row_names(settings: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """Return the fewest settings that tell the experiments of a column apart, so that rows span many columns."""

    def told_apart(names: list[str]) -> int:
        return len({key_of({name: each.get(name) for name in (column, *names)}) for each in settings})

    chosen: list[str] = []
    for name in (*HEADLINE, *differing(settings)):
        if told_apart([*chosen, name]) > told_apart(chosen):
            chosen.append(name)
    return chosen


def _place(settings: Mapping[str, Any]) -> tuple:
    """Return a sort key for rows of panels: data, then the checkpoint's step or epoch."""
    return (
        *(str(settings.get(name)) for name in ("data.data_name", "data.artifact")),
        settings.get("model.step") or settings.get("training.epoch") or 0,
    )


def _marks(axis, some: Sequence[Configuration], x: str, y: str) -> tuple[list[tuple[float, float]], Texts]:
    """Draw one scatter per method. Return all points at their true positions, and the strengths to write beside them.

    Perplexities beyond the edge are drawn in the strip there.
    """
    texts: Texts = []
    everything = [(one, point) for one in some if (point := _point(one, x, y)) is not None]
    values = [value for _, (_, value) in everything]
    ruined = y == "perplexity" and bool(values)
    places = dict(zip(values, marks.cut_off(values) if ruined else values))
    edge = marks.edge(values) if ruined else math.inf
    for of_method in grouped(everything, lambda pair: pair[0].method):
        method = of_method[0][0].method
        drawn = [(left, places[value]) for _, (left, value) in of_method]
        axis.scatter(*zip(*drawn), label=method.replace("_", " "), clip_on=False, **method_style(method))
        for (one, (_, value)), place in zip(of_method, drawn):
            text = marks.note(strength_in(one.hyper_parameters), value if value > edge else None)
            texts.append((place, UNMOVED, text))
    return [point for _, point in everything], texts


def _point(one: Configuration, x: str, y: str) -> tuple[float, float] | None:
    """Return the means of two results; None if one is missing."""
    left, value = (over_all([_result(run.row, name) for run in one.runs])[0] for name in (x, y))
    if left is None or value is None:
        return None
    # Records round to milliseconds, and a logarithmic axis has no 0.
    return (max(left, 1e-3) if x == SECONDS else left), value


def method_style(method: str) -> dict[str, Any]:
    """Return a method's mark: hollow at the neuron level, filled at the weight level, otherwise a letter.

    It is the same in all figures here. Methods that are not TinyMem's are in the colour FOREIGN.
    """
    if method in (UNEDITED, NEVER_PLANTED):
        face = "white" if method == UNEDITED else "black"
        return dict(marker="*", s=110, facecolor=face, edgecolor="black", zorder=3)
    levels = families()
    if method not in levels:
        shape = FOREIGN_SHAPES[sum(method.encode()) % len(FOREIGN_SHAPES)]  # the same in every figure
        return dict(marker=shape, s=38, facecolor=FOREIGN, edgecolor=FOREIGN, linewidth=1.2, zorder=2)
    names, level = list(levels), levels[method]
    shapes = SHAPES if level in LEVELS else LETTERS
    peers = [name for name in names if levels[name] == level or (level not in LEVELS and levels[name] not in LEVELS)]
    place = peers.index(method)
    colour = f"C{names.index(method) % 10}"
    face = "none" if level == "neuron" else colour
    return dict(marker=shapes[place % len(shapes)], s=30, facecolor=face, edgecolor=colour, linewidth=1.2, zorder=2)


def draw_boxes(configurations: Sequence[Configuration]):
    """Draw the changes made by the best run of each method, one box per method over all checkpoints and seeds.

    configurations: the best ones (`tinymem.records.choose.best`). Each kind of data has a row of two panels: percent
    difference of memorization (closer to -100 is better) and of accuracy or perplexity (closer to 0 is better).
    """
    runs = [run for configuration in configurations for run in configuration.runs if run.method != UNEDITED]
    runs.sort(key=lambda run: (KINDS.index(data_kind(run)), run.row.get("data.artifact") or ""))
    kinds = grouped(runs, lambda run: (data_kind(run), run.row.get("data.artifact")))
    of_kind = [list(dict.fromkeys(run.method for run in some)) for some in kinds]
    figure, grid = new_grid(len(kinds), 2, 4.2, [0.9 + 0.24 * len(methods) for methods in of_kind])
    for (memory, quality), some, methods in zip(grid, kinds, of_kind):
        numbers = on_numbers(some[0].row)
        name = ", ".join(filter(None, (data_kind(some[0]), some[0].row.get("data.artifact"))))
        _boxes(memory, methods, some, lambda run: percent_difference(run, MEMORIZED))
        _boxes(quality, methods, some, lambda run: percent_difference(run, quality_name(run.row)))
        memory.set(xlabel="memorization, % difference")
        memory.set_title(
            f"{name}: {len(some)} best run{'s' * (len(some) > 1)}", loc="left", fontsize=10
        )  # of both panels in the row
        quality.set(xlabel=f"{'accuracy' if numbers else 'perplexity'}, % difference")
        names = [_with_strength(method, [run for run in some if run.method == method]) for method in methods]
        memory.set_yticks(range(len(methods)), names, fontsize=8)
        quality.set_yticks(range(len(methods)), [""] * len(methods))
    return figure


def _with_strength(method: str, runs: Sequence[ComparedRun]) -> str:
    """Return a method's name, with its strength if that is the same in all its best runs."""
    found = {strength_in(run.hyper_parameters) for run in runs}
    strength = found.pop() if len(found) == 1 else None
    return ", ".join([method.replace("_", " "), *([f"{strength[0]} {strength[1]:g}"] if strength else [])])


def data_kind(run: ComparedRun) -> str:
    """Return one of KINDS."""
    return KINDS[0] if on_numbers(run.row) else KINDS[2] if run.row.get("model.name") else KINDS[1]


def quality_name(row: Mapping[str, Any]) -> str:
    """Return the result that measures a run's quality."""
    return "mean_test_accuracy" if on_numbers(row) else "perplexity"


def percent_difference(run: ComparedRun, name: str) -> float | None:
    """Return the change of a result in percent of the unedited model's; None if that is 0."""
    before = run.before[name]
    return 100 * (run.row[name] - before) / before if before else None


def _boxes(axis, methods: Sequence[str], runs: Sequence[ComparedRun], value) -> None:
    """Draw horizontal boxes, first method on top; a dot is a run. White: neuron level; FOREIGN: users' methods.

    Values beyond WIDEST are drawn there, with the number beside them.
    """
    levels, beyond = families(), False
    for place, method in enumerate(methods):
        values = [value(run) for run in runs if run.method == method]
        values = [number for number in values if number is not None]
        for number in sorted(number for number in values if number > WIDEST)[-1:]:
            axis.annotate(f"\N{RIGHTWARDS ARROW} {number:.2g}", (WIDEST, place), (4, 0), textcoords="offset points",
                          fontsize=6, va="center", color="0.25", annotation_clip=False)  # fmt: skip
            beyond = True
        values = [min(number, WIDEST) for number in values]
        if values:
            colour = "black" if method in levels else FOREIGN
            fill = "white" if levels.get(method) == "neuron" else "0.8" if method in levels else "white"
            axis.boxplot(
                values, positions=[place], orientation="horizontal", widths=0.6, showfliers=False, patch_artist=True,
                manage_ticks=False, boxprops=dict(facecolor=fill, edgecolor=colour),
                medianprops=dict(color=colour, linewidth=1.8),
            )  # fmt: skip
            axis.scatter(values, [place] * len(values), s=7, color=colour, alpha=0.5, zorder=3)
    if beyond:
        axis.axvline(WIDEST, color="0.75", linewidth=0.8, zorder=0.9)
    axis.axvline(0, color="black", linewidth=0.8, linestyle="--", zorder=0.9)
    axis.set_ylim(len(methods) - 0.4, -0.6)
