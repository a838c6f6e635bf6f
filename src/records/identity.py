"""The identity of a run: its kind, its parent (the record of the model it starts from), and its settings.

An identity is a nested dict {"kind": ..., "parent": ..., SECTION: {name: value}}; a record is an identity with results.
Two runs are the same if their sections are equal; a subset is not enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinymem import files

FORMAT = 2
UNEDITED = "unedited"  # kind of the record of a model before any edit
NEVER_PLANTED = "never_planted"  # record of a model before planting: a reference, not compared with methods
TRAIN, FINETUNE, UNLEARN, ATTACK, MEASURED = "train", "finetune", "unlearn", "attack", "measured"
TWIN_ATTACK = "attack_never_planted"  # an attack on the model before planting, the baseline of other attacks
AS_PUBLISHED = "as_published"  # repeats a mistake of the study's code
KINDS = (TRAIN, FINETUNE, UNEDITED, NEVER_PLANTED, UNLEARN, ATTACK, MEASURED, TWIN_ATTACK, AS_PUBLISHED)
RIVALS = (UNEDITED, UNLEARN, MEASURED)  # kinds of runs that are compared with one another
FINGERPRINTS = "fingerprints"  # the section that is unknown until the model exists
TWIN_MODEL = "twin_model"  # in `model`: the twin that was named for a model of another tool
PLANTED_MODEL = "planted_model"  # in `training`: the folder of a model with planted passages, also a fingerprint
SECTIONS = ("data", "model", "training", "forget", "method", "attack", FINGERPRINTS)

Record = Mapping[str, Any]  # or an identity, the part of a record that names it


def identity_of(record: Record) -> dict[str, Any]:
    """Return the part of a record that its digest covers: format, kind, parent, and the sections that are not empty."""
    head = {"format": FORMAT, "kind": record["kind"], "parent": record.get("parent")}
    return head | sections_of(record)


def sections_of(record: Record, without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the non-empty sections of a record except `without`, with values as read from JSON."""
    return {name: _as_json(record[name]) for name in SECTIONS if name not in without and record.get(name)}


def record_digest(record: Record) -> str:
    """Return 16 hexadecimal digits that name a record. They depend on its identity, not on its results."""
    return files.digest(identity_of(record))


def run_key(record: Record) -> tuple:
    """Return a hashable key of what is known of a run before its model exists.

    It holds the kind and all sections, without fingerprints (including those of weights that were edited elsewhere and
    of a model with planted passages). Keys are equal only if all of these are.
    """
    sections = sections_of(record, (FINGERPRINTS,))
    for section, print_ in (("method", "weights"), ("training", PLANTED_MODEL)):
        if print_ in sections.get(section, {}):
            sections[section] = {name: value for name, value in sections[section].items() if name != print_}
    return record["kind"], frozenset((name, _hashable(section)) for name, section in sections.items())


def is_run(record: Record, identity: Record) -> bool:
    """Return whether a record has this kind and exactly these sections, with any fingerprints and parent."""
    return record["kind"] == identity["kind"] and run_key(record) == run_key(identity)


def _as_json(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section as read from JSON: tuples become lists."""
    if any(isinstance(value, (tuple, list, dict)) for value in section.values()):
        return json.loads(json.dumps(dict(section)))
    return dict(section)


def _hashable(value: Any) -> Any:
    """Return a hashable value with the equality of this JSON value."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(part)) for name, part in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
