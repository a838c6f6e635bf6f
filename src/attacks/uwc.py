"""Unlearning with control (UWC: Wang et al. 2024, arXiv 2406.09179): what is still memorized at equal utility.

Edits that cost much forget much, so they are compared only after each is mixed with the original until it costs the same.
Records of the attack `interpolate` are the curve of memorization against utility on that way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tinymem.attacks import interpolate
from tinymem.records.identity import UNEDITED
from tinymem.records.utility import Utility, utility_of

Record = Mapping[str, Any]
INTERPOLATE = interpolate.__name__.rpartition(".")[2]


@dataclass(frozen=True)
class Point:
    """A mixture of a model and the original.

    alpha       weight of the original
    memorized   in percent
    utility     accuracy or perplexity; None: not finite
    lost        of the original's utility, in the unit of `Utility.limits`; below 0 where there is more
    """

    alpha: float
    memorized: float
    utility: float | None
    lost: float


@dataclass(frozen=True)
class WayBack:
    """The way from a model back to the original: points by rising alpha, from the model itself to the original."""

    utility: Utility
    points: tuple[Point, ...]

    @property
    def at_equal_utility(self) -> float:
        """The percent memorized where the loss of utility has first fallen to the strict limit, interpolated linearly.

        That is the model's own where it costs no more.
        """
        limit, points = self.utility.limits[0], self.points
        if points[0].lost <= limit:
            return points[0].memorized
        above, below = next(
            pair for pair in zip(points, points[1:]) if pair[1].lost <= limit
        )  # the original loses nothing
        share = (limit - below.lost) / (above.lost - below.lost)  # 0 where the loss is infinite
        return below.memorized + share * (above.memorized - below.memorized)


def way_back(model: Record, attacks: Iterable[Record], original: Record | None, column: str) -> WayBack | None:
    """Return a model's way back to the original, which itself has but one point; None without records that hold utility.

    attacks: the records of attacks on it. column: what is memorized.
    """
    if original is None:
        return None
    utility, end, start = utility_of(original), original["results"], model["results"]
    mixed = [record for record in attacks if record["attack"]["name"] == INTERPOLATE]
    passed = {r["attack"]["alpha"]: r["results"] for r in mixed if utility.column in r["results"]}
    if not passed or utility.column not in start or None in (end.get(column), end.get(utility.column)):
        return None
    stops = {1.0: end} if model["kind"] == UNEDITED else {0.0: start, **passed, 1.0: end}
    points = [
        Point(alpha, results[column], now := results[utility.column], utility.loss(now, end[utility.column]))
        for alpha, results in sorted(stops.items())
        if results.get(column) is not None
    ]
    return WayBack(utility, tuple(points))
