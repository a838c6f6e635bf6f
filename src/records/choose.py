"""The best runs of unlearning methods, and the Pareto front. See docs/metrics.md, "Comparing runs", for the rules.

Every run is compared with its unedited model (`parent`), measured with the same software versions. Runs that differ
only in the seed form one configuration, judged by its mean. Attacks are compared elsewhere
(`tinymem.attacks.recovery`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinymem.data.settings import NUMBER_TASKS
from tinymem.metrics.registry import columns
from tinymem.records.grouping import grouped, key_of
from tinymem.records.identity import (
    FINGERPRINTS,
    MEASURED,
    NEVER_PLANTED,
    PLANTED_MODEL,
    RIVALS,
    UNEDITED,
    record_digest,
    run_key,
)
from tinymem.records.interval import over_all
from tinymem.records.record import EXTENT
from tinymem.records.table import flat_row, identity_columns, method_of, trade_off, versions

PRINTS = ("fingerprints.weights", "fingerprints.forget_set", f"training.{PLANTED_MODEL}")
SEED_SETTINGS = ("data.seed", "data.plant_seed", "forget.unlearn_seed")
SEEDS = (*SEED_SETTINGS, *PRINTS)  # the columns that differ between the seeds of one experiment
COSTS = ("cost.seconds", "cost.peak_memory_gb")
POINTS = 1.0  # percentage points of memorization: a smaller decrease counts as no effect
VALIDATION = "percent_memorized_validation"
COMPARED = ("trade_off", "change_memorized", "change_accuracy", "perplexity_rise_percent")


@dataclass(frozen=True)
class ComparedRun:
    """An unlearning run, together with the unedited model.

    row, before    the run and the unedited model as flat rows; `row` also has the columns COMPARED, and its
                   method.name is "unedited" if nothing was edited
    checkpoint     the columns of the model and its measurement: versions, and all sections except the method's
    hyper_parameters    the method's settings, under their own names
    twin           the never-planted twin as a flat row, if there is a record of it
    """

    row: Mapping[str, Any]
    before: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    hyper_parameters: Mapping[str, Any]
    twin: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        return self.row["method.name"]

    @property
    def quality(self) -> float:
        """Mean test accuracy of number models, minus perplexity of all others: higher is better."""
        return self.row["mean_test_accuracy"] if on_numbers(self.row) else -self.row["perplexity"]


@dataclass(frozen=True)
class Configuration:
    """A method with its hyper-parameters on one experiment: at least one run, one per seed."""

    runs: Sequence[ComparedRun]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def hyper_parameters(self) -> Mapping[str, Any]:
        """The settings that all runs share. The fingerprint of an edit made elsewhere differs between seeds."""
        first, *others = (run.hyper_parameters for run in self.runs)
        return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """The checkpoint's settings and versions, without those that differ between seeds."""
        return {name: value for name, value in self.runs[0].checkpoint.items() if name not in SEEDS}

    @property
    def on_numbers(self) -> bool:
        return on_numbers(self.runs[0].row)

    def interval(self, name: str) -> tuple[float | None, float | None]:
        """Return a result's mean over the seeds and its 95 % half width; None if a run lacks the result."""
        return over_all([run.row.get(name) for run in self.runs])

    def mean(self, name: str) -> float | None:
        """Return the mean over the seeds; None if a run lacks the result."""
        return self.interval(name)[0]

    def known_mean(self, name: str) -> float:
        """Return the mean over the seeds of a result that every compared run has, such as those in COMPARED."""
        value = self.mean(name)
        assert value is not None, name
        return value

    def summary(self) -> dict[str, Any]:
        """Return a row: experiment, method, hyper-parameters, n, and every result's mean and 95 % half width."""
        settings = {f"method.{name}": value for name, value in self.hyper_parameters.items()}
        row = {**self.experiment, "method.name": self.method, **settings, "n": len(self.runs)}
        row["seeds"] = seeds_of(self.runs)
        for name in (*columns(self.runs[0].row, detail=False), *EXTENT, *COSTS, *COMPARED):
            row[name], row[f"{name}_ci95"] = self.interval(name)
        return row


def seeds_of(runs: Sequence[ComparedRun]) -> str:
    """Return the seeds of runs, ascending: "0 1 3". Where several kinds of seeds vary, all are given: "0/0 0/1"."""
    known = [name for name in SEED_SETTINGS if any(run.row.get(name) is not None for run in runs)]
    varying = [name for name in known if len({run.row.get(name) for run in runs}) > 1] or known[:1]
    seeds = [tuple(run.row.get(name, "-") for name in varying) for run in runs]
    seeds.sort(key=lambda seed: [(part == "-", part) for part in seed])
    return " ".join("/".join(map(str, seed)) for seed in seeds) if varying else " ".join("-" for _ in runs)


def on_numbers(row: Mapping[str, Any]) -> bool:
    """Return whether quality is accuracy (number sequences), not perplexity (text and production models)."""
    return row.get("data.data_name") in NUMBER_TASKS


def unlearning_runs(
    records: Iterable[tuple[str, Mapping[str, Any]]],
    order: Sequence[str] = (),
    warn: Callable[[str], None] = lambda message: None,
) -> list[ComparedRun]:
    """Return the unlearning runs among records, sorted by method, then settings; duplicates count once.

    records: pairs (name, record). order: names of methods; unedited models come first, methods not in it last. warn:
    receives one line about runs that are left out because their unedited model or a result is missing.
    """
    records = list(records)
    named = [(name, record) for name, record in records if record["kind"] in RIVALS]
    twins = {_place(record): flat_row(record) for _, record in records if record["kind"] == NEVER_PLANTED}
    known: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for name, record in named:
        known.setdefault((record_digest(record), versions(record)), {})[_folder(name)] = record
    runs: dict[tuple, ComparedRun] = {}
    unpaired, unmeasured, otherwise = [], [], []
    lacking: set[str] = set()
    for name, record in named:
        unedited = _unedited(name, record, known)
        if unedited is None:
            unpaired.append(name)
            continue
        run = _run(name, record, unedited, twins.get(_place(unedited)))
        if run is None:
            unmeasured.append(name)
            lacking |= _lacking(flat_row(record), flat_row(unedited))
        else:
            key = record_digest(record), versions(record)
            if key in runs and any(runs[key].row[column] != run.row[column] for column in COMPARED):
                otherwise.append(name)
            runs[key] = run
    if otherwise:
        warn(f"recorded twice with different results: {len(otherwise)} of {len(runs)} runs; what counts is such as "
             f"{otherwise[0]}, not the records found before")  # fmt: skip
    for names, reason in (
        (unpaired, "no record of the unedited model with the same versions"),
        (
            unmeasured,
            f"without a value of {' or '.join(sorted(lacking))} (not among its --metrics, not finite, or nothing to "
            "measure)",
        ),
    ):
        if names:
            warn(f"left out, {reason}: {len(names)} of {len(named)} runs, the first is {names[0]}")
    models = grouped(runs.values(), lambda run: key_of({**run.checkpoint, **dict.fromkeys(PRINTS)}))
    again = sum(len({run.checkpoint.get("fingerprints.weights") for run in some}) > 1 for some in models)
    if again:
        warn(f"trained more than once with the same seed (column `fingerprints.weights`): {again} of {len(models)} "
             "models; each training counts as a seed of its own")  # fmt: skip
    place = {method: i for i, method in enumerate((UNEDITED, *order))}

    def rank(run: ComparedRun) -> tuple:  # by content: file names change with the format
        settings = [str(key_of(values)) for values in (run.checkpoint, run.hyper_parameters)]
        return place.get(run.method, len(place)), run.method, *settings

    return sorted(runs.values(), key=rank)


def _unedited(
    name: str, record: Mapping[str, Any], known: Mapping[tuple, Mapping[str, Mapping[str, Any]]]
) -> Mapping[str, Any] | None:
    """Return the record of the model before all edits, by following `parent`; None if a record on the way is unknown.

    known: (digest, versions) -> folder -> record. All records on the way must have the same versions. One in the run's
    own folder comes first: it was measured by the same metrics.
    """
    while record["kind"] != UNEDITED:
        parents = known.get((record.get("parent"), versions(record)))
        if parents is None:
            return None
        record = parents.get(_folder(name)) or [*parents.values()][-1]
    return record


def _folder(name: str) -> str:
    return str(Path(name).parent)


def _place(record: Mapping[str, Any]) -> tuple:
    """Return a key of a model's experiment and versions, which a model and its never-planted twin share."""
    return run_key({**record, "kind": UNEDITED}), key_of(record.get(FINGERPRINTS, {})), versions(record)


def _run(
    name: str, record: Mapping[str, Any], unedited: Mapping[str, Any], twin: Mapping[str, Any] | None = None
) -> ComparedRun | None:
    """Return a run from a record and that of its unedited model; None if the compared results were not measured."""
    row, before = flat_row(record), flat_row(unedited)
    if _lacking(row, before):
        return None
    checkpoint = {
        key: value for key, value in identity_columns(record).items() if key != "kind" and not key.startswith("method.")
    }
    settings = {key: value for key, value in record.get("method", {}).items() if key != "name"}
    row = {"record": name, **row, "method.name": method_of(row), **_changes(row, before)}
    return ComparedRun(row, before, checkpoint, settings, twin and {**twin, **_changes(twin, before)})


def _lacking(row: Mapping[str, Any], before: Mapping[str, Any]) -> set[str]:
    """Return the compared results for which a run or its unedited model has no value."""
    needed = ("percent_memorized_train", "mean_test_accuracy" if on_numbers(row) else "perplexity")
    return {key for key in needed if row.get(key) is None or before.get(key) is None}


def _changes(row: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the columns COMPARED: changes in memorization and accuracy (points) and in perplexity (percent)."""

    def change(name: str) -> float | None:
        return None if row.get(name) is None or before.get(name) is None else row[name] - before[name]

    memorized, accuracy, rise = map(change, ("percent_memorized_train", "mean_test_accuracy", "perplexity"))
    return {
        "trade_off": trade_off(row, before) if on_numbers(row) and None not in (memorized, accuracy) else None,
        "change_memorized": memorized,
        "change_accuracy": accuracy,
        "perplexity_rise_percent": None if rise is None else 100 * rise / before["perplexity"],
    }


def twins(runs: Iterable[ComparedRun]) -> list[Mapping[str, Any]]:
    """Return the rows of the runs' never-planted twins, one per model that has a twin."""
    return list({key_of(run.checkpoint): run.twin for run in runs if run.twin is not None}.values())


def configurations(runs: Iterable[ComparedRun]) -> list[Configuration]:
    """Return the runs grouped into configurations that differ only in the seed, in order of first appearance.

    Edits made elsewhere are identified by their name: those with the same name on several seeds are one configuration,
    unless a seed has more than one of them.
    """
    runs = list(runs)
    foreign = [run for run in runs if run.row["kind"] == MEASURED]
    counts = Counter((key_of(run.checkpoint), run.method) for run in foreign)
    several = {(_experiment_key(run), run.method) for run in foreign if counts[key_of(run.checkpoint), run.method] > 1}

    def key(run: ComparedRun) -> tuple:
        about = _experiment_key(run), run.method
        by_name = run.row["kind"] == MEASURED and about not in several
        return *about, () if by_name else key_of(run.hyper_parameters)

    return list(map(Configuration, grouped(runs, key)))


def experiments(some: Iterable[Configuration]) -> list[list[Configuration]]:
    """Return the configurations grouped by experiment: same data, model, training, task and versions."""
    return grouped(some, lambda configuration: _experiment_key(configuration.runs[0]))


def best(some: Iterable[Configuration], max_perplexity_rise: float = math.inf) -> list[Configuration]:
    """Return the `leading` configurations that keep the utility limit. Methods without one are left out."""
    return [one for one in leading(some, max_perplexity_rise) if not over_limit(one, max_perplexity_rise)]


def leading(some: Iterable[Configuration], max_perplexity_rise: float = math.inf) -> list[Configuration]:
    """Return the best configuration of each method of one experiment, in order of first appearance.

    Numbers: the lowest mean `trade_off`. Text and production models: the lowest memorization among configurations whose
    perplexity rose by at most `max_perplexity_rise` percent on average; if there are none, the lowest perplexity. Ties
    go to the lowest perplexity, then to the fewest zeroed weights.

    With validation sequences, only these determine memorization, since settings chosen by the reported result look
    better than they are. Only `candidates` are chosen. Configurations without effect are excluded if another one has an
    effect, since changing nothing is not the best way to unlearn.
    """
    chosen = []
    for rivals in grouped(candidates(some), lambda configuration: configuration.method):
        rivals = [rival for rival in rivals if not without_effect(rival)] or rivals
        kept = [rival for rival in rivals if not over_limit(rival, max_perplexity_rise)]
        chosen.append(
            best_of(kept) if kept else min(rivals, key=lambda rival: rival.known_mean("perplexity_rise_percent"))
        )
    return chosen


def candidates(some: Iterable[Configuration]) -> list[Configuration]:
    """Return the configurations of one experiment that may be chosen.

    Those with fewer seeds than others of their method are excluded, since a single lucky seed would win; so are those
    without validation sequences if others of their method have some, since all must be judged by the same sequences.
    """
    kept: list[Configuration] = []
    for rivals in grouped(some, lambda configuration: configuration.method):
        rivals = [rival for rival in rivals if validated(rival)] or rivals
        most = max(len(rival.runs) for rival in rivals)
        kept += [rival for rival in rivals if len(rival.runs) == most]
    return kept


def best_of(rivals: Sequence[Configuration]) -> Configuration:
    """Return the best of some candidates: by `validated_merit` if all have validation sequences, else by `merit`."""
    return min(rivals, key=validated_merit if all(map(validated, rivals)) else merit)


def over_limit(configuration: Configuration, max_perplexity_rise: float) -> bool:
    """Return whether perplexity rose by more percent on average. Always False for number models."""
    return not configuration.on_numbers and configuration.known_mean("perplexity_rise_percent") > max_perplexity_rise


def without_effect(configuration: Configuration) -> bool:
    """Return whether memorization fell by less than a point. Always True for the unedited model."""
    return configuration.known_mean("change_memorized") > -POINTS


def merit(configuration: Configuration) -> tuple[float, ...]:
    """Return the sort key of configurations of one experiment; lower is better. Unknown values are worst."""
    first = "trade_off" if configuration.on_numbers else "percent_memorized_train"
    found = map(configuration.mean, (first, "perplexity", "percent_zeroed"))
    return tuple(math.inf if value is None else value for value in found)


def validated(configuration: Configuration) -> bool:
    """Return whether there are validation sequences for choosing settings."""
    return configuration.mean(VALIDATION) is not None


def validated_merit(configuration: Configuration) -> tuple[float, ...]:
    """Return the sort key with the memorization of the validation sequences only. All configurations need some."""
    accuracy = configuration.known_mean("change_accuracy") if configuration.on_numbers else 0.0
    return configuration.known_mean(VALIDATION) / 100 - accuracy, *merit(configuration)[1:]


def pareto(runs: Iterable[ComparedRun]) -> list[list[ComparedRun]]:
    """Return the Pareto-optimal runs of each checkpoint, including its unedited model, by increasing memorization.

    A run is Pareto-optimal if no other run of the checkpoint is as good in both memorization and quality and better in
    one.
    """
    fronts = []
    for some in grouped(runs, lambda run: key_of(run.checkpoint)):
        front = set(pareto_front([(run.row["percent_memorized_train"], run.quality) for run in some]))
        on_it = [run for run in some if (run.row["percent_memorized_train"], run.quality) in front]
        fronts.append(sorted(on_it, key=lambda run: run.row["percent_memorized_train"]))
    return fronts


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal points (memorized: lower is better, quality: higher is better), by the former."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _experiment_key(run: ComparedRun) -> tuple:
    return key_of({name: value for name, value in run.checkpoint.items() if name not in SEEDS})
