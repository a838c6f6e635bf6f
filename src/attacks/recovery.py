"""What comes back under attacks: curves of a model, its unedited original and its never-planted twin, from records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinymem.attacks import relearn_all
from tinymem.attacks.registry import ATTACKS
from tinymem.attacks.uwc import INTERPOLATE, WayBack, way_back
from tinymem.errors import UserError
from tinymem.metrics.memorization import PERCENT_MEMORIZED, judged_split
from tinymem.records.identity import (
    ATTACK,
    MEASURED,
    NEVER_PLANTED,
    TWIN_ATTACK,
    UNEDITED,
    UNLEARN,
    Record,
    record_digest,
)

UNCOUNTED = (INTERPOLATE,)  # its attacker has the original, with all that it has memorized
# This attack trains on everything that was shown, and says how fast that comes back.
ON_SHOWN = (relearn_all.__name__.rpartition(".")[2],)
AT_EQUAL_UTILITY = "at_equal_utility"  # the column of `WayBack.at_equal_utility`
SUMMARIES = ("model", "before", "excess", "most", "worst", AT_EQUAL_UTILITY)  # columns of no single attack
MODELS = {UNEDITED: ATTACK, NEVER_PLANTED: TWIN_ATTACK, UNLEARN: ATTACK, MEASURED: ATTACK}  # kind -> its attacks' kind


@dataclass(frozen=True)
class Curve:
    """Memorization of one model under one attack, in percent.

    attack     its name
    settings   the attack's settings but the strength
    strength   the setting that varies; None: the attack has none
    points     (strength, percent memorized), the weakest attack first
    before     percent memorized without the attack
    """

    attack: str
    settings: Mapping[str, Any]
    strength: str | None
    points: tuple[tuple[float, float], ...]
    before: float = math.nan

    @property
    def worst(self) -> float:
        """The highest value."""
        return max(value for _, value in self.points)

    @property
    def area(self) -> float:
        """The mean of the curve over the logarithm of the strength, by trapezoids; a single strength's own value."""
        (first, value), *more = self.points
        if not more:
            return value
        places = [math.log(strength) if first > 0 else strength for strength, _ in self.points]
        values = [value for _, value in self.points]
        steps = zip(places, places[1:], values, values[1:])
        return sum((b - a) * (x + y) / 2 for a, b, x, y in steps) / (places[-1] - places[0]) + 0.0  # no -0

    def beside(self, other: Curve) -> Curve | None:
        """Return the curve at the other's strengths, for comparing areas; None unless it has them all."""
        known = dict(self.points)
        if not all(place in known for place, _ in other.points):
            return None
        return replace(self, points=tuple((place, known[place]) for place, _ in other.points))

    def speed_ratio(self, twin: Curve | None) -> float | None:
        """Return R (OpenUnlearning, arXiv 2506.12618): what the twin gains over what this model gains, from 0 to 1.

        1: the memories return no faster than they are learned for the first time. A gain is the area minus the value
        without the attack. None without a twin at the same strengths, or without those values.
        """
        bound = twin.beside(self) if twin else None
        if bound is None or math.isnan(self.before) or math.isnan(bound.before):
            return None
        gain = self.area - self.before
        return min(max((bound.area - bound.before) / gain, 0.0), 1.0) if gain > 0 else 1.0

    def excess(self, twin: Curve | None) -> float | None:
        """Return the largest excess over the twin's curve at the same strength; None without a common strength."""
        bounds = dict(twin.points) if twin else {}
        return max((value - bounds[place] for place, value in self.points if place in bounds), default=None)


@dataclass(frozen=True)
class Attacked:
    """A model with its curves.

    before   percent memorized without an attack
    back     its way back to the unedited model, where utility is equal; None if records hold no utility
    """

    record: Record
    before: float
    curves: tuple[Curve, ...]
    back: WayBack | None = None

    def curve(self, like: Curve) -> Curve | None:
        """Return the curve of the same attack with the same settings."""
        same = [curve for curve in self.curves if (curve.attack, curve.settings) == (like.attack, like.settings)]
        return same[0] if same else None

    @property
    def counted(self) -> list[Curve]:
        """The curves of the attacks that count: all but UNCOUNTED."""
        return [curve for curve in self.curves if curve.attack not in UNCOUNTED]

    @property
    def worst(self) -> Curve | None:
        """The curve of the counted attack that brings back most, the first in a tie; None without one."""
        return max(self.counted, key=lambda curve: curve.worst, default=None)

    def worst_excess(self, twin: Attacked | None) -> tuple[float, str] | None:
        """Return by how much the model exceeds its twin under the worst attack, and that attack's name.

        None without a twin. In a tie, the first attack counts. UNCOUNTED attacks are left out: they say how far away
        the original is.
        """
        if twin is None:
            return None
        found = [(curve.excess(twin.curve(curve)), curve.attack) for curve in self.counted]
        known = [(value, name) for value, name in found if value is not None]
        return max(known, key=lambda pair: pair[0], default=None)


def attacked_models(records: Iterable[Record], split: str | None = None) -> tuple[str, list[Attacked]]:
    """Return the split that is judged and every model that was attacked, with its curves.

    split: a set of planted sequences; None: the `judged_split`. ON_SHOWN attacks are always judged by shown.
    records: those of one subject.
    """
    records = list(records)
    strengths = _strengths(records)
    if split is None:
        split = judged_split(record["results"] for record in records)
    models, original = [], next((record for record in records if record["kind"] == UNEDITED), None)
    for record in records:
        if record["kind"] in MODELS and (before := record["results"].get(_column(split))) is not None:
            kind, digest = MODELS[record["kind"]], record_digest(record)
            on_it = [other for other in records if other["kind"] == kind and other.get("parent") == digest]
            if curves := _curves(record, on_it, split, strengths):
                models.append(Attacked(record, before, curves, way_back(record, on_it, original, _column(split))))
    return split, models


def averaged(models: Sequence[Attacked]) -> Attacked:
    """Return the mean over seeds of one model: the first one's record, and the curves and points that all have."""
    curves = []
    for curve in models[0].curves:
        alike = [found for model in models if (found := model.curve(curve))]
        if len(alike) < len(models):
            continue
        same = [dict(found.points) for found in alike]
        places = [place for place, _ in curve.points if all(place in points for points in same)]
        points = tuple((place, statistics.fmean(points[place] for points in same)) for place in places)
        if points:
            before = statistics.fmean(found.before for found in alike)
            curves.append(replace(curve, points=points, before=before))
    return Attacked(models[0].record, statistics.fmean(model.before for model in models), tuple(curves))


def recovery_rows(models: Sequence[Attacked], label) -> list[dict[str, Any]]:
    """Return one row per model.

    It has what is memorized before, by how much the worst attack exceeds the twin, what is memorized at equal utility
    (if known), and the most that each attack brings back. Without a twin, the worst attack is the one that brings back
    most, and the row has a value `most`. UNCOUNTED attacks are never the worst. label: gives a record's name.
    """
    twin = find_twin_model(models)
    rows = []
    for model in models:
        row: dict[str, Any] = {"model": label(model.record), "before": model.before}
        worst = None if model is twin else model.worst_excess(twin)
        row |= {"excess": worst[0], "worst": worst[1]} if worst else {"excess": None, "worst": None}
        if twin is None and (most := model.worst):
            row |= {"most": most.worst, "worst": most.attack}
        if model.back:
            row[AT_EQUAL_UTILITY] = model.back.at_equal_utility
        for curve in model.curves:
            row[curve.attack] = max(row.get(curve.attack, 0.0), curve.worst)
        rows.append(row)
    return rows


def curve_rows(models: Sequence[Attacked], label) -> list[dict[str, Any]]:
    """Return one row per model and curve.

    It has the settings, the most that the attack brings back and the area, the twin's at the same strengths, the excess
    over the twin, and for ON_SHOWN attacks the ratio of speeds. label: gives a record's name.
    """
    twin, rows = find_twin_model(models), []
    for model in models:
        for curve in model.curves:
            of_twin = twin.curve(curve) if twin else None
            row: dict[str, Any] = {"model": label(model.record), "attack": curve.attack, **curve.settings}
            row |= {"strength": curve.strength, "before": curve.before, "worst": curve.worst, "area": curve.area}
            if of_twin and (bound := of_twin.beside(curve)):
                row |= {"twin_worst": bound.worst, "twin_area": bound.area}
            row["excess"] = curve.excess(of_twin)
            if curve.attack in ON_SHOWN and (ratio := curve.speed_ratio(of_twin)) is not None:
                row["speed_ratio"] = ratio
            rows.append(row)
    return rows


def back_rows(models: Sequence[Attacked], label) -> list[dict[str, Any]]:
    """Return one row per model and point on its way back to the unedited model: memorization and utility there.

    label: gives a record's name.
    """
    return [
        {"model": label(model.record), "alpha": point.alpha, "memorized": point.memorized,
         model.back.utility.column: point.utility, "lost": point.lost, AT_EQUAL_UTILITY: model.back.at_equal_utility}
        for model in models if model.back for point in model.back.points
    ]  # fmt: skip


def find_twin_model(models: Sequence[Attacked]) -> Attacked | None:
    """Return the never-planted twin among the models; None without one."""
    return next((model for model in models if model.record["kind"] == NEVER_PLANTED), None)


def _curves(
    model: Record, records: Sequence[Record], split: str, strengths: Mapping[str, str | None]
) -> tuple[Curve, ...]:
    """Return the curves of attacks on one model, in the registry's order. records, strengths: those of the attacks."""
    groups: dict[tuple, list[Record]] = {}

    def column(attack: str) -> str:
        return _column(judged_by(attack, split))

    for record in records:
        if record["results"].get(column(record["attack"]["name"])) is not None:
            strength = strengths[record["attack"]["name"]]
            settings = {name: str(value) for name, value in record["attack"].items() if name not in (strength, "name")}
            groups.setdefault((record["attack"]["name"], strength, *sorted(settings.items())), []).append(record)
    places = {name: place for place, name in enumerate(ATTACKS)}
    curves = []
    for (name, strength, *others), some in groups.items():
        points = sorted((_number(r["attack"], strength), r["results"][column(name)]) for r in some)
        if _falls(name):
            points.reverse()
        before = model["results"].get(column(name))
        curves.append(Curve(name, dict(others), strength, tuple(points), math.nan if before is None else before))
    return tuple(sorted(curves, key=lambda curve: places.get(curve.attack, len(places))))


def _number(attack: Mapping[str, Any], strength: str | None) -> float:
    """Return the value of an attack's strength, 0 without one. Raise UserError if it is not a number."""
    value = attack.get(strength) if strength else None
    if not isinstance(value, (int, float, type(None))):
        raise UserError(
            f"a record of the attack {attack['name']} is damaged ({strength} is {value!r}); delete it and run again"
        )
    return float(value or 0)


def weakest_first(attack: str, strengths: Iterable[float]) -> list[float]:
    """Return the strengths of an attack without repeats, the weakest first."""
    return sorted(set(strengths), reverse=_falls(attack))


def _falls(name: str) -> bool:
    """Return whether a lower strength is a stronger attack (such as fewer bits): defaults go from weak to strong."""
    if name not in ATTACKS:
        return False
    method = ATTACKS[name]
    values = [value for value in method.strengths(method.hyper_parameters()) if value is not None]
    return len(values) > 1 and values[0] > values[-1]


def _strengths(records: Iterable[Record]) -> dict[str, str | None]:
    """Return the name of each attack's strength; None for one without.

    For an attack in a user's file, it is the only number among the settings, or the only one that takes several values.
    """
    found: dict[str, dict[str, set[float]]] = {}
    for attack in (record["attack"] for record in records if record.get("attack")):
        numbers = found.setdefault(attack["name"], {})
        for name, value in attack.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.setdefault(name, set()).add(value)
    strengths: dict[str, str | None] = {}
    for attack, numbers in found.items():
        names = [name for name, values in numbers.items() if len(values) > 1] or list(numbers)
        strengths[attack] = names[0] if len(names) == 1 else None
    return strengths | {name: method.strength for name, method in ATTACKS.items()}


def judged_by(attack: str, split: str) -> str:
    """Return the split that an attack is judged by: shown for ON_SHOWN attacks, otherwise `split`."""
    return "shown" if attack in ON_SHOWN else split


def _column(split: str) -> str:
    return PERCENT_MEMORIZED.column(split)
