"""The utility that an edit should preserve: accuracy for number models, perplexity for all others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinymem.records.choose import on_numbers
from tinymem.records.table import flat_row


@dataclass(frozen=True)
class Utility:
    """The utility that an edit should preserve.

    column   accuracy (higher is better) or perplexity (lower is better)
    limits   the loss that two comparisons allow, the strict one first: points of accuracy, or % rise of perplexity
    unit     of the limits
    """

    column: str
    limits: tuple[float, float]
    unit: str

    def loss(self, now: Any, before: Any) -> Any:
        """Return a model's loss of utility, in the unit of the limits; infinity if it has no value.

        Takes numbers or arrays over draws.
        """
        if now is None:
            return math.inf
        return 100 * (before - now if self.column == ACCURACY.column else now / before - 1)

    def limit_text(self, limit: float) -> str:
        """Return a limit as text, such as "1 point of accuracy"."""
        return f"{limit:g} {self.unit.replace('points', 'point') if limit == 1 else self.unit}"


ACCURACY = Utility("mean_test_accuracy", (1.0, 5.0), "points of accuracy")
PERPLEXITY = Utility("perplexity", (2.0, 10.0), "% of perplexity")


def utility_of(record: Mapping[str, Any]) -> Utility:
    """Return the utility that edits of a record's model should preserve."""
    return ACCURACY if on_numbers(flat_row(record)) else PERPLEXITY
