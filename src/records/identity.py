"""What a run is: its kind, the record of the model that it was made from, and its settings in sections.

An identity is a nested dict {"kind": ..., "parent": ..., SECTION: {name: value}}; a record holds one, with results.
Two runs are the same when their sections are equal: never when those of one are among those of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinymem import files

FORMAT = 2
UNEDITED = "unedited"  # kind of the record of a model before any edit
NEVER_PLANTED = "never_planted"  # the same before memories were planted in it: a reference, not a rival of methods
TRAIN, FINETUNE, UNLEARN, ATTACK, MEASURED = "train", "finetune", "unlearn", "attack", "measured"
AS_PUBLISHED = "as_published"  # a slip of the study's code repeated
KINDS = (TRAIN, FINETUNE, UNEDITED, NEVER_PLANTED, UNLEARN, ATTACK, MEASURED, AS_PUBLISHED)
RIVALS = (UNEDITED, UNLEARN, ATTACK, MEASURED)  # kinds of runs that are compared with an unedited model
FINGERPRINTS = "fingerprints"  # what cannot be known before the model is there
SECTIONS = ("data", "model", "training", "forget", "method", "attack", FINGERPRINTS)

Record = Mapping[str, Any]  # or an identity: its part that names it


def identity_of(record: Record) -> dict[str, Any]:
    """Return all of a record that its digest is made of: format, kind, parent, and the sections that are not empty."""
    head = {"format": FORMAT, "kind": record["kind"], "parent": record.get("parent")}
    return head | sections_of(record)


def sections_of(record: Record, without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the sections of a record that are not empty, `without` left out, with values as they come back from JSON."""
    return {name: _as_json(record[name]) for name in SECTIONS if name not in without and record.get(name)}


def record_digest(record: Record) -> str:
    """Return 16 hexadecimal digits that name a record: of its identity, whatever came out."""
    return files.digest(identity_of(record))


def run_key(record: Record) -> tuple:
    """Return what can be known of a run before its model is there, to compare and look up.

    That is its kind and its sections but the fingerprints. Two keys are equal when all of it is.
    """
    sections = sections_of(record, (FINGERPRINTS,))
    return record["kind"], frozenset((name, _hashable(section)) for name, section in sections.items())


def is_run(record: Record, identity: Record) -> bool:
    """Return whether a record is of this kind with exactly these sections, whatever its fingerprints and parent."""
    return record["kind"] == identity["kind"] and run_key(record) == run_key(identity)


def _as_json(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section as it comes back from JSON: tuples as lists."""
    if any(isinstance(value, (tuple, list, dict)) for value in section.values()):
        return json.loads(json.dumps(dict(section)))
    return dict(section)


def _hashable(value: Any) -> Any:
    """A JSON value with the same equality."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(part)) for name, part in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
