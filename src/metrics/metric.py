"""The contract of metrics: a function that returns one value per example, with a name, unit, direction and needs.

A metric is one small function in the file of its family and one line in `tinymem.metrics.registry`, or a separate file
that defines METRIC or METRICS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tinymem.errors import UserError

if TYPE_CHECKING:
    from tinymem.metrics.probe import Probe

PLANTED, EACH_TEST, ALL_TESTS = "planted sequences", "each test set", "all test sets"
TYPICAL = "typical text: retained and unseen"
KNOWN_WHEN = ("low", "high")
OVERFLOW = 690.0  # nats; records hold numbers below 2**1000, which is exp(693)
DIRECTIONS = ("lower", "higher", "twin")  # twin: the closer to the never-planted twin's, the better
NEEDS = (
    "argmax_matches", "log_probabilities", "distribution", "generation", "prefixes", "gradients", "text_sums", "before",
    "original", "twin",
)  # fmt: skip
TEXTS = {"retain": "the retain set", "unseen": "the test sets"}  # what TYPICAL text there is
# The sets of planted sequences, in the order of their columns; dup_R stands for dup_1, dup_10 ...
SPLITS = {
    "train": "planted in the training set",
    "dup_R": "planted R times each",
    "shown": "memorized and shown to the method",
    "validation": "memorized and kept for choosing settings",
    "held_out": "memorized and never shown to the method",
    "test": "backdoor triggers that were never trained on",
    "never_planted": "sequences like the planted ones that no training set holds; not the never-planted twin, which is "
    "a model",
}
COMPARED = ("train", "shown", "validation", "held_out", "never_planted")  # where forgetting is judged
ATTACKED = ("shown", "validation", "held_out", "test")  # what an attacker wants back
MEMBERS = COMPARED[:-1]  # those that are compared with never_planted


@dataclass(frozen=True)
class Values:
    """The value of each example as numerator and weight, so that any mean, interval or test can be formed later.

    sums, weights    (rows,) float64; the value of a row is sums / weights, and weight 0 means no value
    groups           (rows,) int64: rows are averaged within groups first, then over groups; None: one group
    """

    sums: torch.Tensor
    weights: torch.Tensor
    groups: torch.Tensor | None = None

    def ratios(self) -> torch.Tensor:
        """Return sum(sums) / sum(weights) of every group that has any weight, float64 (groups,)."""
        if self.groups is None:
            sums, weights = self.sums.sum()[None], self.weights.sum()[None]
        else:
            _, places = self.groups.unique(return_inverse=True)
            zeros = torch.zeros(int(places.max()) + 1 if len(places) else 0, dtype=torch.float64)
            sums, weights = zeros.index_add(0, places, self.sums), zeros.index_add(0, places, self.weights)
        return (sums / weights)[weights > 0]


def as_values(values: torch.Tensor | Values) -> Values:
    """Return plain values (rows,), of any type, with weight 1 each. NaN means that a row has no value."""
    if isinstance(values, Values):
        sums, weights = values.sums.detach().double(), values.weights.detach().double()
        return replace(values, sums=sums.masked_fill(weights == 0, 0.0), weights=weights)
    if not isinstance(values, torch.Tensor) or values.is_complex():
        raise TypeError(f"gave a {type(values).__name__}, not a tensor of real numbers or Values")
    values = values.detach().double()
    return Values(values.masked_fill(values.isnan(), 0.0), (~values.isnan()).double())


def no_values(rows: Sized) -> torch.Tensor:
    """Return the values of rows that have none: NaN, float64 (rows,)."""
    return torch.full((len(rows),), torch.nan, dtype=torch.float64)


def mean(values: Values) -> float | None:
    """Return the weighted mean, over groups if there are any; None if no row has a value."""
    ratios = values.ratios()
    return ratios.mean().item() if len(ratios) else None


def percent(values: Values) -> float | None:
    """Return the weighted mean in percent; None if no row has a value."""
    return mean(replace(values, sums=100.0 * values.sums))  # multiply first: 11 of 20 are 55, not 55.00000000000001


def median(values: Values) -> float | None:
    """Return the median of the rows that have a value, the mean of the middle two; None where none has."""
    return quantile(values, 0.5)


def largest(values: Values) -> float | None:
    """Return the largest value of a row; None where no row has a value."""
    return quantile(values, 1.0)


def quantile(values: Values, share: float) -> float | None:
    """Return the value below which this share of the rows lies, interpolated; None where no row has a value."""
    some = values.weights > 0
    found = (values.sums[some] / values.weights[some]).sort().values
    if not len(found):
        return None
    place = share * (len(found) - 1)
    low, high = found[math.floor(place)].item(), found[math.ceil(place)].item()
    return low if low == high else low + (place % 1) * (high - low)  # equal ones may be infinite


@dataclass(frozen=True, eq=False)  # compared by identity: may be a key even if a user's `needs` is a list
class Metric:
    """A metric: a function and its description.

    name      the column, or its stem: followed by _SPLIT on planted sequences (unless there is only one split) and by
              _NAME on each test set
    unit      such as "%", "0 to 1", "nats per token"; "" for none
    better    one of DIRECTIONS
    on        PLANTED, EACH_TEST, ALL_TESTS or TYPICAL
    needs     the members of NEEDS that `values` requests from the probe, so that one pass serves all metrics
    meaning   one line for tables and help
    values(probe, sequences)   per-example values: a tensor (rows,) or `Values`. sequences: Artifacts where `on` is
              PLANTED; a tuple of token tensors (rows, T), the test sets; or the name of a TYPICAL text
    summary   reduces the values to one number, or None without values
    splits    the members of SPLITS that it is measured on
    headline  whether tables show it first
    short     the name in a terminal
    known_when  "low" or "high": its value if a model knows the planted sequence
    """

    name: str
    unit: str
    better: str
    on: str
    needs: tuple[str, ...]
    meaning: str
    values: Callable[[Probe, Any], torch.Tensor | Values]
    summary: Callable[[Values], float | None] = mean
    splits: tuple[str, ...] = tuple(SPLITS)
    headline: bool = False
    short: str = ""
    known_when: str = "high"

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise UserError(f"metric {self.name!r}: the name must consist of letters, digits and _")
        for field, given, allowed in (
            ("better", (self.better,), DIRECTIONS),
            ("on", (self.on,), (PLANTED, EACH_TEST, ALL_TESTS, TYPICAL)),
            ("needs", self.needs, NEEDS),
            ("splits", self.splits, tuple(SPLITS)),
            ("known_when", (self.known_when,), KNOWN_WHEN),
        ):
            if isinstance(given, str) or not set(given) <= set(allowed):
                raise UserError(f"metric {self.name}: {field} is {given!r}; allowed: {', '.join(allowed)}")

    def column(self, part: str | None = None) -> str:
        """Return the name of the metric's column on a split or test set."""
        return f"{self.name}_{part}" if self.divided else self.name

    @property
    def divided(self) -> bool:
        """Whether the metric has several columns, one per split or test set."""
        return self.on in (EACH_TEST, TYPICAL) or (self.on == PLANTED and len(self.splits) > 1)

    def measured_on(self, split: str) -> bool:
        """Return whether the metric is measured on this set of planted sequences."""
        return self.on == PLANTED and split_kind(split) in self.splits

    @property
    def measured_under_attack(self) -> bool:
        """Whether attacked models have the metric.

        An attacker must want its sequences. It must need no twin, because the twin is attacked itself.
        """
        return "twin" not in self.needs and (self.on != PLANTED or any(map(self.measured_on, ATTACKED)))


def split_kind(split: str) -> str | None:
    """Return a split's name in SPLITS: dup_10 is dup_R. None for an unknown name."""
    kind = "dup_R" if split.startswith("dup_") and split[4:].isdigit() else split
    return kind if kind in SPLITS else None


def exponential(nats: float) -> float:
    """Return exp(nats), infinity on overflow."""
    return math.exp(nats) if not nats > OVERFLOW else math.inf
