"""A job: one command of an ordinary script, and what the records look like that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.records.finder import records_in


@dataclass(frozen=True)
class Job:
    """One command.

    name       readable and unique within its sweep
    group      its line in the final table
    words      script, relative to the repository's root, and flags
    folder     its records are in FOLDER/records
    settings   what the settings of its records contain, among others
    varies, values   a setting and flag of which one command takes several values, a record each; none: one record
    after      names of the jobs that must be done before
    nothing_to_do    settings of a record that says, with 0 % memorized, that this job has nothing to do
    whole_node       takes a cluster's node for itself instead of one of its GPUs
    """

    name: str
    group: str
    words: tuple[str, ...]
    folder: str
    settings: Mapping[str, Any]
    varies: str | None = None
    values: tuple[Any, ...] = (None,)
    after: tuple[str, ...] = ()
    nothing_to_do: Mapping[str, Any] | None = None
    whole_node: bool = False

    @property
    def digest(self) -> str:
        """Names what the job works on, whichever of its values are asked for."""
        return files.digest({"folder": str(Path(self.folder).absolute()), "settings": as_json(self.settings)})

    def command(self, values: list[Any]) -> list[str]:
        """Script and flags for some of the values."""
        return [*self.words] + ([f"--{self.varies}", *map(str, values)] if self.varies else [])


def missing(job: Job) -> list[Any]:
    """The values of a job that have no record yet, in the order given; [None] when its one record is missing."""
    records = records_in(job.folder)
    if not records:
        return list(job.values)
    if job.nothing_to_do is not None:
        unedited = as_json(job.nothing_to_do)
        for record in records:
            if unedited.items() <= record["settings"].items() and not record["results"]["percent_memorized_train"]:
                return []
    settings = as_json(job.settings)
    found = [record["settings"] for record in records if settings.items() <= record["settings"].items()]
    if job.varies is None:
        return [] if found else [None]
    done = [settings.get(job.varies) for settings in found]
    return [value for value in job.values if value not in done]


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a record: tuples as lists."""
    return json.loads(json.dumps(dict(settings)))
