"""Faithfulness of the metrics: how well each tells models that know the planted rows from their never-planted twins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tinymem.errors import UserError
from tinymem.metrics.counterfactual import counterfactual, saved_scores
from tinymem.metrics.evaluate import saved_values
from tinymem.metrics.membership import placements
from tinymem.metrics.metric import Metric, Values, largest, no_values
from tinymem.metrics.registry import METRICS

SPLIT = "train"
SCORE = "exact_match_share"  # of counterfactual memorization, as in 2112.12938
KEPT = 0.5  # counterfactual memorization above which a row counts as memorized because it was trained on

if TYPE_CHECKING:  # naming the type would load torch
    Saved = Mapping[str, torch.Tensor]  # the values of one record, as `tinymem.records.record.read_values` returns them


def judged() -> list[Metric]:
    """Return the metrics that have a value on the planted training rows of models that nobody has edited, in order."""
    return [metric for metric in METRICS.values() if metric.measured_on(SPLIT) and "original" not in metric.needs]


def auc(planted: torch.Tensor, twin: torch.Tensor, known: str) -> float | None:
    """Return the probability that a planted value shows more knowledge than a twin's, ties 1/2 (Mann-Whitney U / mn).

    planted, twin: values, (models,) or (rows,), of one metric; NaN for none. known: "low" or "high". None where one
    side has no value.
    """
    sign = 1.0 if known == "low" else -1.0  # placements count lower values
    found = placements(sign * planted.double(), sign * twin.double())
    found = found[~found.isnan()]
    return found.mean().item() if len(found) else None


def row_scores(metric: Metric, saved: Saved) -> torch.Tensor:
    """Return the metric of each planted row alone, float64 (rows,); NaN for none, infinity if no n is enough.

    A distance between distributions is of all rows together: its rows have none.
    """
    values = _values(metric, saved)
    if metric.summary is largest:
        return no_values(values.sums)
    found = (metric.summary(Values(*pair)) for pair in zip(values.sums.split(1), values.weights.split(1)))
    return torch.tensor([math.nan if score is None else score for score in found], dtype=torch.float64)


def model_score(metric: Metric, results: Mapping[str, Any], saved: Saved) -> float:
    """Return a record's result, or if it holds none, that of its values: JSON has no infinity. NaN for none."""
    found = results.get(metric.column(SPLIT))
    found = metric.summary(_values(metric, saved)) if found is None else found
    return math.nan if found is None else float(found)


def judge(
    metric: Metric,
    planted: Sequence[tuple[Mapping[str, Any], Saved]],
    twins: Sequence[tuple[Mapping[str, Any], Saved]],
) -> dict[str, Any]:
    """Return a line of the table: the two AUCs of a metric, and its means.

    planted, twins: results and values of the records of each seed, in the same order. `auc_models` is over whole
    models; `auc_rows` is over single rows: a seed's rows in the planted model against the same rows in its twin, mean
    over seeds; `auc_rows_lowest` is that of the worst seed.
    """
    models, unplanted = (
        torch.tensor([model_score(metric, *one) for one in side], dtype=torch.float64) for side in (planted, twins)
    )
    rows = [
        auc(row_scores(metric, with_row), row_scores(metric, without), metric.known_when)
        for (_, with_row), (_, without) in zip(planted, twins)
    ]
    some = [found for found in rows if found is not None]
    return {
        "metric": metric.column(SPLIT),
        "unit": metric.unit,
        "known_when": metric.known_when,
        "auc_models": auc(models, unplanted, metric.known_when),
        "auc_rows": sum(some) / len(some) if some else None,
        "auc_rows_lowest": min(some, default=None),
        "mean_planted": _mean(models),
        "mean_twins": _mean(unplanted),
    }


def counterfactual_rows(planted: Sequence[Saved], twins: Sequence[Saved]) -> torch.Tensor:
    """Return counterfactual memorization of every planted row of every seed, float64 (rows of all seeds,).

    Each row is planted in one model, that of its seed, and absent from one, its twin.
    """
    column = f"{SCORE}_{SPLIT}"
    pairs = [[saved_scores([saved], column) for saved in pair] for pair in zip(planted, twins)]
    return torch.cat([counterfactual(*pair) for pair in pairs])


def _values(metric: Metric, saved: Saved) -> Values:
    column = metric.column(SPLIT)
    if (values := saved_values(saved, column)) is None:
        raise UserError(f"{column}: a record keeps no values of it; delete the record and run again")
    return values


def _mean(values: torch.Tensor) -> float | None:
    some = values[~values.isnan()]
    return some.mean().item() if len(some) else None
