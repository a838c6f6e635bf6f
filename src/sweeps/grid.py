"""Grids: setting -> its values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Grid = Mapping[str, Sequence[Any]]


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """Return every combination of a grid's values; the last setting changes fastest.

    A value that is a mapping sets several settings at once, under their own names instead of the grid's:
    {"extra": ({"num_2": 3000, "num_3": 3000}, {"num_2": 10000, "num_3": 10000})}.
    """
    found = []
    for values in itertools.product(*grid.values()):
        settings: dict[str, Any] = {}
        for name, value in zip(grid, values):
            settings |= value if isinstance(value, Mapping) else {name: value}
        found.append(settings)
    return found
