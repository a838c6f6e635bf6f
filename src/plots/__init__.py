"""Figures, written as PNG and PDF. They are readable in grey: series also differ in marker and line style.

`plot_...` draws and writes a figure, `draw_...` returns it.
"""

from tinymem.plots.base import STYLES, Rows, new_figure, save_figure
from tinymem.plots.curves import draw_by_size, draw_finetuning, draw_regularizers, is_regularized, plot_training
from tinymem.plots.extraction import draw_extraction, plot_extraction
from tinymem.plots.faithfulness import plot_faithfulness
from tinymem.plots.labels import families, label_of, strength_of
from tinymem.plots.landscape import draw_landscapes
from tinymem.plots.mitigations import OWN, Measure, draw_mitigations, plot_mitigations, two_digits
from tinymem.plots.planted import plot_planted
from tinymem.plots.recovery import draw_recovery, plot_recovery
from tinymem.plots.side_by_side import Panel, plot_side_by_side, plot_trade_offs
from tinymem.plots.unlearning import (
    draw_boxes,
    draw_scatter,
    draw_time,
    draw_unlearning,
    plot_unlearning,
    shows_a_trade_off,
)

__all__ = [
    "Measure",
    "OWN",
    "Panel",
    "STYLES",
    "Rows",
    "draw_boxes",
    "draw_by_size",
    "draw_extraction",
    "draw_finetuning",
    "draw_landscapes",
    "draw_mitigations",
    "draw_recovery",
    "draw_regularizers",
    "draw_scatter",
    "draw_time",
    "draw_unlearning",
    "families",
    "is_regularized",
    "label_of",
    "new_figure",
    "plot_extraction",
    "plot_faithfulness",
    "plot_mitigations",
    "plot_planted",
    "plot_recovery",
    "plot_side_by_side",
    "plot_trade_offs",
    "plot_training",
    "plot_unlearning",
    "shows_a_trade_off",
    "save_figure",
    "strength_of",
    "two_digits",
]
