"""Every metric, one line each, in the order of their columns; and look-up of columns by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from tinymem.data.numbers import CONSTANTS
from tinymem.errors import UserError
from tinymem.metrics import drift, memorization, quality
from tinymem.metrics.metric import EACH_TEST, PLANTED, SPLITS, TEXTS, TYPICAL, Metric, split_kind
from tinymem.plugins import load_plugin

PUBLISHED = (memorization.__name__, quality.__name__)  # the study's metrics: what a training measures
METRICS = {
    metric.name: metric
    for metric in (
        memorization.PERCENT_MEMORIZED,
        memorization.PERCENT_CLEAN_RECOVERY,
        quality.MEAN_TEST_ACCURACY,
        quality.MEAN_TEST_ACCURACY_NO_PAD,
        quality.PERPLEXITY,
        quality.PERPLEXITY_BATCH_MEAN,
        quality.ACCURACY,
        quality.LOSS,
        drift.KL,
        drift.FLIP_RATE,
        drift.NDCG,
    )
}
DEFAULTS = tuple(name for name, metric in METRICS.items() if metric.values.__module__ in PUBLISHED)
TEST_SETS = (*CONSTANTS, "test", "random")  # names of test sets: number tasks, text, production models


@dataclass(frozen=True)
class Column:
    """The description of a column in tables, figures and texts.

    short     the name in a terminal
    headline  whether tables show it first
    detail    whether summaries leave it out, as one of many of its kind (a duplication, a single test set)
    """

    name: str
    unit: str
    better: str
    meaning: str
    short: str
    headline: bool = False
    detail: bool = False


def chosen(metrics: Iterable[str | Metric] | None = None) -> list[Metric]:
    """Return metrics, given as such or by name, in the registry's order; DEFAULTS for None.

    Raise UserError for an unknown name and for two metrics with the same name.
    """
    found: dict[str, Metric] = {}
    for given in DEFAULTS if metrics is None else metrics:
        if not isinstance(given, Metric) and given not in METRICS:
            raise UserError(f"--metrics {given}: no such metric; choose from {', '.join(METRICS)}")
        metric = given if isinstance(given, Metric) else METRICS[given]
        if found.get(metric.name, metric) is not metric or METRICS.get(metric.name, metric) is not metric:
            raise UserError(f"--metrics {metric.name}: there are two metrics of this name; rename one")
        found[metric.name] = metric
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(found.values(), key=lambda metric: places.get(metric.name, len(places)))


def plugin_metrics(place: str) -> list[Metric]:
    """Return the metrics that a user's file or module defines as METRIC or METRICS. Raise UserError for none."""
    module = load_plugin(place, "--metrics")
    found = [*getattr(module, "METRICS", ()), *([module.METRIC] if hasattr(module, "METRIC") else [])]
    if not found or not all(isinstance(metric, Metric) for metric in found):
        raise UserError(f"--metrics {place}: defines no METRIC or METRICS of the type tinymem.metrics.metric.Metric")
    return found


def missing(results: Iterable[str], metrics: Iterable[str | Metric] | None = None) -> list[str | Metric]:
    """Return the chosen metrics without a column in the results."""
    wanted = {metric.name: metric for metric in chosen(metrics)}
    there = {found[0].name for column in results if (found := _find(column, wanted.values()))}
    return [metric if name not in METRICS else name for name, metric in wanted.items() if name not in there]


def describe(column: str, more: Iterable[Metric] = ()) -> Column | None:
    """Return the description of a metric's column, None for other columns. more: metrics from users' files."""
    found = _find(column, [*METRICS.values(), *more])
    return _column(*found) if found else None


def needs_twin(column: str) -> bool:
    """Return whether a column is of a metric that has no value without a never-planted twin."""
    found = _find(column, METRICS.values())
    return found is not None and "twin" in found[0].needs


def better_of(column: str, more: Iterable[Metric] = ()) -> str | None:
    """Return "lower", "higher" or "twin" for a metric's column, None for other columns."""
    found = describe(column, more)
    return found.better if found else None


def columns(
    present: Iterable[str] | None = None, headline: bool = False, detail: bool = True, more: Iterable[Metric] = ()
) -> list[str]:
    """Return columns of metrics, ordered by METRICS, then by SPLITS and repeats; test sets in their given order.

    present   names to choose from (non-metrics are left out); None: all that do not depend on the data
    headline  only columns that tables show first
    detail    include duplications and single test sets
    """
    every = [*METRICS.values(), *more]
    if present is None:
        present = [column.name for column in documented(every) if not column.detail]
    found = sorted(filter(None, (_find(name, every) for name in dict.fromkeys(present))), key=partial(_place, every))
    described = [_column(metric, part) for metric, part in found]
    return [column.name for column in described if (detail or not column.detail) and (column.headline or not headline)]


def documented(metrics: Iterable[Metric] | None = None) -> list[Column]:
    """Return every column in order, for tables in texts: dup_R stands for dup_1, dup_10 ..., NAME for a test set."""
    found = []
    for metric in METRICS.values() if metrics is None else metrics:
        if metric.on == PLANTED and metric.divided:
            found += [_column(metric, split) for split in SPLITS if split in metric.splits]
        elif metric.on == TYPICAL:
            found += [_column(metric, text) for text in TEXTS]
        else:
            found.append(_column(metric, "NAME" if metric.on == EACH_TEST else None))
    return found


def _column(metric: Metric, part: str | None) -> Column:
    ending = "" if part is None else f"_{part}"
    split = split_kind(part) if part and metric.on == PLANTED else None
    detail = metric.on == EACH_TEST or split == "dup_R"
    meaning = metric.meaning
    if part and split:
        repeats = part.removeprefix("dup_")
        meaning += f"; {SPLITS[split].replace('R times', f'{repeats} times')}"
    elif part and metric.on == TYPICAL:
        meaning += f"; {TEXTS[part]}"
    elif part:
        meaning = meaning.replace("NAME", part)
    name, short = metric.name + ending, (metric.short or metric.name) + ending
    return Column(name, metric.unit, metric.better, meaning, short, metric.headline and not detail, detail)


def _find(column: str, metrics: Iterable[Metric]) -> tuple[Metric, str | None] | None:
    """Return the metric of a column, with its split or test set."""
    for metric in metrics:
        part = column.removeprefix(f"{metric.name}_")
        if column == metric.column() and not metric.divided:
            return metric, None
        if metric.divided and part != column:
            if metric.measured_on(part) or part in {EACH_TEST: (*TEST_SETS, "NAME"), TYPICAL: TEXTS}.get(metric.on, ()):
                return metric, part
    return None


def _place(metrics: list[Metric], found: tuple[Metric, str | None]) -> tuple[int, int, int]:
    """Return a column's sort key: metric, split, repeats. Test sets keep their given order."""
    metric, part = found
    number = metrics.index(metric)
    if part is None or metric.on != PLANTED or (split := split_kind(part)) is None:
        return number, 0, 0
    repeats = part.removeprefix("dup_")
    return number, list(SPLITS).index(split), int(repeats) if repeats.isdigit() else 0
