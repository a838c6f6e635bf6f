"""Unlearning with control (UWC: Wang et al. 2024, arXiv 2406.09179): what is still memorized at equal utility.

Edits that cost more utility forget more. So each edit is mixed with the original until all cost the same, and only then
compared. Records of the attack `interpolate` give the curve of memorization against utility on that way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinymem.attacks import interpolate
from tinymem.records.identity import UNEDITED, Record
from tinymem.records.utility import Utility, utility_of

INTERPOLATE = interpolate.__name__.rpartition(".")[2]


@dataclass(frozen=True)
class Point:
    """A mixture of a model and the original.

    alpha       weight of the original
    memorized   in percent
    utility     accuracy or perplexity; None: not finite
    lost        loss of the original's utility, in the unit of `Utility.limits`; below 0 for a gain
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

        If the model itself loses no more than that, return its own percentage.
        """
        limit, points = self.utility.limits[0], self.points
        if points[0].lost <= limit:
            return points[0].memorized
        # There is such a point, since the original loses nothing.
        above, below = next(pair for pair in zip(points, points[1:]) if pair[1].lost <= limit)
        share = (limit - below.lost) / (above.lost - below.lost)  # 0 where the loss is infinite
        return below.memorized + share * (above.memorized - below.memorized)


def way_back(model: Record, attacks: Iterable[Record], original: Record | None, column: str) -> WayBack | None:
    """Return a model's way back to the original (one point for the original); None without records that hold utility.

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
