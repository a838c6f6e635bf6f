"""The rows of the leaderboard, from evidence alone: the chosen trials and their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tinymem.attacks.recovery import UNCOUNTED, Attacked, attacked_models, averaged
from tinymem.leaderboard.bench import Bench, bench_of
from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.entrants import (
    ANCHOR,
    DATA,
    OWN,
    SUBMISSION,
    Entrant,
    RecordedTrial,
    SubmittedTrial,
    TrainingTrial,
    Trial,
    settings_of,
)
from tinymem.leaderboard.evidence import ATTACKED, FORGETTING, JUDGED, PRIVACY, RECOVERED, Evidence, seed_of
from tinymem.leaderboard.names import within
from tinymem.leaderboard.protocol import key_of, split_strengths, training_identity
from tinymem.leaderboard.score import PARTS, Figure, Jury, attack_key, harmonic, ranks, share_of_way
from tinymem.records.identity import MEASURED, NEVER_PLANTED, UNLEARN, Record, record_digest, run_key
from tinymem.records.interval import over_all

TWIN, UNEDITED = "never-planted twin", "unedited"
NOT_RUN, NOT_FINISHED, NOT_SAID = "not run", "not finished", "not said"
# Rows that tables leave out.
ABSENT = {NOT_RUN: "Not run", NOT_FINISHED: "Tuned, but not measured and attacked on all seeds yet"}
LEAST_GAP = {"exact_match_share": 0.02}  # on validation sequences, to choose a trial by; for percentages: LEAST_POINTS
LEAST_POINTS = 10.0
ROUNDING = 1e-9  # tolerance of limits: in floating point, 0.98 - 0.97 is more than a point
RAW = (RECOVERED, *(f"{name}_{JUDGED}" for name in (*FORGETTING, *PRIVACY)))
PLAIN = ("kl_unseen", "flip_rate_unseen", "neighbour_accuracy")  # means over seeds, without an interval
COST = ("seconds", "peak_memory_gb")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    setting    the chosen settings, as text
    trials     number of settings that were tried
    figures    by column: score, its parts, and the raw figures
    plain      columns without an interval: seconds, peak_memory_gb ...
    excess     by attack, in percentage points: how much more it brings back than from the twin
    rank       best and worst rank; None for anchors and rows without a score
    note       why there is no score; "" if there is one
    records    one per seed
    """

    name: str
    group: str
    needs: str
    setting: str = ""
    trials: int = 0
    figures: Mapping[str, Figure | None] = field(default_factory=dict)
    plain: Mapping[str, float | None] = field(default_factory=dict)
    excess: Mapping[str, Figure | None] = field(default_factory=dict)
    rank: tuple[int, int] | None = None
    note: str = ""
    records: tuple[Record, ...] = ()

    @property
    def score(self) -> float:
        """The score; -1 without one."""
        found = self.figures.get("score")
        return -1.0 if found is None else found.value

    @property
    def worst_attack(self) -> tuple[str, Figure] | None:
        """Of the attacks that count, the one that brings back most."""
        counted = [(name, each) for name, each in self.excess.items() if each and name not in UNCOUNTED]
        return max(counted, key=lambda pair: pair[1].value, default=None)


class Candidate(NamedTuple):
    """A trial within the limit of lost utility. digest: that of its record."""

    forgotten: float
    loss: float
    digest: str
    trial: Trial

    @property
    def merit(self) -> tuple[float, float, str]:
        """The sort key; higher is better."""
        return self.forgotten, -self.loss, self.digest


def choose(entrant: Entrant, case: Case, evidence: Evidence, limit: float) -> Trial | None:
    """Return the trial that forgets most of the first seed's validation sequences within the limit of lost utility.

    Ties go to the lower loss, then to the record's digest. Return None if no trial is within the limit or none has been
    run. An entrant that is not tuned has one trial. An anchor's is chosen whatever its loss, a submission's until it
    has been measured.
    """
    trials, seed = split_strengths(entrant), evidence.seeds[0]
    bench = bench_of(case, seed)
    if not entrant.tuned and (entrant.group == ANCHOR or key_of(trials[0], bench) not in evidence.by_key):
        return trials[0]
    original, twin = evidence.unedited(seed)["results"], evidence.unedited(seed, NEVER_PLANTED)["results"]
    candidates = []
    for trial in trials:
        if (record := evidence.by_key.get(key_of(trial, bench))) is not None:
            results = record["results"]
            loss = case.utility.loss(results.get(case.utility.column), original[case.utility.column])
            if loss <= limit + ROUNDING:
                candidates.append(Candidate(forgotten(results, original, twin), loss, record_digest(record), trial))
    best = max(candidates, key=lambda candidate: candidate.merit, default=None)
    return best.trial if best else None


def forgotten(results: Mapping[str, Any], original: Mapping[str, Any], twin: Mapping[str, Any]) -> float:
    """Return the worst share of the way from the original to the twin, over metrics that tell these two apart.

    It is that of the validation sequences; 0 for a metric that was not measured. A metric tells them apart if its
    values differ by at least LEAST_POINTS.
    """
    shares = []
    for name in FORGETTING:
        now, before, goal = (values.get(f"{name}_validation") for values in (results, original, twin))
        if before is not None and goal is not None and before - goal >= LEAST_GAP.get(name, LEAST_POINTS) - ROUNDING:
            ends = np.float64(before), np.float64(goal)
            shares.append(0.0 if now is None else float(share_of_way(np.float64(now), *ends)))
    return min(shares, default=0.0)


def rows(jury: Jury, case: Case, entrants: Sequence[Entrant], limit: float) -> list[Row]:
    """Return the table of a case at a limit of lost utility, highest score first (anchors included), no score last."""
    evidence = jury.evidence
    table = [
        _row(jury, Entrant(UNEDITED, ANCHOR, "none", ()), "", jury.original),
        _row(jury, Entrant(TWIN, ANCHOR, "the model before planting" if case.is_planted else DATA, ()), "", jury.twin),
    ]
    for entrant in (*entrants, *unregistered_entrants(case, entrants, evidence)):
        table.append(_standing(jury, entrant, case, evidence, limit))
    places = ranks(
        {row.name: jury.score(row.records) for row in table if row.group != ANCHOR and row.figures.get("score")}
    )
    ranked = [replace(row, rank=places.get(row.name)) for row in table]
    return sorted(ranked, key=lambda row: (bool(row.note), -row.score, row.name))


def unregistered_entrants(case: Case, entrants: Sequence[Entrant], evidence: Evidence) -> list[Entrant]:
    """Return entrants that are in no registry, from the records: users' methods and submissions."""
    bench = bench_of(case, evidence.seeds[0])
    known = {key_of(trial, bench) for entrant in entrants for trial in split_strengths(entrant)}
    labels = {t.label for entrant in entrants for t in entrant.trials if isinstance(t, (TrainingTrial, SubmittedTrial))}
    user_methods: dict[tuple[str, str], list[RecordedTrial]] = {}
    unregistered: list[Entrant] = []
    for key, record in evidence.by_key.items():
        method = record.get("method", {})
        if key in known or seed_of(record) != bench.seed:
            continue
        if record["kind"] == MEASURED and method["name"] not in labels:
            labels.add(name := method["name"])
            unregistered.append(
                Entrant(name, SUBMISSION, evidence.needs.get(name, NOT_SAID), (SubmittedTrial(name, ()),), tuned=False)
            )
        elif record["kind"] == UNLEARN and "code" in method:
            user_methods.setdefault((method["name"], method["code"]), []).append(RecordedTrial(method))
    versions = Counter(name for name, _ in user_methods)
    for (name, code), trials in user_methods.items():
        title = name if versions[name] == 1 else f"{name} ({code[:6]})"
        unregistered.append(Entrant(title, OWN, evidence.needs.get(name, NOT_SAID), tuple(trials)))
    return unregistered


def rows_left_out(earlier: Evidence, seeds: Iterable[int], attacks: Iterable[str]) -> list[str]:
    """Return a line per reason why a run leaves rows out of the tables: rows have all seeds and attacks, or no place.

    earlier: what the run adds to. seeds, attacks: those of the run.
    """
    made = {attack["attack"]["name"] for attack in earlier.attacks_on(earlier.unedited(earlier.seeds[0]))}
    there: dict[str, set] = {"seeds": {*earlier.seeds}, "attacks": made}
    asked: dict[str, set] = {"seeds": {*seeds}, "attacks": {*attacks}}
    lines = []
    if lacking := _as_flags({flag: there[flag] - asked[flag] for flag in there}):
        lines.append(f"its results also have {lacking}; new rows are in no table until they have, too")
    if new := _as_flags({flag: asked[flag] - there[flag] for flag in there}):
        lines.append(f"its results have no {new}; earlier rows are in no table until they have, too")
    return lines


def _as_flags(values: Mapping[str, set]) -> str:
    return " and ".join(f"--{flag} {' '.join(map(str, sorted(some)))}" for flag, some in values.items() if some)


def _standing(jury: Jury, entrant: Entrant, case: Case, evidence: Evidence, limit: float) -> Row:
    """Return an entrant's row: its chosen trial on every seed, or why it has none."""
    tried = [t for t in split_strengths(entrant) if key_of(t, bench_of(case, evidence.seeds[0])) in evidence.by_key]
    row = Row(entrant.name, entrant.group, entrant.needs, trials=len(tried))
    if not tried:
        return replace(row, note=NOT_RUN)
    trial = choose(entrant, case, evidence, limit)
    if trial is None:
        return replace(row, note=f"no trial {within(case, limit)}")
    by_seed = [evidence.by_key.get(key_of(trial, bench_of(case, seed))) for seed in evidence.seeds]
    setting = settings_of(trial)

    def found(record: Record) -> set[tuple | str]:
        judged = (column for column in jury.telling if evidence.rows(record, column) is not None)
        return {*judged, *(attack_key(attack) for attack in evidence.attacks_on(record))}

    if not all(record and found(record) >= found(original) for record, original in zip(by_seed, jury.original)):
        return replace(row, setting=setting, note=NOT_FINISHED)
    records = [record for record in by_seed if record is not None]
    row = _row(jury, entrant, setting, records, len(tried))
    if isinstance(trial, TrainingTrial):
        costs = [_training_cost(trial, bench_of(case, seed), evidence) for seed in evidence.seeds]
        row = replace(row, plain={**row.plain, **_means(costs, COST)})
    return row


def _row(jury: Jury, entrant: Entrant, setting: str, records: Sequence[Record], trials: int = 0) -> Row:
    parts = jury.parts(records)
    figures = {"score": Figure.of(harmonic(list(parts.values())))}
    figures |= {name: Figure.of(parts[name]) if name in parts else None for name in PARTS}
    figures |= {column: Figure.of(jury.figure(records, column)) for column in (*RAW, jury.utility)}
    plain = _means([record["results"] for record in records], PLAIN)
    if entrant.trials:  # other records have the cost of measuring
        plain |= _means([record["cost"] for record in records], COST)
    excess = {name: Figure.of(value) for name, value in jury.excess(records).items()}
    return Row(
        entrant.name, entrant.group, entrant.needs, setting, trials, figures, plain, excess, records=tuple(records)
    )


def _training_cost(trial: TrainingTrial, bench: Bench, evidence: Evidence) -> dict[str, Any]:
    """Return the cost of a trial's training from its record; for a fine-tuning, up to the trial's epoch."""
    record = evidence.by_key.get(run_key(training_identity(trial, bench)))
    if record is None:
        return {}
    seconds = {"seconds": sum(record["results"]["epoch_seconds"][: trial.epoch])} if trial.ft_data else {}
    return {**record["cost"], **seconds}


def averaged_under_attack(row: Row, evidence: Evidence) -> Attacked | None:
    """Return a row's model under attack, averaged over seeds; None if it was not attacked."""
    models = []
    for record in row.records:
        _, attacked = attacked_models([record, *evidence.attacks_on(record)], ATTACKED)
        models += attacked
    return averaged(models) if models else None


def _means(sections: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of each value over seeds; None if one of them lacks it."""
    return {name: over_all([section.get(name) for section in sections])[0] for name in names}
