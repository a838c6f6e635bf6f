"""Mitigations side by side: values, intervals and notes where the numbers are; numbers and text, foreign methods."""

import pytest
from matplotlib.colors import to_hex

from tinymem.plots.base import FOREIGN
from tinymem.plots.mitigations import OWN, Measure, draw_mitigations, two_digits


def row(family, method, memorized, quality=0.9, seconds=2.0, **more):
    return {"family": family, "method": method, "memorized": memorized, "quality": quality, "seconds": seconds, **more}


MEASURES = [
    Measure("memorized", "% memorized", beside=("shown", "of shown ones"), note="attack"),
    Measure("quality", "perplexity", "log change", digits=1),
    Measure("seconds", "seconds", "seconds", digits=None),
]


@pytest.fixture
def panels():
    rows = [
        row("no mitigation", "unedited", 80.0, 30.0, None),
        row("no mitigation", "twin", 0.0, 28.0, 3.0),
        row("weight", "obs 0.1", 20.0, 33.0, memorized_low=10.0, memorized_high=40.0, shown=50.0, attack="relearn_all"),
        row("weight", "subnet", None, None, None, note="no trial"),
        row(OWN, "theirs", 0.0, 40.0, 150.0),
    ]
    figure = draw_mitigations(rows, MEASURES, "a title")
    assert figure.get_suptitle() == "a title"
    return figure.axes


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_bars_reach_from_their_foot_to_the_value(panels):
    memory, quality, seconds = panels
    assert [bar.get_width() for bar in memory.patches] == [80, 0, 20, 0]
    assert [(bar.get_x(), bar.get_width()) for bar in quality.patches] == [(30, 0), (30, -2), (30, 3), (30, 10)]
    assert [bar.get_width() for bar in seconds.patches] == [3, 2, 150]


def test_values_stand_beside_the_bars_and_a_note_in_their_place(panels):
    memory, quality, seconds = panels
    words = texts(memory)
    assert words[:4] == ["80", "0", "20 (50) relearn all", "0"] and words[-1] == "no trial"
    assert texts(quality) == ["30.0", "28.0", "33.0", "40.0"] and texts(seconds) == ["3", "2", "150"]
    assert [text for text in words[4:-1]] == ["no mitigation", "weight", OWN]


def test_a_value_below_the_first_rows_is_written_on_the_other_side_of_its_mark(panels):
    sides = {text.get_text(): (text.get_ha(), text.xy[0]) for text in panels[1].texts}
    assert sides == {"30.0": ("left", 30), "28.0": ("right", 28), "33.0": ("left", 33), "40.0": ("left", 40)}


def test_intervals_and_the_second_value_are_where_the_numbers_are(panels):
    (of_obs,) = [
        lines for lines in panels[0].collections if any(len(set(map(tuple, s))) > 1 for s in lines.get_segments())
    ]
    assert sorted(point[0] for point in of_obs.get_segments()[0]) == [10, 40]
    diamonds = [line.get_xdata()[0] for line in panels[0].get_lines() if line.get_marker() == "D"]
    assert diamonds == [50]


def test_lines_extend_what_is_not_mitigated_and_foreign_methods_have_their_colour(panels):
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert lines["unedited"].get_xdata()[0] == 80 and lines["twin"].get_xdata()[0] == 0
    marks = [line.get_color() for line in panels[0].get_lines() if line.get_marker() == "o"]
    assert [to_hex(colour) == FOREIGN for colour in marks] == [False, False, False, True]
    assert panels[1].get_xscale() == "log" and [each.get_title("left") for each in panels][1] == "perplexity"


def test_numbers_have_no_sign_of_nothing_and_two_digits_that_count():
    assert Measure("x", "x", digits=1).words(-0.04) == "0.0" and Measure("x", "x").words(-3.6) == "-4"
    assert [two_digits(value) for value in (0.0063, 5.41, 12.6, 151.2)] == ["0.0063", "5.4", "13", "151"]
