"""The figures through their Figure objects: panels, lines, marks, and what stands on the axes."""

import pytest
from handmade import (
    DATA,
    TEXT,
    attacked,
    checkpoint,
    edited,
    everything,
    outcome,
    production,
    trained,
    training,
    unlearning,
)
from matplotlib.colors import to_hex

from tinymem import plots
from tinymem.localize.registry import METHODS
from tinymem.plots.base import save_figure
from tinymem.plots.curves import over_seeds, regularizer_labels
from tinymem.plots.marks import RUINED, STRIP
from tinymem.plots.unlearning import FOREIGN, WIDEST, method_style
from tinymem.records.choose import best, configurations, experiments, unlearning_runs
from tinymem.records.cost import Cost
from tinymem.records.curves import Curve, training_curves
from tinymem.records.record import write_record
from tinymem.records.table import named_records


def curve(*values: tuple[int, float], **settings) -> Curve:
    rows = [{"epoch": epoch, **outcome(memorized)} for epoch, memorized in values]
    data = {f"data.{name}": value for name, value in DATA.items()}
    sizes = {"data.seed": 0, "model.n_layers": 2, "training.epochs": values[-1][0]}
    return Curve({"kind": "train", **data, **sizes, **settings}, rows)


def named(section: str, **settings) -> dict:
    """Settings as columns."""
    return {f"{section}.{name}": value for name, value in settings.items()}


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(curves, configurations) of a small study with everything in it."""
    folder = everything(tmp_path_factory.mktemp("study"))
    records = list(named_records(folder))
    return training_curves(folder, records), configurations(unlearning_runs(records, tuple(METHODS)))


def test_training_has_a_line_a_model_size_with_a_band_over_seeds(study):
    plain = [c for c in study[0] if c.run == "train" and not plots.is_regularized(c)]
    figure = plots.draw_by_size(plain)
    memory, accuracy = panels(figure)
    assert legend(figure) == ["2 layers", "4 layers"] and memory.get_title() == "increment, backdoor"
    assert [line.get_ydata().tolist() for line in memory.get_lines()] == [[40.5, 80.5]] * 2
    assert accuracy.get_lines()[0].get_ydata() == pytest.approx([0.91, 0.92])
    assert len(memory.collections) == len(accuracy.collections) == 2
    styles = {(line.get_marker(), line.get_linestyle()) for line in memory.get_lines()}
    assert len(styles) == 2  # readable without colour


def test_other_data_has_panels_of_its_own_and_text_shows_perplexity():
    figure = plots.draw_by_size(
        [curve((1, 5.0)), curve((1, 5.0), **named("data", **TEXT)), curve((1, 5.0), **named("data", num_2=10))]
    )
    shown = panels(figure)
    assert len(shown) == 6 and [axis.get_ylabel() for axis in shown].count("test perplexity") == 1
    assert {axis.get_title() for axis in shown if axis.get_title()} == {
        "increment, backdoor", "increment, backdoor, num_2 10", "wiki_fast, noise"
    }  # fmt: skip


def test_regularizers_have_a_line_each_and_panels_only_where_there_are_some(study):
    trained = [c for c in study[0] if c.run == "train"] + [curve((1, 5.0), **named("model", n_layers=8))]
    figure = plots.draw_regularizers(trained)
    assert len(panels(figure)) == 4 and legend(figure) == ["none", "spectral norm"]
    both = [named("training", spectral_reg=True, lam=lam) for lam in (0.1, 0.01)]
    curves = [curve((1, 5.0)), *(curve((1, 5.0), **settings) for settings in both)]
    assert list(map(regularizer_labels(curves), curves)) == ["none", "spectral norm lam 0.1", "spectral norm lam 0.01"]


def test_finetuning_is_drawn_against_seconds_with_the_model_before_as_a_dashed_line(study):
    figure = plots.draw_finetuning([c for c in study[0] if c.run == "finetune"])
    assert legend(figure) == ["clean", "extra", "both"] and len(panels(figure)) == 4
    memory = panels(figure)[0]
    lines = {line.get_label(): line for line in memory.get_lines() if not line.get_label().startswith("_")}
    assert lines["extra"].get_xdata().tolist() == [10, 20] and lines["extra"].get_ydata().tolist() == [60, 40]
    assert memory.get_xscale() == "log"
    assert [line for line in memory.get_lines() if line.get_ydata()[0] == 80 and line.get_linestyle() == "--"]


def test_seeds_that_end_early_or_measure_elsewhere():
    long, short, other = curve((1, 10.0), (2, 20.0), (4, 40.0)), curve((1, 30.0), (2, 40.0)), curve((3, 1.0), (4, 0.0))
    assert over_seeds([long, short], "epoch", "percent_memorized_train") == [
        (1, 20, 10, 30), (2, 30, 20, 40), (4, 40, 40, 40)
    ]  # fmt: skip
    assert over_seeds([long, other], "epoch", "percent_memorized_train") == [(4, 20, 0, 40)]
    assert over_seeds([long], "epoch", "loss") == []


def test_of_a_run_that_was_made_longer_the_longest_record_counts(tmp_path):
    rows = [{"epoch": epoch, **outcome(epoch)} for epoch in (1, 2, 3)]
    training(tmp_path, trained(epochs=3), rows)
    training(tmp_path, trained(epochs=1), rows[:1])
    (tmp_path / "metrics.json").unlink()
    alone = training_curves(tmp_path, list(named_records(tmp_path)))
    assert sorted(len(c.rows) for c in alone) == [1, 1]  # two records, one row each
    training(tmp_path, trained(epochs=2), rows)
    (found,) = training_curves(tmp_path, list(named_records(tmp_path)))
    assert [row["epoch"] for row in found.rows] == [1, 2, 3]


def test_a_copy_of_a_run_counts_once(tmp_path):
    rows = [{"epoch": epoch, **outcome(10.0 * epoch)} for epoch in (1, 2)]
    for place in ("run", "copy"):
        training(tmp_path / place, trained(), rows)
    training(tmp_path / "other", trained(seed=1), rows)
    assert len(training_curves(tmp_path, list(named_records(tmp_path)))) == 2


def test_runs_of_different_length_share_a_line_unless_their_learning_rate_decays(tmp_path):
    for epochs in (2, 3):
        rows = [{"epoch": epoch, **outcome(10.0 * epoch)} for epoch in range(1, epochs + 1)]
        training(tmp_path / f"constant_{epochs}", trained(epochs=epochs), rows)
        training(tmp_path / f"falling_{epochs}", trained(epochs=epochs, lr_decay=0.5), rows)
    curves = training_curves(tmp_path, list(named_records(tmp_path)))
    figure = plots.draw_by_size(curves)
    assert len(panels(figure)) == 2 * 3  # one of both constant runs, one of each falling one; two panels each


def test_scatter_has_a_panel_a_model_size_a_mark_a_configuration_and_the_front(study):
    numbers = [c for c in study[1] if c.on_numbers]
    figure = plots.draw_scatter(numbers)
    assert [axis.get_title() for axis in panels(figure)] == [
        "increment, backdoor, 2 layers, epoch 50", "increment, backdoor, 4 layers, epoch 50"
    ]  # fmt: skip
    assert legend(figure) == ["unedited", "slimming", "durable", "Pareto front"]
    axis = panels(figure)[0]
    marks = {group.get_label(): sorted(group.get_offsets().tolist()) for group in axis.collections}
    assert marks["durable"] == [pytest.approx([50, 5]), pytest.approx([70, 3])]  # points of accuracy lost
    assert marks["unedited"] == [pytest.approx([80.5, 0])]
    (front,) = axis.get_lines()
    assert front.get_xydata().tolist() == [pytest.approx(p) for p in ([50, 5], [60, 1], [80.5, 0])]
    assert axis.yaxis_inverted() and axis.get_yscale() == "symlog" and "accuracy lost" in axis.get_ylabel()


def test_pythia_has_a_row_a_step_and_perplexity_the_better_the_higher(study):
    production = [c for c in study[1] if "model.name" in c.experiment]
    figure = plots.draw_scatter(production, column="model.name")
    assert [axis.get_title() for axis in panels(figure)] == ["pythia-160m, step 36000", "pythia-160m, step 143000"]
    axis = panels(figure)[0]
    assert axis.yaxis_inverted() and axis.get_yscale() == "log" and "perplexity" in axis.get_ylabel()
    assert axis.get_lines()[0].get_xydata().tolist() == [[4, 73.5], [16, 70]]


def test_models_that_differ_in_more_than_their_name_stand_side_by_side(tmp_path):
    for model in ("a", "b"):
        for step in (1, 2):
            identity = production(model, step, memorized_data=f"{model}{step}")
            runs = {("unedited",): outcome(16.0, None, 70.0), ("obs",): outcome(4.0, None, 73.5)}
            unlearning(tmp_path / f"{model}{step}", identity, runs)
    figure = plots.draw_scatter(configurations(unlearning_runs(named_records(tmp_path))), column="model.name")
    assert panels(figure)[0].get_gridspec().get_geometry() == (2, 2) and len(panels(figure)) == 4


def test_an_unedited_model_alone_and_runs_that_took_no_time(tmp_path):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0)})
    alone = configurations(unlearning_runs(named_records(tmp_path)))
    assert len(panels(plots.draw_time(alone))) == len(panels(plots.draw_scatter(alone))) == 1
    unlearning(tmp_path, checkpoint(), {("obs",): outcome(1.0)}, seconds=0.0)
    axis = panels(plots.draw_time(configurations(unlearning_runs(named_records(tmp_path)))))[0]
    assert axis.collections[0].get_offsets().tolist() == [[1e-3, 1]]


def test_the_twin_is_a_star_and_no_rival_and_a_line_over_time(tmp_path):
    runs = {
        ("unedited",): outcome(80.0, 0.9),
        ("never_planted",): outcome(5.0, 0.95),
        ("durable", ("ratio", 0.1)): outcome(9.0, 0.8),
    }
    unlearning(tmp_path, checkpoint(), runs)
    found = configurations(unlearning_runs(named_records(tmp_path), tuple(METHODS)))
    (axis,) = panels(plots.draw_scatter(found))
    marks = {group.get_label(): group.get_offsets().tolist() for group in axis.collections}
    assert marks["never planted"] == [pytest.approx([5, -5])] and marks["durable"] == [pytest.approx([9, 10])]
    assert axis.get_lines()[0].get_xydata().tolist() == [pytest.approx([9, 10]), [80, 0]]  # the front
    (time,) = panels(plots.draw_time(found))
    assert {line.get_label(): line.get_ydata()[0] for line in time.get_lines()} == {
        "unedited": 80.0,
        "never planted": 5.0,
    }


def test_time_is_logarithmic_and_the_unedited_model_a_line(study):
    figure = plots.draw_time([c for c in study[1] if c.on_numbers])
    axis = panels(figure)[0]
    assert axis.get_xscale() == "log" and axis.get_lines()[0].get_ydata()[0] == 80.5
    assert {group.get_label() for group in axis.collections} == {"slimming", "durable"}


def test_boxes_hold_the_best_run_of_every_checkpoint_and_seed(study):
    chosen = [c for group in experiments(study[1]) for c in best(group, 10)]
    figure = plots.draw_boxes(chosen)
    assert len(panels(figure)) == 6
    titles = [axis.get_title(loc="left") for axis in panels(figure)]  # one a row, none of the panels on the right
    assert titles[1::2] == [""] * 3 and titles[0] == "numbers, backdoor: 8 best runs"
    assert [title.partition(":")[0] for title in titles[::2]] == [
        "numbers, backdoor",
        "text, noise",
        "production models",
    ]
    memory = panels(figure)[0]
    dots = [point for group in memory.collections for point in group.get_offsets().tolist()]
    slimming, durable = ([x for x, y in dots if y == place] for place in (0, 1))
    assert sorted(durable) == pytest.approx([100 * (50 - b) / b for b in (81, 81, 80, 80)]) and len(slimming) == 4


def test_marks_of_all_methods_differ_without_colour():
    marks = {(style["marker"], style["facecolor"] == "none") for style in map(method_style, METHODS)}
    assert len(marks) == len(METHODS) and method_style("new one")["marker"]


def test_the_same_figure_gives_the_same_files(study, tmp_path):
    _, pdf = save_figure(plots.draw_scatter(study[1]), tmp_path / "figure")
    assert b"CreationDate" not in pdf.read_bytes()


def test_runs_under_an_attack_are_in_no_panel_and_no_box(tmp_path):
    unlearning(tmp_path, checkpoint(), {("unedited",): outcome(9.0), ("obs",): outcome(4.0)})
    write_record(tmp_path, attacked(edited(checkpoint(), "obs")), outcome(8.0), Cost(1.0, 1.0), "cpu")
    found = configurations(unlearning_runs(named_records(tmp_path)))
    for draw in (plots.draw_time, plots.draw_scatter):
        shown = panels(draw(found))
        assert [axis.get_title().count("attack") for axis in shown] == [0]
    dots = [
        point for axis in panels(plots.draw_boxes(found)) for group in axis.collections for point in group.get_offsets()
    ]
    assert len(dots) == 2 and sorted(x for x, _ in dots) == pytest.approx([100 * (4 - 9) / 9, 0])


def test_strengths_ruined_models_and_foreign_methods(tmp_path):
    """As in --plot's figure: numbers beside marks, an axis that no run stretches, a colour for foreign methods."""
    runs = {("unedited",): outcome(90.0, None, 20.0), ("obs", ("ratio", 0.1)): outcome(0.0, None, 4.5e7)}
    runs |= {("subnet", ("ratio", 0.3)): outcome(5.0, None, 30.0), ("my_own", ("steps", 7)): outcome(9.0, None, 25.0)}
    unlearning(tmp_path, checkpoint(**TEXT), runs)
    found = configurations(unlearning_runs(named_records(tmp_path), tuple(METHODS)))
    (axis,) = panels(plots.draw_scatter(found))
    texts = {text.get_text() for text in axis.texts if text.get_text()}
    assert {"0.3", "7", "0.1 \u2193 4.5e+07"} < texts and max(axis.get_ylim()) < 2 * STRIP * RUINED * 20
    marks = {group.get_label(): group for group in axis.collections}
    assert to_hex(marks["my own"].get_edgecolors()[0]) == FOREIGN != to_hex(marks["subnet"].get_edgecolors()[0])
    assert marks["subnet"].get_offsets().tolist() == [[5, 30]] and marks["obs"].get_offsets()[0][1] > RUINED * 20
    front = axis.get_lines()[0].get_xydata().tolist()
    assert front == [[5, 30], [9, 25], [90, 20]]  # without the ruined one
    (time,) = panels(plots.draw_time(found))
    assert {"0.3", "7", "0.1"} <= {text.get_text() for text in time.texts}

    memory, quality = panels(plots.draw_boxes(found))
    dots = [point for group in quality.collections for point in group.get_offsets().tolist()]
    assert max(x for x, _ in dots) == WIDEST < 1e4 and [t.get_text() for t in quality.texts] == ["\u2192 2.2e+08"]
    names = ["obs, ratio 0.1", "subnet, ratio 0.3", "my own, steps 7"]
    assert [label.get_text() for label in memory.get_yticklabels()] == names
    edges = [to_hex(patch.get_edgecolor()) for patch in memory.patches]
    assert edges.count(FOREIGN) == 1 and len(edges) == 3
