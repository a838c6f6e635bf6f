"""The report of reproduce.py: published numbers and ours side by side, from records."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduction import Case, Row, recount_identity, trained_epochs

from tinymem import files
from tinymem.localize.registry import METHODS
from tinymem.plots import Panel, plot_side_by_side, plot_trade_offs
from tinymem.records.choose import Configuration, configurations, unlearning_runs
from tinymem.records.record import find_record
from tinymem.records.table import load_records, markdown, named_records

DIFFERENCES = "DIFFERENCES.md"  # written by hand, beside the records; becomes a part of the report
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

    def text(self, digits: int) -> str:
        """Mean, and in brackets the range where there are several."""
        if not self.values:
            return "-"
        low, high = min(self.values), max(self.values)
        extent = f" ({low:.{digits}f} to {high:.{digits}f})" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{extent}"


@dataclass(frozen=True)
class Comparison:
    """One measured thing, published and ours. `digits` of the fraction are shown."""

    label: str
    epoch: int
    measure: str
    published: Spread
    ours: Spread
    digits: int

    @property
    def difference(self) -> float | None:
        """Of the means, over the seeds that both have: seeds differ more than implementations."""
        common = [seed for seed in self.ours.by_seed if seed in self.published.by_seed]
        if not common:
            return None
        return sum(self.ours.by_seed[seed] - self.published.by_seed[seed] for seed in common) / len(common)

    def cells(self) -> list[str]:
        difference = "-" if self.difference is None else f"{round(self.difference, self.digits) + 0.0:+.{self.digits}f}"
        seeds = " ".join(map(str, self.ours.by_seed))
        numbers = (self.published.text(self.digits), self.ours.text(self.digits))
        return [self.label, str(self.epoch), self.measure, *numbers, difference, seeds]


@dataclass(frozen=True)
class Unlearned:
    """A method's published best run beside ours. Accuracies in percent, lost: against the own unedited model."""

    method: str
    published: Mapping[str, float]
    ours: Configuration
    every: Sequence[Configuration]  # among them `ours`

    def memorized(self) -> Spread:
        return over_seeds(self.ours, "percent_memorized_test")

    def lost(self) -> Spread:
        return over_seeds(self.ours, "change_accuracy", -100.0)

    @property
    def as_good(self) -> bool:
        """Memorization no higher at no more accuracy lost."""
        return shortfall(self.ours, self.published) == 0

    @property
    def point(self) -> tuple[float, float]:
        """Published: accuracy lost, memorized."""
        return self.published["lost"], self.published["memorized"]

    def points_by_seed(self) -> dict[str, list[tuple[float, float]]]:
        """The same of all our runs."""
        found: dict[str, list[tuple[float, float]]] = {}
        for run in sorted((run for some in self.every for run in some.runs), key=lambda run: run.row["seed"]):
            point = -100 * run.row["change_accuracy"], run.row["percent_memorized_test"]
            found.setdefault(f"seed {run.row['seed']}", []).append(point)
        return found

    def cells(self) -> list[str]:
        published = self.published
        difference = self.memorized().mean - published["memorized"]
        return [
            self.method,
            f"{published['ratio']:g} %",
            f"{published['memorized']:.1f}",
            f"{published['lost']:.2f}",
            setting(self.method, self.ours.hyper_parameters),
            self.memorized().text(1),
            self.lost().text(2),
            f"{difference:+.1f}",
            "yes" if self.as_good else "**no**",
            f"{self.ours.mean('seconds'):.0f}",
        ]


def setting(method: str, hyper_parameters: Mapping[str, Any]) -> str:
    """The ratio, the epochs, and whatever is not the default."""
    usual = METHODS[method].resolve(METHODS[method].hyper_parameters(), 0)
    others = {
        name: value
        for name, value in hyper_parameters.items()
        if name != "ratio" and (name == "epochs" or value != getattr(usual, name))
    }
    return f"{100 * hyper_parameters['ratio']:g} %" + "".join(f", {name} {value:g}" for name, value in others.items())


def over_seeds(configuration: Configuration, name: str, factor: float = 1.0) -> Spread:
    return Spread({run.row["seed"]: factor * run.row[name] for run in configuration.runs})


def shortfall(configuration: Configuration, published: Mapping[str, float]) -> float:
    """Points of percent that it is worse than published: memorizes more, and loses more accuracy. 0: as good."""
    memorized, change = configuration.mean("percent_memorized_test"), configuration.mean("change_accuracy")
    return max(0.0, memorized - published["memorized"]) + max(0.0, -100 * change - published["lost"])


def compare_training(case: Case, folder: Path) -> list[Comparison]:
    """What was measured of a case's models at its published epochs; nothing for an epoch that no seed has reached."""
    found = []
    for epoch in case.epochs:
        rows = {int(row["seed"]): row for row in case.published if int(row["epoch"]) == epoch}
        ours = {seed: record for seed in case.seeds if (record := trained(case, seed, epoch, folder))}
        if not ours:
            continue
        backdoor = case.artifact == "backdoor"
        memorized = "percent_memorized_test" if backdoor else "percent_memorized_train"
        measures = [
            ("% memorized", "percent_memorized", {seed: r["results"][memorized] for seed, r in ours.items()}, 1),
            ("train loss", "train_loss", {seed: r["results"]["train_loss"] for seed, r in ours.items()}, 4),
            ("accuracy", "mean_test_accuracy", {s: r["results"]["mean_test_accuracy"] for s, r in ours.items()}, 4),
        ]
        recounted = {seed: r["results"]["percent_memorized_as_published"] for seed in ours
                     if (r := recount(case, seed, epoch, folder))}  # fmt: skip
        if recounted:
            measures.insert(1, ("% memorized, counted as published", "percent_memorized", recounted, 1))
        for measure, column, values, digits in measures:
            published = Spread({seed: float(row[column]) for seed, row in rows.items()})
            found.append(Comparison(case.title, epoch, measure, published, Spread(values), digits))
    return found


def trained(case: Case, seed: int, epoch: int, folder: Path) -> dict[str, Any] | None:
    return find_record(folder, {"run": "train", **case.settings(seed, epoch).flat()})


def recount(case: Case, seed: int, epoch: int, folder: Path) -> dict[str, Any] | None:
    return find_record(folder, recount_identity(case.settings(seed, epoch), trained_epochs(epoch)))


def compare_unlearning(case: Case, folder: Path) -> list[Unlearned]:
    """The best run of every method on a case's models beside the published one, over the seeds that ran it."""
    rows = {ours_of(row): row for row in case.published_unlearning}
    if "unedited" not in rows:
        return []
    own = {"epoch": trained_epochs(case.unlearned), **case.identity}
    records = [r for r in named_records(folder) if own.items() <= r[1]["settings"].items()]
    every = [c for c in configurations(unlearning_runs(records, tuple(METHODS))) if c.method != "unedited"]
    before = float(rows["unedited"]["mean_test_accuracy_percent"])
    found = []
    for method in dict.fromkeys(configuration.method for configuration in every):
        published = {
            "ratio": float(rows[method]["best_ratio_percent"]),
            "memorized": float(rows[method]["percent_memorized"]),
            "lost": before - float(rows[method]["mean_test_accuracy_percent"]),
        }
        rivals = [configuration for configuration in every if configuration.method == method]
        found.append(Unlearned(method, published, best(rivals, published), rivals))
    return found


def ours_of(row: Row) -> str:
    """Our name of a method in the published table."""
    return NAMES.get(row["method"], row["method"].lower().replace(" ", "_").replace("-", "_"))


def best(rivals: Sequence[Configuration], published: Mapping[str, float]) -> Configuration:
    """Of those with the most seeds the one that comes closest to published; of several as good the best trade."""

    def seeds(rival: Configuration) -> int:
        return len({run.row["seed"] for run in rival.runs})

    def rank(rival: Configuration) -> tuple:
        trade = rival.mean("percent_memorized_test") / 100 - rival.mean("change_accuracy")
        return shortfall(rival, published), trade

    most = max(map(seeds, rivals))
    return min((rival for rival in rivals if seeds(rival) == most), key=rank)


TRAINING_HEAD = ("model", "epoch", "measure", "published", "ours", "difference", "our seeds")
UNLEARNING_HEAD = ("method", "published ratio", "memorized %", "accuracy lost", "our setting", "memorized %")
UNLEARNING_HEAD += ("accuracy lost", "difference", "as good", "seconds")
TIME_HEAD = ("model", "seed", "epochs", "minutes", "seconds an epoch", "device", "threads", "precision", "torch")


def write_report(cases: Iterable[Case], results: Path) -> None:
    """Writes REPRODUCTION.md and reproduction/figure.png, .pdf from reproduction/records in the folder `results`.

    reproduction/DIFFERENCES.md, where it is there, becomes a part of it.
    """
    folder = results / "reproduction"
    if not load_records(folder):
        print("no case has a finished run yet: no report", file=sys.stderr)
        return
    cases = list(cases)
    trained_rows = [row for case in cases for row in compare_training(case, folder)]
    unlearned = [(case, rows) for case in cases if (rows := compare_unlearning(case, folder))]
    parts = [
        "# The study's numbers and ours",
        "Generated by `python experiments/reproduce.py` from the records in "
        "[reproduction/records](reproduction/records). Means over the seeds, in brackets their range; differences over "
        "the seeds that both have. Published: the files in [published](published).",
        "![published and ours side by side](reproduction/figure.png)",
        "## Training",
        "Backdoors: % memorized of the test triggers, all of them, and counted as the study's code does "
        "([as_published.py](../experiments/as_published.py)). Noise: of the noised training sequences. Accuracy: mean "
        "over the five test sets.",
        markdown(TRAINING_HEAD, (row.cells() for row in trained_rows)),
    ]
    for case, rows in unlearned:
        trade_offs = f"trade_off_{case.name}"
        plot_trade_offs({row.method: (row.point, row.points_by_seed()) for row in rows}, folder / trade_offs)
        parts += [
            f"## Unlearning: {case.title}, epoch {case.unlearned}",
            "The published best ratio, and our run that comes closest: the best of those as good, else the one that "
            "lacks the fewest points. Memorized: of the test triggers. Accuracy lost: points of percent against the own "
            "unedited model. As good: memorization no higher at no more accuracy lost; published memorization is of the "
            "triggers that the study's code counts, ours of all. What was tried stands in "
            "[reproduction.py](../experiments/reproduction.py); the loss cap is an addition of ours.",
            markdown(UNLEARNING_HEAD, (row.cells() for row in rows)),
            "All runs, of every setting and seed, around the published point; in the shaded corner they are as good:",
            f"![all runs around the published points](reproduction/{trade_offs}.png)",
        ]
    differences = folder / DIFFERENCES
    if differences.exists():
        parts += ["## Differences", differences.read_text(encoding="utf-8").strip()]
    parts += ["## Time and hardware", markdown(TIME_HEAD, times(cases, folder))]
    text = "\n\n".join(parts) + "\n"
    files.write_file(results / "REPRODUCTION.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    plot_side_by_side(panels(trained_rows, unlearned), results / "reproduction" / "figure")


def panels(trained_rows: Sequence[Comparison], unlearned: Sequence[tuple[Case, Sequence[Unlearned]]]) -> list[Panel]:
    """Of the figure: memorization and accuracy of the trained models, then of the unlearned ones."""
    found = []
    for measure, axis in (("% memorized", "% memorized"), ("accuracy", "mean test accuracy")):
        rows = [row for row in trained_rows if row.measure == measure]
        lines = [(f"{row.label}, epoch {row.epoch}", row.published.values, row.ours.values) for row in rows]
        found.append(Panel("Trained", axis, lines))
    for case, rows in unlearned:
        title = f"Unlearned: {case.title}, epoch {case.unlearned}"
        for name, axis in (("memorized", "% memorized"), ("lost", "accuracy lost, points of percent")):
            lines = [(row.method.replace("_", " "), [row.published[name]], getattr(row, name)().values) for row in rows]
            found.append(Panel(title, axis, lines))
    return found


def times(cases: Iterable[Case], folder: Path) -> Iterable[list[str]]:
    """A line for each training's last published epoch."""
    for case in cases:
        for seed in case.seeds:
            records = [(epoch, record) for epoch in case.epochs if (record := trained(case, seed, epoch, folder))]
            if not records:
                continue
            epoch, record = records[-1]
            seconds, machine = record["cost"]["seconds"], record["environment"]
            names = ("device", "threads", "auto_dtype", "torch")
            yield [case.title, str(seed), str(trained_epochs(epoch)), f"{seconds / 60:.0f}"] + [
                f"{seconds / trained_epochs(epoch):.0f}", *(str(machine[name]) for name in names)
            ]  # fmt: skip
