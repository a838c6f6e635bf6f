"""The numbers that reproduce.py compares: published ones and ours, from records."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduction import SLIP_RATIOS, SLIP_SEQUENCES, Case, Row, slip_identity, trained_epochs

from tinymem.localize.method import Method
from tinymem.localize.registry import METHODS, find_methods
from tinymem.localize.task import TaskSettings
from tinymem.records.choose import ComparedRun, Configuration, configurations, unlearning_runs
from tinymem.records.identity import FINGERPRINTS, RIVALS, TRAIN, sections_of
from tinymem.records.interval import fixed, with_range
from tinymem.records.record import find_record
from tinymem.records.table import named_records
from tinymem.sweeps.grid import Grid
from tinymem.sweeps.hp_grid import hyper_parameters
from tinymem.sweeps.jobs import unlearning_identity

NAMES = {"Second-Order (OBS)": "obs", "BalancedSubnet": "balanced_subnet"}  # published names that are not ours


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    by_seed: Mapping[Any, float]

    @property
    def values(self) -> list[float]:
        return list(self.by_seed.values())

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def seeds(self) -> str:
        return " ".join(map(str, self.by_seed))

    def text(self, digits: int) -> str:
        """Return the mean and, if there are several values, their range in brackets."""
        if not self.values:
            return "-"
        if len(self.values) == 1:
            return fixed(self.mean, digits)
        return with_range(self.mean, min(self.values), max(self.values), digits)


def signed(number: float, digits: int) -> str:
    return fixed(number, digits, "+")


@dataclass(frozen=True)
class Comparison:
    """One measurement, published and ours. digits: decimals shown."""

    label: str
    epoch: int
    measure: str
    published: Spread
    ours: Spread
    digits: int

    @property
    def difference(self) -> float | None:
        """The difference of the means over the seeds that both have, since seeds differ more than implementations."""
        common = [seed for seed in self.ours.by_seed if seed in self.published.by_seed]
        if not common:
            return None
        return sum(self.ours.by_seed[seed] - self.published.by_seed[seed] for seed in common) / len(common)

    def cells(self) -> list[str]:
        difference = "-" if self.difference is None else signed(self.difference, self.digits)
        numbers = (self.published.text(self.digits), self.ours.text(self.digits))
        return [self.label, str(self.epoch), self.measure, *numbers, difference, self.ours.seeds]


@dataclass(frozen=True)
class Published:
    """A method's published best run. Accuracy lost: percentage points against the published unedited model."""

    settings: Mapping[str, float]  # the ratio and what else was published
    memorized: float
    lost: float
    seconds: float | None

    @classmethod
    def of(cls, row: Row, unedited: Row) -> Published:
        words = row["other"].replace("block ", "block_size ").split()
        settings = {"ratio": float(row["best_ratio_percent"]) / 100, **dict(zip(words[::2], map(float, words[1::2])))}
        lost = float(unedited["mean_test_accuracy_percent"]) - float(row["mean_test_accuracy_percent"])
        return cls(settings, float(row["percent_memorized"]), lost, float(row["seconds"]) if row["seconds"] else None)


@dataclass(frozen=True)
class Unlearned:
    """A method: its published run and all our runs."""

    method: str
    published: Published
    ours: Sequence[Configuration]

    @property
    def at_published(self) -> Configuration | None:
        """Our run with the published settings, and defaults for unpublished ones; with any `greedy_k`."""
        asked = {**defaults(self.method), **self.published.settings}
        for configuration in self.ours:
            found = {**configuration.hyper_parameters, "greedy_k": asked.get("greedy_k")}
            if all(found.get(name) == value for name, value in asked.items()):
                return configuration
        return None

    @property
    def closest(self) -> Configuration:
        return best(self.ours, self.published)

    def points_by_seed(self) -> dict[str, list[tuple[float, float]]]:
        """Accuracy lost and % memorized of all our runs, by seed."""
        found: dict[str, list[tuple[float, float]]] = {}
        for run in sorted((run for some in self.ours for run in some.runs), key=seed_of):
            point = -100 * run.row["change_accuracy"], run.row["percent_memorized_test"]
            found.setdefault(f"seed {run.row['data.seed']}", []).append(point)
        return found

    def cells_at_published(self) -> list[str]:
        """Return a line of the table at the published settings."""
        published, ours = self.published, self.at_published
        asked = ours.hyper_parameters if ours else {**defaults(self.method), **published.settings}
        numbers = [f"{published.memorized:.1f}", f"{published.lost:.2f}", *_numbers(ours)]
        differences = ["-", "-"]
        if ours:
            differences = [signed(memorized(ours).mean - published.memorized, 1)]
            differences += [signed(lost(ours).mean - published.lost, 2)]
        seconds = "-" if published.seconds is None else f"{published.seconds:.3g}"
        return [self.method, setting(self.method, asked), *numbers, *differences, _seeds(ours), seconds, _seconds(ours)]

    def cells_of_closest(self) -> list[str]:
        """Return a line of the table of our closest runs."""
        ours = self.closest
        as_good = "yes" if shortfall(ours, self.published) == 0 else "**no**"
        asked = setting(self.method, ours.hyper_parameters)
        published = f"{self.published.memorized:.1f}", f"{self.published.lost:.2f}"
        return [self.method, *published, asked, *_numbers(ours), as_good, _seeds(ours), _seconds(ours)]


def defaults(method: str) -> dict[str, Any]:
    """Return a method's default hyper-parameters for a small model, without the ratio."""
    return unvaried(METHODS[method], METHODS[method].hyper_parameters())


def unvaried(method: Method, hp: Any) -> dict[str, Any]:
    """Return a method's hyper-parameters as in records, without the ratio."""
    return {name: value for name, value in method.unvaried(hp).items() if name != "name"}


def setting(method: str, hyper_parameters: Mapping[str, Any]) -> str:
    """Return the ratio, the epochs, and all settings that are not at their defaults."""
    usual = defaults(method)
    others = {
        name: value
        for name, value in hyper_parameters.items()
        if name != "ratio" and (name == "epochs" or value != usual.get(name))
    }
    text = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in others.items()}
    return f"{100 * hyper_parameters['ratio']:g} %" + "".join(f", {name} {value}" for name, value in text.items())


def memorized(configuration: Configuration) -> Spread:
    """Return % memorized of the test triggers."""
    return over_seeds(configuration, "percent_memorized_test")


def lost(configuration: Configuration) -> Spread:
    """Return the accuracy lost against our unedited model, in percentage points."""
    return over_seeds(configuration, "change_accuracy", -100.0)


def over_seeds(configuration: Configuration, name: str, factor: float = 1.0) -> Spread:
    return Spread({run.row["data.seed"]: factor * run.row[name] for run in sorted(configuration.runs, key=seed_of)})


def seed_of(run: ComparedRun) -> int:
    return run.row["data.seed"]


def _numbers(configuration: Configuration | None) -> list[str]:
    return [memorized(configuration).text(1), lost(configuration).text(2)] if configuration else ["-", "-"]


def _seeds(configuration: Configuration | None) -> str:
    return memorized(configuration).seeds if configuration else "-"


def _seconds(configuration: Configuration | None) -> str:
    return over_seeds(configuration, "cost.seconds").text(0) if configuration else "-"


def shortfall(configuration: Configuration, published: Published) -> float:
    """Return how many percentage points more than published it memorizes and loses in accuracy. 0: as good."""
    more, less = memorized(configuration).mean - published.memorized, lost(configuration).mean - published.lost
    return max(0.0, more) + max(0.0, less)


def compare_training(case: Case, folder: Path) -> list[Comparison]:
    """Return the measurements of a case's models at the published epochs that some seed has reached."""
    found = []
    for epoch in case.epochs:
        rows = {int(row["seed"]): row for row in case.published if int(row["epoch"]) == epoch}
        ours = {seed: record for seed in case.seeds if (record := trained(case, seed, epoch, folder))}
        if not ours:
            continue
        share = "percent_memorized_test" if case.artifact == "backdoor" else "percent_memorized_train"
        measures = [
            ("% memorized", "percent_memorized", share, ours, 1),
            ("train loss", "train_loss", "train_loss", ours, 4),
            ("accuracy", "mean_test_accuracy", "mean_test_accuracy", ours, 4),
        ]
        slips = {seed: record for seed in ours if (record := repeated(case, seed, epoch, folder, "triggers"))}
        counts = {seed: record for seed, record in slips.items() if "percent_memorized_counted" in record["results"]}
        if counts:
            again = "% memorized, counted as published"
            measures.insert(1, (again, "percent_memorized", "percent_memorized_counted", counts, 1))
        for measure, column, result, records, digits in measures:
            published = Spread({seed: float(row[column]) for seed, row in rows.items()})
            values = Spread({seed: record["results"][result] for seed, record in records.items()})
            found.append(Comparison(case.title, epoch, measure, published, values, digits))
    return found


def trained(case: Case, seed: int, epoch: int, folder: Path) -> dict[str, Any] | None:
    return find_record(folder, {"kind": TRAIN, **case.settings(seed, epoch).sections()})


def repeated(case: Case, seed: int, epoch: int, folder: Path, slip: str, **own: float) -> dict[str, Any] | None:
    """Return the results that as_published.py recorded for a slip."""
    return find_record(folder, slip_identity(case.settings(seed, epoch), trained_epochs(epoch), slip, **own))


def inverted_zero_out(case: Case, folder: Path) -> list[tuple[float, Spread, Spread]]:
    """Return ratio, % memorized and accuracy lost of Zero-Out with the study's slip, for every ratio with a run."""
    found = []
    for ratio in SLIP_RATIOS:
        own = {"ratio": ratio, "sequences": SLIP_SEQUENCES}
        records = {
            seed: record
            for seed in case.seeds
            if (record := repeated(case, seed, case.unlearned, folder, "zero_out", **own))
        }
        measures = ("percent_memorized_test", "accuracy_lost")
        if records:
            spreads = (Spread({seed: record["results"][name] for seed, record in records.items()}) for name in measures)
            found.append((ratio, *spreads))
    return found


def compare_unlearning(case: Case, grids: Mapping[str, Grid], folder: Path) -> list[Unlearned]:
    """Return every method's runs on a case's models, with the published run. Only runs of reproduce.py count."""
    rows = {ours_of(row): row for row in case.published_unlearning}
    runs = unlearning_runs(own_records(case, folder), tuple(METHODS), warn=lambda text: print(text, file=sys.stderr))
    asked = [
        (method.name, {"ratio": ratio, **unvaried(method, hp)})
        for method, hp in hyper_parameters(grids, find_methods(list(grids)))
        for ratio in hp.ratio
    ]
    ours = [c for c in configurations(runs) if (c.method, dict(c.hyper_parameters)) in asked]
    return [
        Unlearned(method, Published.of(rows[method], rows["unedited"]), [c for c in ours if c.method == method])
        for method in dict.fromkeys(c.method for c in ours)
        if method in rows
    ]


def own_records(case: Case, folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the unlearning records of a case's models with the usual task, without runs by hand with another task."""
    if case.unlearned is None:
        return []
    epoch = trained_epochs(case.unlearned)
    every = [
        sections_of(unlearning_identity(case.settings(seed, case.unlearned), epoch, TaskSettings()))
        for seed in case.seeds
    ]
    beside = ("method", FINGERPRINTS)
    named = named_records(folder / "records")  # the folder also has records of as_published.py, some on other models
    return [(name, r) for name, r in named if r["kind"] in RIVALS and sections_of(r, beside) in every]


def ours_of(row: Row) -> str:
    """Return our name for a method in the published table."""
    return NAMES.get(row["method"], row["method"].lower().replace(" ", "_").replace("-", "_"))


def best(rivals: Sequence[Configuration], published: Published) -> Configuration:
    """Return the configuration closest to published; ties go to the most seeds, then to the best trade-off.

    A single lucky seed does not count if others have more seeds.
    """

    def seeds(rival: Configuration) -> int:
        return len({run.row["data.seed"] for run in rival.runs})

    def rank(rival: Configuration) -> tuple:
        trade = rival.mean("percent_memorized_test") / 100 - rival.mean("change_accuracy")
        return shortfall(rival, published), -seeds(rival), trade

    several = [rival for rival in rivals if seeds(rival) > 1]
    return min(several or rivals, key=rank)
