"""The rows of `best`: what a ranking says of each method, ready to be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinymem.metrics import registry
from tinymem.metrics.registry import Column
from tinymem.records.choose import Configuration, differing, grouped
from tinymem.records.ranking import Ranking
from tinymem.records.strength import strength_in
from tinymem.records.verdict import verdict

PERPLEXITY_RISE = 10.0  # percent: the utility limit of text and production models
OVER = "over"
SCALES = {"%": (0.0, 100.0), "0 to 1": (0.0, 1.0)}  # by a result's unit
CHANGES = {  # shown after the metrics
    column.name: column
    for column in (
        Column("perplexity_rise_percent", "%", "lower", "rise of perplexity over that of the unedited model", "rise"),
        Column(
            "trade_off", "", "lower", "(change in fraction memorized) - (change in mean test accuracy)", "trade_off"
        ),
        Column("percent_changed", "%", "", "weights that the edit changed", "changed"),
        Column("cost.seconds", "s", "lower", "time that the method took", "seconds"),
    )
}


def summary(ranking: Ranking, one: Configuration) -> dict[str, Any]:
    """Return a run's row: its summary, its rank from 1 (none for the unedited model), its verdict and OVER."""
    rank = ranking.places.index(one) + 1 if one in ranking.places else None
    over = OVER if ranking.over(one) else None
    return {**one.summary(), "rank": rank, "verdict": verdict(one), "limit": over}


def outcomes(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a run's results, in order."""
    return [*registry.columns(row, headline=True), *(name for name in CHANGES if name in row)]


def described(column: str) -> Column | None:
    """Return the description of a column of results; None for another one."""
    return registry.describe(column) or CHANGES.get(column)


def scale(column: str) -> tuple[float, float]:
    """Return the lowest and the highest value that a result can have; infinite where it has no bound."""
    found = registry.describe(column)
    return SCALES.get(found.unit if found else "", (-math.inf, math.inf))


def bounds(mean: float | None, half: float | None, ends: tuple[float, float]) -> tuple[float, float] | None:
    """Return the ends of an interval, cut off at those of a scale; None without an interval."""
    return None if mean is None or half is None else (max(ends[0], mean - half), min(ends[1], mean + half))


def setting(configuration: Configuration, varied: set[str]) -> str | None:
    """Return a method's strength and its varied hyper-parameters, in words."""
    settings = configuration.hyper_parameters
    strength = strength_in(settings)
    names = dict.fromkeys([*([strength[0]] if strength else []), *sorted(varied)])
    return ", ".join(f"{name} {settings.get(name)}" for name in names) or None


def varied_settings(group: Sequence[Configuration]) -> dict[str, set[str]]:
    """Return, for each method, the hyper-parameters that vary among its configurations."""
    by_method = grouped(group, lambda configuration: configuration.method)
    return {rivals[0].method: set(differing([rival.hyper_parameters for rival in rivals])) for rivals in by_method}
