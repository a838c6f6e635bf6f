"""The figure of planted passages: a line per run, best perplexity on top, bounds from both reference models."""

import pytest

from tinymem.plots import planted


def row(method, setting, perplexity, shown, held_out):
    columns = {
        f"{name}_{split}": value
        for name in planted.MEMORY
        for split, value in (("shown", shown), ("held_out", held_out))
    }
    return {"method": method, "setting": setting, "perplexity": perplexity, **columns}


def test_marks_are_where_the_numbers_are(tmp_path, monkeypatch):
    rows = [row("never_planted", None, 40.0, 0.0, 1.0), row("unedited", None, 30.0, 100.0, 100.0)]
    rows += [row("npo", "steps 20", 50.0, 10.0, 20.0), row("kfac", "rho 0.8", 35.0, None, 5.0)]
    rows += [row("subnet", "ratio 0.1", None, 0.0, 0.0), row("obs", "ratio 0.1", 9e9, 0.0, 0.0)]
    figures = []
    monkeypatch.setattr(planted, "save_figure", lambda figure, path: figures.append(figure) or [])
    planted.plot_planted(rows, tmp_path / "figure")
    *memory, cost = figures[0].axes
    names = ["kfac, rho 0.8", "npo, steps 20", "subnet, ratio 0.1", "obs, ratio 0.1"]
    assert [label.get_text() for label in memory[0].get_yticklabels()] == names
    for axis in memory:
        marks = [line.get_xydata().tolist() for line in axis.get_lines() if line.get_marker() == "o"]
        assert marks[1] == [[5.0, 0.0]] and marks[2:4] == [[[10.0, 1.0]], [[20.0, 1.0]]]
        bounds = {line.get_linestyle(): line.get_xdata()[0] for line in axis.get_lines()
                  if len(set(line.get_xdata())) == 1 and line.get_marker() != "o"}  # fmt: skip
        assert bounds["--"] == 1.0 and bounds["-"] == 100.0
    marks = [line.get_xydata()[0].tolist() for line in cost.get_lines() if line.get_marker() == "o"]
    assert marks == [[35.0, 0], [50.0, 1], pytest.approx([300.0, 2]), pytest.approx([300.0, 3])]
    colours = [line.get_color() for line in cost.get_lines() if line.get_marker() == "o"]
    assert len(set(colours)) == 3 and colours[2] == colours[3]  # one per family
