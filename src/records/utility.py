"""What an edit must not cost: accuracy of models of number sequences, perplexity of all others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinymem.records.choose import on_numbers
from tinymem.records.table import flat_row


@dataclass(frozen=True)
class Utility:
    """What an edit must not cost.

    column   accuracy (higher is better) or perplexity (lower is better)
    limits   how much two comparisons allow to lose, the strict one first: points of accuracy, or the rise of perplexity in
             percent
    unit     of the limits
    """

    column: str
    limits: tuple[float, float]
    unit: str

    def loss(self, now: Any, before: Any) -> Any:
        """Return what a model has lost, in the unit of the limits; infinity where it has no value.

        Numbers, or arrays over draws.
        """
        if now is None:
            return math.inf
        return 100 * (before - now if self.column == ACCURACY.column else now / before - 1)

    def spelled(self, limit: float) -> str:
        """Return a limit in words, such as "1 point of accuracy"."""
        return f"{limit:g} {self.unit.replace('points', 'point') if limit == 1 else self.unit}"


ACCURACY = Utility("mean_test_accuracy", (1.0, 5.0), "points of accuracy")
PERPLEXITY = Utility("perplexity", (2.0, 10.0), "% of perplexity")


def utility_of(record: Mapping[str, Any]) -> Utility:
    """Return what an edit of the model that a record is about must not cost."""
    return ACCURACY if on_numbers(flat_row(record)) else PERPLEXITY
