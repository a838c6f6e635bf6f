"""A leaderboard's evidence written by hand: four held-out sequences a seed, and what each model does with them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinymem.leaderboard import evidence
from tinymem.leaderboard.bench import bench_of
from tinymem.leaderboard.cases import Case
from tinymem.leaderboard.entrants import entrants
from tinymem.leaderboard.protocol import split_strengths, trial_identity
from tinymem.records.identity import NEVER_PLANTED, TWIN_ATTACK, UNEDITED, record_digest


@dataclass(frozen=True)
class Model:
    """What a model does on one seed.

    exact      of four held-out sequences, how many come out
    shown      the same of four shown ones
    utility    accuracy or perplexity
    recovered  of the shown ones, how many come out after quantization
    """

    exact: int
    shown: int
    utility: float
    recovered: int
    seconds: float = 2.0
    peak_gb: float = 1.0


UNEDITED_MODEL, TWIN_MODEL = Model(4, 4, 0.9, 4), Model(0, 0, 0.8, 1)


def identities(case: Case, seed: int) -> dict[tuple[str, int], dict[str, Any]]:
    """The identity of every record of a seed, by the name of its model and the number of its trial."""
    bench = bench_of(case, seed)
    found = {(kind, 0): {"kind": kind, **bench.shared_sections} for kind in (UNEDITED, NEVER_PLANTED)}
    every = entrants([], case)
    trials = (((each.name, number), trial) for each in every for number, trial in enumerate(split_strengths(each)))
    return found | {name: trial_identity(trial, bench) for name, trial in trials}


def write_board(folder: Path, case: Case, models: Mapping[tuple[str, int], Sequence[Model]], more: Any = ()) -> Path:
    """Writes FOLDER/CASE. models: by name and number of the trial, one per seed. more: further (identity, Model)."""
    pairs = list(more)
    for seed in range(len(models[UNEDITED, 0])):
        known = identities(case, seed)
        pairs += [(known[name], some[seed]) for name, some in models.items()]
    records, values = [], {}
    for record, kept in (each for pair in pairs for each in recorded(case, *pair)):
        records.append(record)
        values[record_digest(record)] = kept
    case.write(folder / case.name)
    evidence.write(evidence.Evidence(tuple(records), values, {}), folder / case.name)
    return folder


def recorded(case: Case, identity: Mapping[str, Any], model: Model) -> Iterator[tuple[dict, dict]]:
    """The record of a model and that of the attack on it, each with its values."""
    column = case.utility.column
    held_out, shown, back = (percents(count) for count in (model.exact, model.shown, model.recovered))
    results = {column: model.utility, evidence.RECOVERED: shown.mean().item()}
    results |= {f"percent_memorized_{split}": held_out.mean().item() for split in ("held_out", "validation")}
    kept = {"percent_memorized_held_out": held_out, evidence.RECOVERED: shown}
    utility = torch.tensor([model.utility] * 2)
    kept[column] = utility.log() if case.settings.data.is_text else utility
    about = {"format": 2, "cost": {"seconds": model.seconds, "peak_memory_gb": model.peak_gb}, "environment": {}}
    record = {"parent": None, **about, **identity, "results": results}
    yield record, kept
    if not identity.get("attack"):
        kind = TWIN_ATTACK if identity["kind"] == NEVER_PLANTED else "attack"
        attack = {**record, "kind": kind, "parent": record_digest(record), "attack": {"name": "quantize", "bits": 4}}
        yield attack | {"results": {evidence.RECOVERED: back.mean().item()}}, {evidence.RECOVERED: back}


def percents(count: int) -> torch.Tensor:
    return torch.tensor([100.0] * count + [0.0] * (4 - count))
