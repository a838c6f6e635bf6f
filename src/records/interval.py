"""95 % intervals: of means over seeds (Student's t) and of shares of sequences (Wilson), without scipy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

UPPER = 0.975  # the quantile at the upper end of a 95 % interval


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return (mean, half width of the 95 % interval).

    The half width is None for a single value, which has no spread. values: at least one, independent and
    approximately normal.
    """
    mean = statistics.fmean(values)
    count = len(values)
    if count < 2:
        return mean, None
    return mean, t_quantile(UPPER, count - 1) * statistics.stdev(values) / math.sqrt(count)


def over_all(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return `mean_and_interval` of values, or (None, None) if any are missing or there are none.

    A missing value may be infinite, so a mean over the others could look too good.
    """
    known = [value for value in values if value is not None]
    return mean_and_interval(known) if known and len(known) == len(values) else (None, None)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Return the interval of a share (0 to 1) of `count` sequences (Wilson 1927), which has a width even at 0 and 1."""
    z = statistics.NormalDist().inv_cdf(UPPER)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def fixed(value: float, digits: int, sign: str = "") -> str:
    """Return a number with this many decimals, never -0. sign: "+" always writes a sign."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def with_range(value: float, low: float, high: float, digits: int) -> str:
    """Return a number with the ends of its interval or range."""
    return f"{fixed(value, digits)} ({fixed(low, digits)} to {fixed(high, digits)})"


def with_half_width(value: float, half: float | None, digits: int) -> str:
    """Return a number with the half width of its interval; without it if that is None."""
    return f"{fixed(value, digits)} ± {half:.{digits}f}" if half is not None else fixed(value, digits)


@lru_cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return Student's t quantile of this probability (0.5 to 1, exclusive). freedom: degrees of freedom, >= 1."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the bracket until it reaches double precision
        middle = (low + high) / 2
        if (1 + _inside(middle, freedom)) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _inside(angle: float, freedom: int) -> float:
    """Return P(|T| < tan(angle) * sqrt(freedom)): Abramowitz & Stegun 26.7.3 (odd degrees) and 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
