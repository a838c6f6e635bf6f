"""A job: one command of an ordinary script, and the identity of the records it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymem import files, scripts
from tinymem.localize.task import TRAIN
from tinymem.records.finder import keyed_records_in
from tinymem.records.identity import ATTACK, MEASURED, TWIN_ATTACK, UNEDITED, UNLEARN, run_key, sections_of

UNDER_ATTACK = {UNEDITED: (ATTACK, TWIN_ATTACK), UNLEARN: (ATTACK,), MEASURED: (ATTACK,)}


@dataclass(frozen=True)
class Job:
    """One command of a sweep.

    name       readable and unique within its sweep
    group      its line in the final table
    words      script, relative to the repository's root, and flags
    folder     its records are in FOLDER/records
    identity   identity of its records: kind and all sections except fingerprints, without the varying setting
    varies, values   the strength: a setting in the section `method` that is also a flag. One command accepts several
               values and writes one record per value; without values, one record
    after      names of the jobs that must be done first
    nothing_to_do    identity of a record; if it says 0 % memorized where the job looks for memories, the job has
                     nothing to do
    whole_node       needs a whole cluster node instead of one of its GPUs
    attacks          the sections `attack` of the records that each of its records must have beside it
    """

    name: str
    group: str
    words: tuple[str, ...]
    folder: str
    identity: Mapping[str, Any]
    varies: str | None = None
    values: tuple[Any, ...] = (None,)
    after: tuple[str, ...] = ()
    nothing_to_do: Mapping[str, Any] | None = None
    whole_node: bool = False
    attacks: tuple[Mapping[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the job's work, which does not depend on the requested values."""
        return files.digest(
            {"folder": str(Path(self.folder).absolute()), "kind": self.identity["kind"], **sections_of(self.identity)}
        )

    def record_identity(self, value: Any = None) -> dict[str, Any]:
        """Return the kind and sections, without fingerprints, of the record of one value."""
        if self.varies is None:
            return dict(self.identity)
        return {**self.identity, "method": {**self.identity["method"], self.varies: value}}

    def command(self, values: list[Any]) -> list[str]:
        """Return the words after `python` for these values."""
        return [*scripts.words(self.words[0]), *self.words[1:]] + (
            [f"--{self.varies}", *map(str, values)] if self.varies else []
        )


def missing(job: Job) -> list[Any]:
    """Return the values of a job that lack a record, its own or an attack's, in the given order.

    Return [None] if the only record is missing.
    """
    found = keyed_records_in(job.folder)
    if job.nothing_to_do is not None:
        unedited, sought = run_key(job.nothing_to_do), job.nothing_to_do.get("forget", {}).get("forget", TRAIN)
        column = f"percent_memorized_{sought}"  # missing from records with other metrics
        if any(key == unedited and record["results"].get(column) == 0 for record, key in found):
            return []
    done = {key for _, key in found}
    return [value for value in job.values if not all(run_key(one) in done for one in _records_of(job, value))]


def _records_of(job: Job, value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the identities of all records of one value: its own and one per attack, including those on the twin."""
    identity = job.record_identity(value)
    yield identity
    for kind in UNDER_ATTACK.get(identity["kind"], ()):
        yield from ({**identity, "kind": kind, "attack": attack} for attack in job.attacks)
