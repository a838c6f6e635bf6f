"""The rows of `best`: the best run of each method in a ranking, ready to be shown."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymem.errors import UserError
from tinymem.metrics import registry
from tinymem.metrics.registry import Column
from tinymem.records.choose import Configuration
from tinymem.records.interval import share_interval
from tinymem.records.ranking import Ranking
from tinymem.records.record import ANY, BOUNDS, limits, read_values
from tinymem.records.strength import strength_in
from tinymem.records.verdict import verdict

PERPLEXITY_RISE = 10.0  # percent: the utility limit of text and production models
OVER = "over"
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


def summary(ranking: Ranking, one: Configuration, folder: str | Path) -> dict[str, Any]:
    """Return a run's row: its summary, its rank from 1 (None for the unedited model), its verdict and OVER.

    folder: where the records were read. The intervals of a single seed come from its sequences, if their values are
    stored next to the record.
    """
    rank = ranking.places.index(one) + 1 if one in ranking.places else None
    over, row = OVER if ranking.over(one) else None, one.summary()
    if len(one.runs) == 1:
        row |= over_sequences(row, Path(folder) / one.runs[0].row["record"])
    return {**row, "rank": rank, "verdict": verdict(one), "limit": over}


def over_sequences(row: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Return NAME_ci95 of percentages of sequences, from the values stored next to the record at `path`.

    This is the longer side of Wilson's interval, so that 0 of 20 is 0 to 16 %. A damaged file gives no interval.
    """
    if not path.with_suffix(".safetensors").exists():
        return {}
    from tinymem.metrics.evaluate import saved_values  # late: it loads torch

    kept: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        kept = read_values(path)
    found = {}
    for name in outcomes(row):
        values, mean = saved_values(kept, name), row[name]
        if values is not None and mean is not None and scale(name) == BOUNDS["%"]:
            low, high = share_interval(mean / 100, int((values.weights > 0).sum()))
            found[f"{name}_ci95"] = max(mean - 100 * low, 100 * high - mean)
    return found


def outcomes(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a run's results, in order."""
    return [*registry.columns(row, headline=True), *(name for name in CHANGES if name in row)]


def described(column: str) -> Column | None:
    """Return the description of a column of results; None for any other column."""
    return registry.describe(column) or CHANGES.get(column)


def scale(column: str) -> tuple[float, float]:
    """Return the lowest and highest value that a result can have, infinite if unbounded."""
    found = registry.describe(column)
    return limits(found) if found else ANY


def bounds(mean: float | None, half: float | None, ends: tuple[float, float]) -> tuple[float, float] | None:
    """Return the ends of an interval, clipped to a scale; None without an interval."""
    return None if mean is None or half is None else (max(ends[0], mean - half), min(ends[1], mean + half))


def setting(configuration: Configuration, varied: set[str]) -> str | None:
    """Return a method's strength and its varied hyper-parameters, as text."""
    settings = configuration.hyper_parameters
    strength = strength_in(settings)
    names = dict.fromkeys([*([strength[0]] if strength else []), *sorted(varied)])
    return ", ".join(f"{name} {settings.get(name)}" for name in names) or None
