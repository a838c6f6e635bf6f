"""The figure of --plot: strengths beside marks, ruined models at the edge, none behind another, all of a folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from handmade import TEXT, checkpoint, edited, outcome, unlearning

from tinymem import plots
from tinymem.cli.unlearning import records_beside
from tinymem.localize.registry import METHODS
from tinymem.plots.base import new_figure
from tinymem.plots.extraction import SAMPLES, Extraction
from tinymem.plots.marks import RUINED, STRIP, write
from tinymem.plots.unlearning import FOREIGN, method_style
from tinymem.records.table import flat_row, load_records


def axis_of(*runs: tuple, before: float = 20.0):
    """The axis for runs (method, ratio, memorized, perplexity) of a text model."""
    identities = [(edited(checkpoint(**TEXT), "unedited"), outcome(90.0, None, before))]
    identities += [(edited(checkpoint(**TEXT), m, ratio=r), outcome(memorized, None, p)) for m, r, memorized, p in runs]
    rows = [flat_row({**identity, "results": found, "cost": {}, "environment": {}}) for identity, found in identities]
    return plots.draw_unlearning(rows).axes[0]


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts if text.get_text()]


def drawn_at(axis) -> list[tuple[float, float]]:
    """Where the marks are on the page, in points."""
    scale = 72 / axis.figure.dpi
    axis.figure.draw_without_rendering()
    places = [mark.get_offset_transform().transform(mark.get_offsets())[0] for mark in axis.collections]
    return [(scale * x, scale * y) for x, y in places]


def test_the_strength_is_beside_every_mark_also_of_a_users_method():
    assert texts(axis_of(("obs", 0.1, 5.0, 21.0), ("my_own", 0.25, 50.0, 22.0))) == ["0.1", "0.25"]


def test_marks_at_the_same_place_do_not_hide_each_other_and_keep_their_data():
    axis = axis_of(*((method, 0.1, 0.0, 21.0) for method in list(METHODS)[:6]))
    assert [mark.get_offsets()[0].tolist() for mark in axis.collections[1:]] == [[0.0, 21.0]] * 6
    places = drawn_at(axis)
    apart = [max(abs(x - u), abs(y - v)) for i, (x, y) in enumerate(places) for u, v in places[:i]]
    assert min(apart) >= 6
    assert max(math.dist(place, places[1]) for place in places[2:]) < 15  # in points: all stay near their true place


def test_ruined_models_do_not_stretch_the_axis():
    axis = axis_of(("obs", 0.1, 0.0, 4.5e7), ("obs", 0.01, 0.0, 1e4), ("subnet", 0.1, 2.0, 30.0))
    low, high = sorted(axis.get_ylim())
    assert low < 20 and high < 2 * STRIP * RUINED * 20
    heights = {text.get_text(): text.xy[1] for text in axis.texts if hasattr(text, "xy") and text.get_text()}
    assert RUINED * 20 < heights["0.01 \u2193 1e+04"] < heights["0.1 \u2193 4.5e+07"] and heights["0.1"] == 30
    front = next(line for line in axis.get_lines() if line.get_label() == "Pareto front")
    assert front.get_xydata().tolist() == [[2.0, 30.0], [90.0, 20.0]]


def test_a_narrow_range_of_perplexities_has_numbers_on_its_axis():
    axis = axis_of(("obs", 0.1, 0.0, 119.0), ("subnet", 0.1, 2.0, 82.0), before=85.0)
    axis.figure.draw_without_rendering()
    low, high = sorted(axis.get_ylim())
    assert sum(low <= place <= high for place in axis.yaxis.get_majorticklocs()) >= 3


def test_accuracy_is_drawn_as_points_lost_to_the_unedited_model():
    runs = [("unedited", 90.0, 0.95), ("never_planted", 1.0, 0.9505), ("obs", 0.0, 0.94), ("subnet", 5.0, 0.45)]
    identities = [(edited(checkpoint(), method), outcome(memorized, found)) for method, memorized, found in runs]
    rows = [flat_row({**identity, "results": found, "cost": {}, "environment": {}}) for identity, found in identities]
    axis = plots.draw_unlearning(rows).axes[0]
    marks = {mark.get_label(): mark.get_offsets()[0].tolist() for mark in axis.collections}
    lost = {"unedited": [90, 0], "never planted": [1, -0.05], "obs": [0, 1], "subnet": [5, 50]}
    assert marks == {name: pytest.approx(place) for name, place in lost.items()}
    heights = dict(zip((mark.get_label() for mark in axis.collections), (y for _, y in drawn_at(axis))))
    assert heights["never planted"] > heights["unedited"] > heights["obs"] > heights["subnet"]
    spread = (heights["unedited"] - heights["obs"]) / (heights["unedited"] - heights["subnet"])
    assert spread > 0.4  # one point of fifty lost, two fifths of the height: cheap runs stand apart


def test_without_a_ruined_model_there_is_no_strip():
    assert not axis_of(("obs", 0.1, 0.0, RUINED * 20)).patches


def test_a_method_is_in_the_legend_once():
    axis = axis_of(("obs", 0.1, 0.0, 21.0), ("obs", 0.2, 0.0, 22.0))
    (legend,) = axis.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["unedited", "obs", "Pareto front"]


def test_all_methods_leave_room_for_the_panel():
    runs = [(method, ratio, 90.0 * ratio, 20.0 + 10 * ratio) for method in METHODS for ratio in (0.1, 0.5, 0.9)]
    figure = axis_of(*runs).figure
    lines = [Extraction(method, f"{method} {ratio}", [0.5] * len(SAMPLES)) for method, ratio, *_ in runs]
    for drawn in (figure, plots.draw_extraction("shown", lines)):
        drawn.draw_without_rendering()
        (axis,), (legend,) = drawn.axes, drawn.legends
        panel, below = axis.get_window_extent(), legend.get_window_extent()
        assert panel.height / drawn.dpi > 2.8 and below.y1 < panel.y0 and below.y0 >= 0


def test_methods_of_users_have_a_colour_of_their_own():
    assert method_style("my_own")["edgecolor"] == method_style("another")["edgecolor"] == FOREIGN
    assert FOREIGN not in {method_style(name)["edgecolor"] for name in METHODS}


@pytest.mark.parametrize("epochs", [[1], [1, 2], [1, 2, 3]])
def test_the_epochs_of_a_short_training_are_whole(tmp_path, epochs, monkeypatch):
    figures: list[Any] = []
    monkeypatch.setattr("tinymem.plots.curves.save_figure", lambda figure, path: figures.append(figure))
    rows = [{"epoch": epoch, "train_loss": 1.0, "accuracy_x": 0.5, "percent_x": 5.0} for epoch in epochs]
    plots.plot_training(rows, tmp_path / "training")
    for axis in figures[0].axes:
        ticks = axis.get_xticks()
        assert len(ticks) and all(tick == int(tick) for tick in ticks)


def test_a_task_looks_the_same_in_each_panel_of_a_training(tmp_path, monkeypatch):
    figures: list[Any] = []
    monkeypatch.setattr("tinymem.plots.curves.save_figure", lambda figure, path: figures.append(figure))
    row = {"epoch": 1, "train_loss": 1.0, "loss_two": 2.0, "accuracy_one": 0.1, "accuracy_two": 0.5}
    plots.plot_training([row | {"percent_memorized_never_planted": 0.0}], tmp_path / "training")
    losses, accuracies, memorized = (
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axis.lines} for axis in figures[0].axes
    )
    assert losses["two"] == accuracies["two"] and accuracies["one"] not in losses.values()
    assert list(memorized) == ["memorized non-members"]  # not the twin, which other tables call never_planted


@dataclass
class FolderOfRuns:
    """What `records_beside` uses of a subject."""

    folder: Path
    identity: dict[str, Any]


def test_plot_draws_the_runs_of_earlier_commands_on_the_same_task_too(tmp_path):
    identity = checkpoint()
    runs = {("subnet", ("ratio", 0.3)): outcome(1.0), ("subnet", ("ratio", 0.02)): outcome(2.0)}
    unlearning(tmp_path, identity, {("unedited",): outcome(9.0), **runs, ("mine",): outcome(3.0)})
    unlearning(tmp_path, checkpoint(seed=1), {("unedited",): outcome(8.0), ("obs", ("ratio", 0.1)): outcome(4.0)})
    now = [record for record in load_records(tmp_path) if record["results"]["percent_memorized_train"] in (9.0, 1.0)]
    every = records_beside(FolderOfRuns(tmp_path, identity), now)
    assert [record["results"]["percent_memorized_train"] for record in every] == [9.0, 2.0, 1.0, 3.0]


def test_texts_cover_neither_lines_nor_each_other_nor_the_axes():
    from matplotlib.transforms import Bbox

    figure, (axis,) = new_figure(1)
    places = [(0.0, 0.0), (0.0, 0.0), (5.0, 5.0), (10.0, 10.0)]
    axis.scatter(*zip(*places))
    axis.plot([0, 5, 10], [0, 5, 10], drawstyle="steps-post")
    figure.draw_without_rendering()
    write(axis, [(place, (0.0, 0.0), f"0.{number}5") for number, place in enumerate(places)], 5.5)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    corners = axis.transData.transform([(0, 0), (5, 0), (5, 5), (10, 5), (10, 10)])
    for (x, y), (u, v) in zip(corners, corners[1:]):
        line = Bbox.from_extents(min(x, u) - 0.5, min(y, v) - 0.5, max(x, u) + 0.5, max(y, v) + 0.5)
        assert not any(box.overlaps(line) for box in boxes)
