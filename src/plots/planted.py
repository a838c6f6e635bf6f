"""Planted passages that remain memorized after each method: shown to it, and held out."""

from __future__ import annotations

from pathlib import Path

from tinymem.plots.base import Rows, new_figure, plain_numbers, save_figure
from tinymem.records.identity import NEVER_PLANTED, UNEDITED

REFERENCES = (NEVER_PLANTED, UNEDITED)
SHAPES = "os^Dv<>PXpd"  # one per method
RUINED = 1000.0  # factor on the lowest perplexity above which a model is ruined as a language model


def plot_shown_and_held_out(rows: Rows, path: str | Path) -> list[Path]:
    """Draw memorization against perplexity, one mark per run: filled for shown sequences, open for held-out ones.

    rows: method, perplexity, percent_memorized_shown, percent_memorized_held_out. Left and down is better. The models
    before and after planting are stars. Perplexities beyond RUINED are at the right edge.
    """
    figure, (axis,) = new_figure(1, 7.4, 4.2)
    edge = RUINED * min(row["perplexity"] for row in rows if row["perplexity"] is not None)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] not in REFERENCES))
    shapes = dict(zip(methods, SHAPES * (1 + len(methods) // len(SHAPES))))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["perplexity"] is not None]
        perplexity = [min(row["perplexity"], edge) for row in own]
        shown, held_out = ([row[f"percent_memorized_{part}"] for row in own] for part in ("shown", "held_out"))
        shape, size = ("*", 12) if method in REFERENCES else (shapes[method], 6)
        colour = "white" if method == REFERENCES[0] else "0.25"
        axis.vlines(perplexity, shown, held_out, color="0.6", linewidth=0.8, zorder=1)
        marks = dict(markeredgecolor="0.25", markersize=size, linestyle="none", marker=shape)
        axis.plot(perplexity, held_out, color="white", zorder=1.9, **marks)
        axis.plot(perplexity, shown, color=colour, label=method.replace("_", " "), **marks)
    axis.set_xscale("log")
    plain_numbers(axis.xaxis)
    axis.set(
        xlabel=f"perplexity on held-out text (right edge: {edge:.0f} or more)",
        ylabel="% memorized (full: shown, open: held out)",
        ylim=(-4, 104),
    )
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return save_figure(figure, path)
