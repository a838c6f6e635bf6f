"""Counterfactual memorization: how much of a row's score comes from training on it (Zhang et al., 2112.12938)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tinymem.errors import UserError
from tinymem.metrics.evaluate import saved_values


def counterfactual(with_row: torch.Tensor, without_row: torch.Tensor) -> torch.Tensor:
    """Return the mean score of models trained with a row minus that of models trained without it, float64 (rows,).

    with_row, without_row    scores (models, rows) of the same rows: planted models, and never-planted twins. NaN where
                             a model has no score for a row; a row has no value if all scores of one side are missing.
                             Runs of other seeds have planted other rows: pass a seed's model and twin together
    Any value per row will do; arXiv 2112.12938 uses the token accuracy (here `exact_match_share`).
    """
    if with_row.shape[1:] != without_row.shape[1:]:
        raise UserError(f"counterfactual memorization: scores of {with_row.shape[1]} and {without_row.shape[1]} rows; "
                        "both must be of the same rows")  # fmt: skip
    return with_row.double().nanmean(0) - without_row.double().nanmean(0)


def saved_scores(records: Sequence[Mapping[str, torch.Tensor]], column: str) -> torch.Tensor:
    """Return the value of each row in each record, float64 (records, rows), NaN for none.

    records: what `tinymem.records.record.read_values` returns. Raise UserError if one lacks the column or has it for
    another number of rows.
    """
    found = []
    for number, values in enumerate(records, 1):
        kept = saved_values(values, column)
        if kept is None:
            raise UserError(f"{column}: record {number} keeps no values of it; measure it first (--metrics)")
        found.append((kept.sums / kept.weights).masked_fill(kept.weights == 0, torch.nan))
    if len({len(scores) for scores in found}) > 1:
        raise UserError(f"{column}: the records are of {', '.join(str(len(scores)) for scores in found)} rows; "
                        "take those of one split")  # fmt: skip
    return torch.stack(found)
