"""The tables of a report: rankings, all runs, repeats, attacks, settings, machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinymem.attacks.recovery import SUMMARIES, Attacked, recovery_rows
from tinymem.metrics.registry import columns as metrics_in
from tinymem.metrics.registry import describe
from tinymem.pages.names import REFERENCES, display_name, plain
from tinymem.pages.study import Experiment, Named
from tinymem.pages.tables import Badge, Cell, Column, Row, Table, number, rounded, words
from tinymem.plots.labels import label_of
from tinymem.records.choose import Configuration, without_effect
from tinymem.records.grouping import differing, grouped
from tinymem.records.identity import ATTACK, FINGERPRINTS, NEVER_PLANTED, SECTIONS, TWIN_ATTACK, UNEDITED, record_digest
from tinymem.records.ranking_rows import bounds, described, outcomes, scale, setting, summary
from tinymem.records.table import columns_of, flat_row, identity_columns, method_of, scalar, versions

REPEATS = "percent_memorized_dup_"
MACHINE = ("processor", "device", "machine", "threads", "auto_dtype")


def head(column: str) -> Column:
    """Return the head of a column of results, from the registry's description."""
    found = described(column)
    better = found.better if found and found.better in ("lower", "higher") else ""
    return Column(plain(column), found.unit if found else "", found.meaning if found else "", better)


def ranking_table(experiment: Experiment) -> Table:
    """Return the rows of `best`: the unedited model, its twin, then the best run of each method."""
    ranking = experiment.ranking
    rows = [summary(ranking, one, experiment.folder) for one in experiment.shown]
    present = list(dict.fromkeys(name for row in rows for name in outcomes(row) if row[name] is not None))
    several = any(row["n"] > 1 for row in rows)
    made = [
        Row(
            (
                words(
                    display_name(one.method),
                    _remarks(experiment, one, row),
                    below=setting(one, ranking.varied[one.method]),
                ),
                number(row["rank"]) if row["rank"] is None else Cell(str(row["rank"]), row["rank"]),
                *([Cell(str(row["n"]), row["n"])] if several else []),
                *(result(row, name) for name in present),
            ),
            "anchor" if one.method == UNEDITED else "winner" if one is ranking.winner else "",
        )
        for one, row in zip(experiment.shown, rows)
    ]
    twin = [experiment.twin(name) for name in present]
    if any(value is not None for value in twin):
        about = (words(display_name(NEVER_PLANTED)), *[Cell()] * (2 if several else 1))
        cells = (number(value, head(name).unit) for name, value in zip(present, twin))
        made.insert(1, Row((*about, *cells), "anchor"))
    first = (Column("method", number=False), Column("rank", better="lower"))
    runs = [Column("n", meaning="runs that differ only in the seed", better="higher")] if several else []
    return Table("the methods, ranked", (*first, *runs, *map(head, present)), tuple(made))


def _remarks(experiment: Experiment, one: Configuration, row: Mapping[str, Any]) -> list[Badge]:
    found = [Badge("best", "good")] if one is experiment.ranking.winner else []
    found += [Badge(row["verdict"], "warn")] if row["verdict"] else []
    return found + ([Badge("over the limit", "warn")] if row["limit"] else [])


def result(row: Mapping[str, Any], column: str) -> Cell:
    """Return a mean with its 95 % interval, clipped to the scale."""
    mean, half, unit = row.get(column), row.get(f"{column}_ci95"), head(column).unit
    ends = bounds(mean, half, scale(column))
    if ends is None or mean is None or not half:
        return number(mean, unit)
    cut = ends != (mean - half, mean + half)
    spread = f"{rounded(ends[0], unit)} to {rounded(ends[1], unit)}" if cut else f"± {rounded(half, unit)}"
    return number(mean, unit, spread)


def runs_table(experiment: Experiment) -> Table:
    """Return one row per configuration: its settings, results and cost."""
    varied = experiment.ranking.varied
    rows = [summary(experiment.ranking, one, experiment.folder) for one in experiment.some]
    present = list(dict.fromkeys(name for row in rows for name in outcomes(row) if row[name] is not None))
    made = [
        Row(
            (
                words(display_name(one.method)),
                words(setting(one, varied[one.method])),
                words(row["seeds"]),
                *(result(row, name) for name in present),
                number(row["cost.peak_memory_gb"]),
            ),
            "anchor" if one.method == UNEDITED else "out" if without_effect(one) else "",
        )
        for one, row in zip(experiment.some, rows)
    ]
    first = (Column("method", number=False), Column("setting", number=False), Column("seeds", number=False))
    return Table("every run", (*first, *map(head, present), Column("peak memory", "GB", better="lower")), tuple(made))


def repeats_of(experiment: Experiment) -> list[int]:
    """Return the numbers of repeats for which memorization is known, in order; may be empty."""
    names = {name for run in experiment.runs for name, value in run.row.items() if value is not None}
    found = (name.removeprefix(REPEATS) for name in names if name.startswith(REPEATS))
    return sorted(int(repeats) for repeats in found if repeats.isdigit())


def repeats_rows(experiment: Experiment) -> dict[str, list[float | None]]:
    """Return method -> percent memorized of the sequences planted 1, 10, 100 ... times: original, twin, best runs."""
    wanted = [f"{REPEATS}{repeats}" for repeats in repeats_of(experiment)]
    known = {one.method: [one.mean(name) for name in wanted] for one in experiment.shown}
    twin = [experiment.twin(name) for name in wanted]
    rows = {UNEDITED: known.pop(UNEDITED, []), NEVER_PLANTED: twin, **known}
    return {method: values for method, values in rows.items() if any(value is not None for value in values)}


def repeats_table(experiment: Experiment) -> Table:
    """Return `repeats_rows` as a table."""
    columns = [Column("method", number=False)]
    for repeats in repeats_of(experiment):
        about = describe(f"{REPEATS}{repeats}")
        columns.append(Column(f"planted {repeats} ×", "%", about.meaning if about else "", "lower"))
    rows = (
        Row(
            (words(display_name(method)), *(number(value, "%") for value in values)),
            "anchor" if method in REFERENCES else "",
        )
        for method, values in repeats_rows(experiment).items()
    )
    return Table("memorization by repeats", tuple(columns), tuple(rows))


def labels(models: Sequence[Attacked]) -> dict[str, str]:
    """Return digest -> name of some models: method and strength, plus other settings if names would be equal."""
    names = {}
    for alike in grouped([model.record for model in models], label_of):
        apart = differing([record.get("method", {}) for record in alike])
        for record in alike:
            own = [f"{name} {scalar(record['method'].get(name))}" for name in apart]
            names[record_digest(record)] = ", ".join([label_of(record), *own])
    return names


def recovery_table(models: Sequence[Attacked]) -> Table:
    """Return the most that each attack recovers, one row per model."""
    names = labels(models)
    rows = recovery_rows(models, lambda record: names[record_digest(record)])
    attacks = list(dict.fromkeys(name for row in rows for name in row if name not in SUMMARIES))
    columns = [Column("model", number=False), Column("before", "%", "recovered without an attack", "lower")]
    columns += [Column("excess", "points", "over the twin under the same attack, at most", "lower")]
    columns += [Column("worst attack", number=False)]
    columns += [Column(plain(name), "%", "recovered at the setting that brings back most", "lower") for name in attacks]
    made = []
    for model, row in sorted(zip(models, rows), key=_reference_first):
        kind = model.record["kind"]
        title = words(REFERENCES.get(kind, row["model"]))
        worst = words(plain(row["worst"]) if row["worst"] else None)
        numbers = (number(row.get(name), "%") for name in attacks)
        cells = (title, number(row["before"], "%"), number(row["excess"], "%"), worst, *numbers)
        made.append(Row(cells, "anchor" if kind in REFERENCES else ""))
    return Table("what attacks bring back", tuple(columns), tuple(made))


def _reference_first(pair: tuple[Attacked, Mapping[str, Any]]) -> tuple[int, float, float]:
    """Return a sort key: the unedited model, its twin, then the others, least recovered first."""
    model, row = pair
    kinds = [*REFERENCES, model.record["kind"]]
    return kinds.index(model.record["kind"]), row["excess"] or 0.0, row["before"]


def others_table(records: Sequence[Named]) -> Table:
    """Return one row per record outside the experiments: its kind, its differing settings, its results."""
    identities = [identity_columns(record) for _, record in records]
    hidden = ("kind", "method.name")  # columns of their own
    apart = [name for name in differing(identities) if not name.startswith(FINGERPRINTS) and name not in hidden]
    rows = [flat_row(record) for _, record in records]
    present = metrics_in((name for row in rows for name in row), headline=True)
    present = [name for name in present if any(row.get(name) is not None for row in rows)]
    made = []
    for (_, record), about, row in zip(records, identities, rows):
        own = ", ".join(f"{name} {scalar(about[name])}" for name in apart if about.get(name) is not None)
        method = words(display_name(method_of(row)))
        values = (number(row.get(name), head(name).unit) for name in present)
        made.append(Row((method, words(record["kind"]), words(own), *values, number(row.get("cost.seconds"), "s"))))
    first = (Column("name", number=False), Column("kind", number=False), Column("setting", number=False))
    return Table("other records", (*first, *map(head, present), head("cost.seconds")), tuple(made))


def common_settings(experiment: Experiment) -> dict[str, str]:
    """Return the settings that all runs of an experiment share, by section, then those of each method."""
    shared: dict[str, list[str]] = {}
    about = experiment.some[0].experiment
    for name, value in about.items():
        section, _, key = name.partition(".")
        if section in SECTIONS and value is not None and value is not False:
            shared.setdefault(section, []).append(f"{key} {scalar(value)}")
    found = {section: ", ".join(values) for section, values in shared.items()}
    varied = experiment.ranking.varied
    for rivals in grouped(experiment.some, lambda one: one.method):
        same = {
            name: value for name, value in rivals[0].hyper_parameters.items() if name not in varied[rivals[0].method]
        }
        settings_text = ", ".join(f"{name} {scalar(value)}" for name, value in same.items() if value is not None)
        if settings_text:
            found[display_name(rivals[0].method)] = settings_text
    return found


def environment(records: Sequence[Named]) -> dict[str, str]:
    """Return the versions, machines and total cost of some records."""
    rows = [record for _, record in records]
    python = _every(record["environment"].get("python") for record in rows)
    found = {"versions": f"{_every(map(versions, rows), '; ')}; python {python}"}
    for name in MACHINE:
        if values := _every(record["environment"].get(name) for record in rows):
            found[name.replace("_", " ")] = values
    seconds = sum(columns_of(record)["cost"].get("cost.seconds") or 0 for record in rows)
    memory = max(columns_of(record)["cost"].get("cost.peak_memory_gb") or 0 for record in rows)
    attacks = sum(record["kind"] in (ATTACK, TWIN_ATTACK) for record in rows)
    found["records"] = f"{len(rows)}" + (f", {attacks} of them of attacks" if attacks else "")
    found["seconds of methods and attacks"] = f"{seconds:,.0f}"
    found["most memory"] = f"{memory:.3g} GB"
    return found


def _every(values: Iterable[Any], between: str = ", ") -> str:
    return between.join(sorted({str(value) for value in values if value is not None}))
