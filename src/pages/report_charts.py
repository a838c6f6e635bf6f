"""The charts of a report: the trade-off of every run, memorization by repeats, recovery under attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinymem.attacks.recovery import Attacked, Curve, weakest_first
from tinymem.pages import charts
from tinymem.pages.charts import EDITED, Axis, Chart, Mark, Series
from tinymem.pages.names import plain
from tinymem.pages.report_tables import repeats_of, repeats_rows
from tinymem.pages.study import Experiment
from tinymem.pages.tables import rounded
from tinymem.plots import marks
from tinymem.plots.unlearning import MEMORIZED
from tinymem.records.choose import Configuration, pareto_front
from tinymem.records.identity import NEVER_PLANTED, UNEDITED
from tinymem.records.ranking_rows import setting

RECOVERED = "% recovered"
Point = tuple[float | None, float]  # strength of an attack (None: no attack), percent recovered


def trade_off_chart(name: str, experiment: Experiment) -> Chart:
    """Return memorization against quality, one mark per configuration, mean over seeds. Left and up is better."""
    numbers = experiment.some[0].on_numbers
    quality = "mean_test_accuracy" if numbers else "perplexity"
    varied = experiment.ranking.varied
    points: list[tuple[str, float, float, dict[str, str], Configuration | None]] = [
        (one.method, one.known_mean(MEMORIZED), one.known_mean(quality), _about(one, varied[one.method]), one)
        for one in experiment.some
    ]
    bound, of_twin = experiment.twin(MEMORIZED), experiment.twin(quality)
    if bound is not None and of_twin is not None:
        points.append((NEVER_PLANTED, bound, of_twin, {}, None))
    values = [value for _, _, value, _, _ in points]
    edge, places = (math.inf, values) if numbers else (marks.edge(values), marks.cut_off(values))
    made = [
        Mark(
            method,
            memorized,
            place,
            {"memorized": f"{rounded(memorized, '%')} %", plain(quality): rounded(value), **about},
            one is not None and one is experiment.ranking.winner,
        )
        for (method, memorized, value, about, one), place in zip(points, places)
    ]
    rivals = [
        (memorized, value) for method, memorized, value, _, _ in points if method != NEVER_PLANTED and value <= edge
    ]
    sign = 1 if numbers else -1
    front = [(memorized, sign * value) for memorized, value in pareto_front([(m, sign * q) for m, q in rivals])]
    y, top = _quality_axis(places, numbers), max(memorized for _, memorized, *_ in points)
    x = Axis("% memorized", -0.03 * max(top, 10), 1.04 * max(top, 10))
    strip = (edge, y.low, "ruined models, by rank") if max(values) > edge else None
    alternative = (
        f"Memorization against {plain(quality)} of {len(points)} models; the table of every run has the numbers"
    )
    caption = "A mark is a method with its settings, mean over seeds; left and up is better. "
    caption += "Dotted: the Pareto front. Ring: the best run." + (" Dashed: the twin." if bound is not None else "")
    return charts.scatter(name, made, x, y, alternative, caption, front, strip, bound)


def _about(one: Configuration, varied: set[str]) -> dict[str, str]:
    rise, seconds = one.mean("perplexity_rise_percent"), one.mean("cost.seconds")
    about = {"setting": setting(one, varied)}
    if not one.on_numbers and rise is not None:
        about["perplexity rise"] = f"{rise:+.3g} %"
    if seconds is not None and one.method != UNEDITED:
        about["seconds"] = rounded(seconds, "s")
    about["runs"] = str(len(one.runs))
    return {name: text for name, text in about.items() if text}


def _quality_axis(values: Sequence[float], numbers: bool) -> Axis:
    low, high = min(values), max(values)
    if numbers:
        room = 0.06 * max(high - low, 0.01)
        return Axis("mean test accuracy", low - room, high + room)
    room = max(high / low, 1.05) ** 0.06
    return Axis("perplexity (lower is better)", high * room, low / room, logarithmic=True)


def repeats_chart(name: str, experiment: Experiment) -> Chart:
    """Return percent memorized against the number of repeats: original, twin, best run of each method."""
    rows = repeats_rows(experiment)
    places = [str(repeats) for repeats in repeats_of(experiment)]
    series = [Series(method, values) for method, values in rows.items()]
    return charts.lines(
        name,
        series,
        places,
        "times planted",
        "% memorized",
        f"Memorization by the number of repeats of {len(rows)} models; the table beside it has the numbers",
        caption="Marks that would cover each other stand side by side." if charts.coincide(series) else "",
    )


def recovery_charts(name: str, model: Attacked, bounds: Sequence[Attacked]) -> list[Chart]:
    """Return a chart per attack: percent recovered against strength, for the model, its original and its twin."""
    made = []
    for place, curve in enumerate(model.curves):
        others = {bound.record["kind"]: found for bound in bounds if (found := bound.curve(curve))}
        lines = {**others, EDITED: curve}
        made.append(
            recovery_chart(f"{name}-{place}", curve.attack, curve.strength, {k: _points(v) for k, v in lines.items()})
        )
    return made


def _points(curve: Curve) -> list[Point]:
    before = [] if math.isnan(curve.before) else [(None, curve.before)]
    return [*before, *curve.points]


def recovery_chart(name: str, attack: str, strength: str | None, lines: dict[str, list[Point]]) -> Chart:
    """Return the chart of one attack. lines: series -> (strength, percent recovered); None: no attack."""
    places = [place for points in lines.values() for place, _ in points]
    strengths = weakest_first(attack, (place for place in places if place is not None))
    order = [None, *strengths] if None in places else strengths
    labels = {place: "none" if place is None else f"{place:g}" if strength else "attacked" for place in order}
    series = [Series(one, [dict(points).get(place) for place in order]) for one, points in lines.items()]
    worst = max(value for points in lines.values() for _, value in points)
    alternative = (
        f"{plain(attack)}: percent recovered by strength, at most {rounded(worst, '%')}; "
        "the table has the worst of each model"
    )
    return charts.lines(
        name, series, list(labels.values()), plain(strength or ""), RECOVERED, alternative, plain(attack), height=190
    )


def references(models: Sequence[Attacked]) -> list[Attacked]:
    """Return the unedited model and the twin among attacked models."""
    return [model for model in models if model.record["kind"] in (UNEDITED, NEVER_PLANTED)]
