"""The evidence of one model of the leaderboard: records and values per sequence, to recompute scores from.

records.jsonl.gz has every record. values.safetensors has, for judged runs, one value per sequence and column, under
DIGEST/COLUMN. examples.json has what the first seed's models write; needs.json has what authors say their methods need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import UserError, reading
from tinymem.inputs import check_value
from tinymem.metrics.evaluate import saved_values
from tinymem.metrics.examples import Decode, Example, kept_examples
from tinymem.metrics.metric import Values, mean
from tinymem.metrics.registry import METRICS
from tinymem.records.bundle import NAME, read_bundle, write_bundle
from tinymem.records.identity import ATTACK, FINGERPRINTS, NEVER_PLANTED, TWIN_ATTACK, UNEDITED, record_digest, run_key
from tinymem.records.record import read_values, record_path
from tinymem.records.sources import KEY as SOURCES
from tinymem.records.table import find_records, load_records

VALUES, EXAMPLES, NEEDS = "values.safetensors", "examples.json", "needs.json"
FORGETTING = ("percent_memorized", "percent_near_verbatim", "percent_extractable", "exact_match_share")
PRIVACY = ("auc_loss", "auc_zlib", "auc_min_k_plus")
UTILITY = ("mean_test_accuracy", "perplexity")
JUDGED, ATTACKED = "held_out", "shown"  # the split that judges forgetting; the split that attackers try to bring back
RECOVERED = f"percent_memorized_{ATTACKED}"
ROUNDING = 1e-4  # tolerance of float32 values against float64 results: perplexity differs most, by 1e-6
DAMAGED = "this file is damaged ({why}); make it again"
COLUMNS = (RECOVERED, *(f"{name}_{JUDGED}" for name in (*FORGETTING, *PRIVACY)), *UTILITY)


@dataclass(frozen=True)
class Evidence:
    """The records, values and examples of all seeds.

    values     by a record's digest: COLUMN[.weights|.groups] -> tensor (sequences,)
    examples   by a record's digest: what the model writes, as JSON
    needs      the data that users' methods and submissions need, by name, as stated by their authors
    """

    records: tuple[dict[str, Any], ...]
    values: Mapping[str, Mapping[str, torch.Tensor]]
    examples: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds whose unedited model and twin have been measured."""
        found = {kind: {seed_of(r) for r in self.records if r["kind"] == kind} for kind in (UNEDITED, NEVER_PLANTED)}
        return sorted(found[UNEDITED] & found[NEVER_PLANTED])

    @cached_property
    def by_key(self) -> dict[tuple, dict[str, Any]]:
        """Records by their `run_key`, without those of attacks."""
        return {run_key(record): record for record in self.records if not record.get("attack")}

    @cached_property
    def _on(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list] = {}
        for record in self.records:
            if record["kind"] in (ATTACK, TWIN_ATTACK):
                found.setdefault(record["parent"], []).append(record)
        return found

    def unedited(self, seed: int, kind: str = UNEDITED) -> dict[str, Any]:
        """Return the record of a seed's planted model, or of its twin."""
        return next(record for record in self.records if record["kind"] == kind and seed_of(record) == seed)

    def attacks_on(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the records of attacks on a model."""
        return self._on.get(record_digest(record), [])

    def rows(self, record: Mapping[str, Any], column: str) -> Values | None:
        """Return a column's values, one per sequence, in the column's unit; None if they were not stored."""
        return saved_values(self.values.get(record_digest(record), {}), column)


def gather(
    folders: Iterable[Path], decode: Decode, needs: Mapping[str, str], earlier: Evidence | None = None
) -> Evidence:
    """Return the evidence under folders of runs. decode: turns token ids into text. needs: as in `Evidence`.

    All values of attacked records are kept; of the attacks, only what they bring back. earlier: evidence to add to.
    Raise UserError if the runs of a seed are on different models, or if a record lacks the values of a judged figure or
    contradicts them.
    """
    by_folder = {folder: load_records(folder) for folder in folders}
    records = list(chain.from_iterable(by_folder.values()))
    parents = {record["parent"] for record in records if record.get("attack")}
    paths: dict[str, Path] = {}
    values: dict[str, Mapping[str, torch.Tensor]] = {}
    examples: dict[str, Any] = {}
    for folder, found in by_folder.items():
        own = (record_path(folder, record) for record in found)  # count more than the same run in a folder below
        paths |= {path.stem: path for path in (*find_records(folder), *(path for path in own if path.exists()))}
        for record in found:
            digest = record_digest(record)
            if columns := _needed_columns(record, digest in parents):
                tensors = read_values(paths.get(digest, record_path(folder, record)))
                if kept := {name: value for column in columns for name, value in _kept(tensors, column).items()}:
                    values[digest] = kept
                if not record.get("attack"):
                    examples[digest] = [_as_json(each) for each in kept_examples(tensors, decode)]
    if earlier is not None:
        records = list({record_digest(record): record for record in (*earlier.records, *records)}.values())
        new = {digest: _merged(earlier.values.get(digest, {}), some) for digest, some in values.items()}
        values = {**earlier.values, **new}
        examples = {**earlier.examples, **{digest: some for digest, some in examples.items() if some}}
        needs = {**earlier.needs, **needs}
    check_models(records)
    first = min((seed_of(record) for record in records), default=0)
    shown = {record_digest(record) for record in records if seed_of(record) == first}
    examples = {digest: some for digest, some in examples.items() if digest in shown}
    gathered = Evidence(tuple(records), values, examples, needs)
    if wrong := _wrong_figure(gathered):  # it could be written, but not read again
        record, why = wrong
        place = paths.get(record_digest(record), NAME)
        raise UserError(f"{place}: {why}; delete this file and run again, or give another --run_dir")
    return gathered


def _merged(earlier: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a record's tensors with new columns, each with all its own tensors, in place of earlier ones."""
    columns = {name.partition(".")[0] for name in new}
    return {name: value for name, value in earlier.items() if name.partition(".")[0] not in columns} | dict(new)


def restore(evidence: Evidence, folders: Mapping[int, Path]) -> None:
    """Write judged runs and the attacks on them as records into the folder of each seed, so that they are not repeated.

    Trials that were not judged are left out, since they lack the values per sequence that judging needs.
    """
    for record in evidence.records:
        folder = folders.get(seed_of(record))
        if folder is not None and (record.get("attack") or record_digest(record) in evidence.values):
            path = record_path(folder, record)
            if not path.exists():
                files.write_json(path, record)


def write(evidence: Evidence, folder: Path) -> None:
    """Write the evidence into a folder. Equal evidence gives equal bytes."""
    from safetensors.torch import save_file

    write_bundle(folder, map(_without_places, evidence.records))
    flat = {f"{digest}/{name}": value for digest, some in evidence.values.items() for name, value in some.items()}
    tensors = {name: flat[name].contiguous() for name in sorted(flat)}
    files.write_file(folder / VALUES, lambda path: save_file(tensors, path))
    files.write_json(folder / EXAMPLES, dict(sorted(evidence.examples.items())))
    write_needs(folder, evidence.needs)


def _without_places(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without files at absolute paths, which mean nothing to other readers."""
    environment = dict(record.get("environment", {}))
    kept = [source for source in environment.pop(SOURCES, ()) if not Path(source["path"]).is_absolute()]
    return {**record, "environment": {**environment, **({SOURCES: kept} if kept else {})}}


def read(folder: Path) -> Evidence:
    """Return the evidence in a folder. Raise UserError, naming the file, if one is missing or damaged."""
    from safetensors.torch import load_file

    records = read_bundle(folder / NAME)
    with reading(folder / VALUES, DAMAGED):
        flat = load_file(folder / VALUES)
    values: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        digest, _, column = name.partition("/")
        values.setdefault(digest, {})[column] = value
    found = Evidence(tuple(records), values, _read_examples(folder / EXAMPLES), read_needs(folder))
    with reading(folder / NAME, DAMAGED):
        if not found.seeds:
            raise ValueError("of no seed both the model and its twin")
    with reading(folder / VALUES, DAMAGED):
        if wrong := _wrong_figure(found):
            raise ValueError(wrong[1])
    return found


def _wrong_figure(evidence: Evidence) -> tuple[dict[str, Any], str] | None:
    """Return the first record that contradicts its values, or lacks those of a figure that scores need, and the reason.

    Scores come from values, but the choice from records. Trials that were not attacked need no values.
    """
    parents = {record["parent"] for record in evidence.records if record.get("attack")}
    for record in evidence.records:
        kept = evidence.values.get(digest := record_digest(record), {})
        needed = _needed_columns(record, bool(kept) or digest in parents)
        for column in COLUMNS:
            said = record["results"].get(column)
            if (values := saved_values(kept, column)) is None:
                if column in needed and said is not None:
                    return record, f"no values for {column} of record {digest}"
                continue
            summary = METRICS[column].summary if column in UTILITY else mean  # other columns hold `single_values`
            figure = summary(values)
            if figure is not None and not isfinite(figure):
                figure = None  # as in records, which have no infinity
            if figure != said and (figure is None or said is None or not isclose(figure, said, rel_tol=ROUNDING)):
                return record, f"{column} of record {digest} comes to {figure}, {NAME} says {said}"
    return None


def _needed_columns(record: Mapping[str, Any], is_judged: bool) -> tuple[str, ...]:
    """Return the columns whose values scores are computed from."""
    return (RECOVERED,) if record.get("attack") else COLUMNS if is_judged else ()


def _read_examples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what models write, by record digest."""
    found = check_value(files.read_json(path), dict[str, Any], "content", path)
    return {digest: check_value(some, list[dict[str, Any]], digest, path) for digest, some in found.items()}


def read_needs(folder: Path) -> dict[str, str]:
    """Return what authors say their methods need, by name; empty without such a file."""
    path = folder / NEEDS
    found = files.read_json(path) if path.exists() else {}
    return {name: check_value(text, str, name, path) for name, text in found.items()}


def write_needs(folder: Path, needs: Mapping[str, str]) -> None:
    """Write what `read_needs` returns, if there is anything."""
    if needs:
        files.write_json(folder / NEEDS, dict(sorted(needs.items())))


def single_values(values: Values, column: str) -> Values:
    """Return values whose plain mean is the column's result, such as 100 for a memorized sequence and 0 for another."""
    metric = METRICS[column.removesuffix(f"_{JUDGED}").removesuffix(f"_{ATTACKED}")]
    rows = [metric.summary(Values(values.sums[i : i + 1], values.weights[i : i + 1])) for i in range(len(values.sums))]
    known = torch.tensor([row is not None for row in rows], dtype=torch.float64)
    return Values(torch.tensor([row or 0.0 for row in rows], dtype=torch.float64), known)


def _kept(tensors: Mapping[str, torch.Tensor], column: str) -> dict[str, torch.Tensor]:
    """Return a column's tensors; for planted sequences as `single_values`, whose means are plain sums."""
    values = saved_values(tensors, column)
    if values is None:
        return {}
    if column in UTILITY:
        return {name: tensors[name] for name in (column, f"{column}.weights", f"{column}.groups") if name in tensors}
    single = single_values(values, column)
    found = {column: single.sums.float()}
    return found if single.weights.eq(1).all() else found | {f"{column}.weights": single.weights.to(torch.int8)}


def _as_json(example: Example) -> dict[str, Any]:
    written = example.written
    spans = [[span.text, span.differs] for span in written.spans]
    about = {"spans": spans, "first": written.first, "agreeing": written.agreeing, "length": written.length}
    return {"prompt": example.prompt, "planted": example.planted, "written": about}


def check_models(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError if the records of a seed are of different models, as when another machine has trained one."""
    found: dict[int, str] = {}
    for record in records:
        weights = record.get(FINGERPRINTS, {}).get("weights")
        if weights and found.setdefault(seed_of(record), weights) != weights:
            raise UserError(f"seed {seed_of(record)}: these runs and the earlier ones are on different models; give a "
                            "--run_dir and an --output_dir of your own")  # fmt: skip


def seed_of(record: Mapping[str, Any]) -> int:
    """Return the seed of a record's model: that of its data, or of the passages planted in it."""
    data = record["data"]
    return data["plant_seed"] if "plant_seed" in data else data["seed"]
