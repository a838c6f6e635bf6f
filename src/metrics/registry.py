"""Every metric, one line each, in the order of their columns; and look-up of columns by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

from tinymem.data.numbers import CONSTANTS
from tinymem.errors import UserError
from tinymem.metrics import (
    depth,
    drift,
    exposure,
    extraction,
    membership,
    memorization,
    near_verbatim,
    neighbours,
    prefix,
    quality,
    verbatim,
)
from tinymem.metrics.metric import EACH_TEST, PLANTED, SPLITS, TEXTS, TYPICAL, Metric, split_kind
from tinymem.plugins import load_plugin, own_code

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
        extraction.PERCENT_EXTRACTABLE,
        extraction.MEDIAN_N,
        verbatim.EXACT_MATCH_SHARE,
        verbatim.EXTRACTION_STRENGTH,
        verbatim.LONGEST_MATCH,
        verbatim.LONGEST_MATCH_P95,
        near_verbatim.PERCENT_NEAR_VERBATIM,
        near_verbatim.PERCENT_COPIED,
        near_verbatim.LEVENSHTEIN_SIMILARITY,
        near_verbatim.ROUGE_L,
        prefix.PREFIX_AREA,
        membership.PLANTED_LOSS,
        membership.ZLIB_RATIO,
        membership.MIN_K,
        membership.MIN_K_PLUS,
        membership.GRADIENT_NORM,
        membership.LOSS_OVER_TWIN,
        membership.LOSS_DISTANCE,
        membership.AUC_LOSS,
        membership.AUC_ZLIB,
        membership.AUC_MIN_K,
        membership.AUC_MIN_K_PLUS,
        membership.AUC_GRADIENT_NORM,
        membership.AUC_TWIN,
        exposure.EXPOSURE,
        depth.UNLEARNING_DEPTH,
        neighbours.NEIGHBOUR_ACCURACY,
    )
}
VARIANTS = (extraction.variant, prefix.variant)  # metrics with numbers in their name: name -> metric, None for others
PATTERNS = ("percent_extractable_nN_pP_kK_tT", "percent_memorized_prefixM")  # how they are spelled
SPELLED = (  # how a name of a pattern begins, the pattern and its meaning, an example
    (
        r"percent_extractable_n(?!ever)",
        f"{PATTERNS[0]} (n samples, p in percent, top k, t in hundredths; k and t may be left out)",
        "percent_extractable_n10_p50_k40_t100",
    ),
    (r"percent_memorized_prefix", f"{PATTERNS[1]} (M tokens)", "percent_memorized_prefix8"),
)
DEFAULTS = tuple(name for name, metric in METRICS.items() if getattr(metric.values, "__module__", None) in PUBLISHED)
COSTLY = {"generation", "prefixes", "gradients", "original"}  # needs that one pass over each row does not meet
GROUPS = {
    "published": DEFAULTS,
    "forward": tuple(name for name, metric in METRICS.items() if not COSTLY & set(metric.needs)),
    "attacked": (
        memorization.PERCENT_MEMORIZED.name,
        extraction.PERCENT_EXTRACTABLE.name,
        verbatim.EXACT_MATCH_SHARE.name,
        quality.MEAN_TEST_ACCURACY.name,
        quality.PERPLEXITY.name,
    ),  # what attacks are judged by
    "all": tuple(METRICS),
}
TEST_SETS = (*CONSTANTS, "test", "random")  # the names that test sets have: number tasks, text, production models


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


@dataclass(frozen=True)
class Line:
    """What a text says about a metric. splits: those of SPLITS that it is measured on."""

    name: str
    unit: str
    better: str
    meaning: str
    splits: tuple[str, ...]


def chosen(metrics: Iterable[str | Metric] | None = None) -> list[Metric]:
    """Return metrics, given as such or by name, in the registry's order; DEFAULTS for None.

    A name may be that of a group (GROUPS) or one with numbers in it (PATTERNS). Raise UserError for an unknown name, a
    number out of range, and two metrics with the same name.
    """
    found: dict[str, Metric] = {}
    for given in expanded(DEFAULTS if metrics is None else metrics):
        metric = given if isinstance(given, Metric) else find_metric(given)
        if metric is None:
            check_spelling(str(given))
            choice = ", ".join([*GROUPS, *METRICS, *PATTERNS])
            raise UserError(f"--metrics {given}: no such metric; choose from {choice}")
        if found.get(metric.name, metric) is not metric or (find_metric(metric.name) or metric) is not metric:
            raise UserError(f"--metrics {metric.name}: there are two metrics of this name; rename one")
        found[metric.name] = metric
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(found.values(), key=lambda metric: places.get(metric.name, len(places)))


def expanded(metrics: Iterable[str | Metric]) -> list[str | Metric]:
    """Return metrics with the names of groups replaced by those of their metrics."""
    return [each for given in metrics for each in (GROUPS.get(given, (given,)) if isinstance(given, str) else (given,))]


def find_metric(name: str) -> Metric | None:
    """Return the metric of this name, or None. Raise UserError for a number in it that is out of range."""
    return METRICS.get(name) or next(filter(None, (variant(name) for variant in VARIANTS)), None)


def check_spelling(name: str) -> None:
    """Raise UserError for what looks like one of PATTERNS but has no whole numbers in the right places."""
    for begin, pattern, example in SPELLED:
        if re.match(begin, name) and find_metric(name) is None:
            raise UserError(f"--metrics {name}: must be spelled {pattern} with whole numbers, such as {example}")


def plugin_metrics(place: str) -> list[Metric]:
    """Return the metrics that a user's file or module defines as METRIC or METRICS. Raise UserError for none."""
    module = load_plugin(place, "--metrics")
    with own_code(f"--metrics {place}"):
        found = [*getattr(module, "METRICS", ()), *([module.METRIC] if hasattr(module, "METRIC") else [])]
    if not found or not all(isinstance(metric, Metric) for metric in found):
        raise UserError(f"--metrics {place}: defines no METRIC or METRICS of the type tinymem.metrics.metric.Metric")
    return found


def missing(results: Iterable[str], metrics: Iterable[str | Metric] | None = None) -> list[str | Metric]:
    """Return the chosen metrics without a column in the results."""
    wanted = {metric.name: metric for metric in chosen(metrics)}
    there = {found[0].name for column in results if (found := _find(column, tuple(wanted.values())))}
    return [name if find_metric(name) else metric for name, metric in wanted.items() if name not in there]


def metrics_of(columns: Iterable[str]) -> list[str]:
    """Return the names of the metrics of these columns, in the registry's order; other columns are left out."""
    found = dict.fromkeys(found[0].name for name in columns if (found := _find(name)))
    return [metric.name for metric in chosen(found)] if found else []


def describe(column: str, more: Iterable[Metric] = ()) -> Column | None:
    """Return the description of a metric's column, None for other columns. more: metrics from users' files."""
    found = _find(column, (*METRICS.values(), *more))
    return _column(*found) if found else None


def needs_twin(column: str) -> bool:
    """Return whether a column's metric has no value without a never-planted twin."""
    found = _find(column)
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
    every = (*METRICS.values(), *more)
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


def summarized() -> list[Line]:
    """Return one line per metric, in order, for tables in texts: SPLIT, TEXT and NAME stand for its several columns."""
    part = {PLANTED: "SPLIT", TYPICAL: "TEXT", EACH_TEST: "NAME"}
    lines = []
    for metric in METRICS.values():
        splits = metric.splits if metric.on == PLANTED else ()
        name = metric.column(part[metric.on]) if metric.divided else metric.name
        lines.append(Line(name, metric.unit, metric.better, metric.meaning, splits))
    return lines


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
    name, short = metric.name + ending, (metric.short or metric.name) + ending.replace("_never_planted", "_non_members")
    return Column(name, metric.unit, metric.better, meaning, short, metric.headline and not detail, detail)


@lru_cache(maxsize=4096)  # tables of thousands of records ask for the same few columns
def _find(column: str, metrics: tuple[Metric, ...] | None = None) -> tuple[Metric, str | None] | None:
    """Return the metric of a column, with its split or test set; also one with numbers in its name.

    metrics: those to choose from; None: METRICS.
    """
    for metric in METRICS.values() if metrics is None else metrics:
        part = column.removeprefix(f"{metric.name}_")
        if column == metric.column() and not metric.divided:
            return metric, None
        if metric.divided and part != column:
            if metric.measured_on(part) or part in {EACH_TEST: (*TEST_SETS, "NAME"), TYPICAL: TEXTS}.get(metric.on, ()):
                return metric, part
    return _find_variant(column)


def _find_variant(column: str) -> tuple[Metric, str] | None:
    """Return a column's metric, one with numbers in its name, and the column's split."""
    for end, letter in enumerate(column):
        name, part = column[:end], column[end + 1 :]
        if letter != "_" or split_kind(part) is None:
            continue
        try:
            metric = find_metric(name)
        except UserError:  # a column of someone else's
            return None
        if metric and name not in METRICS and metric.measured_on(part):
            return metric, part
    return None


def _place(metrics: tuple[Metric, ...], found: tuple[Metric, str | None]) -> tuple[int, str, int, int]:
    """Return a column's sort key: metric (those with numbers in their names last), split, repeats.

    Test sets keep their given order.
    """
    metric, part = found
    number, name = (metrics.index(metric), "") if metric in metrics else (len(metrics), metric.name)
    if part is None or metric.on != PLANTED or (split := split_kind(part)) is None:
        return number, name, 0, 0
    repeats = part.removeprefix("dup_")
    return number, name, list(SPLITS).index(split), int(repeats) if repeats.isdigit() else 0
