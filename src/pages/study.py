"""The content of a folder of records: experiments with their rankings and attacks, and all other records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinymem.attacks.recovery import Attacked, attacked_models, averaged
from tinymem.localize.registry import METHODS
from tinymem.records.choose import ComparedRun, Configuration, configurations, experiments, twins, unlearning_runs
from tinymem.records.grouping import grouped
from tinymem.records.identity import record_digest, sections_of
from tinymem.records.interval import over_all
from tinymem.records.ranking import Ranking, ranked
from tinymem.records.table import mixed_versions, named_records, versions
from tinymem.records.titles import titles

Named = tuple[str, Mapping[str, Any]]  # path of a record relative to the folder, record


@dataclass(frozen=True)
class Experiment:
    """The runs on one model with one task, over all seeds.

    folder   where the records were read
    some     all configurations, including the unedited model's
    records  all records on the same models: runs, their originals and twins, attacks on them
    """

    folder: Path
    title: str
    ranking: Ranking
    some: Sequence[Configuration]
    records: Sequence[Named]

    @property
    def shown(self) -> list[Configuration]:
        """The unedited model, if known, and the best run of each method."""
        return [*([self.ranking.original] if self.ranking.original else []), *self.ranking.places]

    @property
    def runs(self) -> list[ComparedRun]:
        return [run for one in self.some for run in one.runs]

    def twin(self, column: str) -> float | None:
        """Return the mean of a result of the never-planted twins; None if one lacks it."""
        return over_all([twin.get(column) for twin in twins(self.runs)])[0]

    @property
    def subjects(self) -> list[list[Named]]:
        """The records of each seed."""
        return grouped(self.records, lambda named: _subject(named[1]))

    def digests(self, one: Configuration) -> list[str]:
        """Return the digests of the records of a configuration."""
        known = dict(self.records)
        return [record_digest(known[run.row["record"]]) for run in one.runs]

    @cached_property
    def attacked(self) -> tuple[str, list[Attacked]]:
        """The split on which attacks are judged, and every attacked model, mean over its seeds."""
        split, _ = attacked_models(record for _, record in self.records)
        models = [
            model for some in self.subjects for model in attacked_models([record for _, record in some], split)[1]
        ]
        places = {digest: place for place, one in enumerate(self.some) for digest in self.digests(one)}

        def alike(model: Attacked) -> Any:
            record = model.record
            return places.get(record_digest(record), (record["kind"], _text(record.get("method"))))

        return split, [averaged(some) for some in grouped(models, alike)]


@dataclass(frozen=True)
class Study:
    """A folder of records. others: records outside the experiments. notes: what was left out, one line each."""

    folder: Path
    experiments: Sequence[Experiment]
    records: Sequence[Named]
    others: Sequence[Named]
    notes: Sequence[str]


def read_study(folder: str | Path, limit: float, warn: Callable[[str], None] = lambda line: None) -> Study:
    """Return the content of a folder. limit: as in `ranked`. warn: receives the notes.

    Raise UserError if there is no record, or for a damaged one.
    """
    records = list(named_records(folder))
    notes = [line] if (line := mixed_versions(versions(record) for _, record in records)) else []
    runs = unlearning_runs(records, tuple(METHODS), warn=notes.append)
    for line in notes:
        warn(line)
    by_subject: dict[tuple, list[Named]] = {}
    for named in records:
        by_subject.setdefault(_subject(named[1]), []).append(named)
    known = dict(records)
    groups = experiments(configurations(runs))
    found, counted = [], set()
    for title, group in zip(titles([group[0].experiment for group in groups]), groups):
        subjects = dict.fromkeys(_subject(known[run.row["record"]]) for one in group for run in one.runs)
        of_it = [named for subject in subjects for named in by_subject[subject]]
        found.append(Experiment(Path(folder), title, ranked(group, limit), group, of_it))
        counted |= {name for name, _ in of_it}
    others = [named for named in records if named[0] not in counted]
    return Study(Path(folder), found, records, others, notes)


def _subject(record: Mapping[str, Any]) -> tuple:
    """Return a key of a model and its measurement, the same for all its edits, its twin, and attacks on these."""
    return _text(sections_of(record, ("method", "attack"))), versions(record)


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True)
