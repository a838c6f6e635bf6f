"""The bars of mitigations side by side: numbers and text, known and foreign methods, unknown seconds."""

import pytest

from tinymem.plots.base import FOREIGN
from tinymem.plots.mitigations import OWN, draw_mitigations


def row(family, method, memorized, accuracy=None, perplexity=30.0, seconds=2.0):
    return {"family": family, "method": method, "percent_memorized_train": memorized, "percent_memorized_test": None,
            "mean_test_accuracy": accuracy, "perplexity": perplexity, "seconds": seconds}  # fmt: skip


@pytest.mark.parametrize("accuracy, label", [(0.9, "mean test accuracy (%)"), (None, "perplexity")])
def test_bars_and_marks_are_where_the_numbers_are(accuracy, label):
    rows = [
        row("no mitigation", "unedited", 80.0, accuracy, seconds=None),
        row("weight", "obs 0.1", 20.0, accuracy, 33.0),
    ]
    rows += [row(OWN, "theirs", 0.0, accuracy, 40.0, 150.0)]
    memory, quality, seconds = draw_mitigations(rows).axes
    assert [bar.get_width() for bar in memory.patches] == [80.0, 20.0, 0.0]
    assert [bar.get_width() for bar in seconds.patches] == [0.0, 2.0, 150.0]
    assert [text.get_text() for text in seconds.texts] == ["-", "2", "150"]
    assert quality.get_xlabel() == label
    marks = [line.get_xdata()[0] for line in quality.get_lines() if line.get_marker() == "o"]
    assert marks == ([90.0] * 3 if accuracy else [30.0, 33.0, 40.0])
    colours = [line.get_color() for line in quality.get_lines() if line.get_marker() == "o"]
    assert [colour == FOREIGN for colour in colours] == [False, False, True]
