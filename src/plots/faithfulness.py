"""How well metrics tell planted models from never-planted ones."""

from __future__ import annotations

from pathlib import Path

from tinymem.plots.base import Rows, common_legend, new_figure, save_figure


def plot_faithfulness(rows: Rows, path: str | Path) -> list[Path]:
    """Draw the AUC of each metric over models and over single rows, one line per metric, first metric on top.

    rows: metric, auc_models, auc_rows, auc_rows_lowest; None for missing values.
    """
    figure, (axis,) = new_figure(1, 6.0, 1.2 + 0.22 * len(rows))
    places = [-place for place in range(len(rows))]
    for name, label, style in (
        ("auc_models", "whole models", dict(marker="s", color="0.75", markersize=8)),
        ("auc_rows", "single rows, mean over seeds", dict(marker="o", color="black", markersize=4)),
        ("auc_rows_lowest", "single rows, worst seed", dict(marker="|", color="black", markersize=7)),
    ):
        points = [(row[name], place) for row, place in zip(rows, places) if row[name] is not None]
        if points:
            axis.plot(*zip(*points), linestyle="none", label=label, **style)
    axis.axvline(0.5, color="0.4", linewidth=0.8, linestyle="--")
    axis.set(xlabel="AUC: planted against never-planted (0.5: chance)", xlim=(-0.03, 1.03))
    axis.set_yticks(places, [row["metric"] for row in rows], fontsize=8)
    common_legend(figure, [axis])
    return save_figure(figure, path)
