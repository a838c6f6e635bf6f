"""Write the model cards of edited models from the records of their runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinymem import files
from tinymem.cards import edited_card, write_card
from tinymem.localize.method import Method
from tinymem.localize.subject import Subject
from tinymem.records.identity import ATTACK, NEVER_PLANTED, TWIN_ATTACK, UNEDITED, UNLEARN, record_digest
from tinymem.records.table import load_records
from tinymem.training.checkpoint import SETTINGS, STATE, with_real_name


def original_name(arguments: argparse.Namespace) -> str:
    """Return the name on cards of the model given on the command line, without paths of this machine."""
    name = getattr(arguments, "model_name", None)
    if name is not None:
        return Path(name).resolve().name if Path(name).is_dir() else str(name)
    path = with_real_name(Path(arguments.model_path))
    return f"{path.parent.resolve().name}/{path.name}" if (path / STATE).exists() else path.name


def write_cards(subject: Subject, method: Method, records: Sequence[dict], first: int, original: str) -> None:
    """Write the model card of every saved edit of a method. It includes the attacks of earlier commands.

    records: those of this command; the method's begin at index `first`. original: the name of the original.
    """
    edits = [
        record for record in records[first:] if record["kind"] == UNLEARN and record["results"].get("model_folder")
    ]
    folders = {record_digest(record): subject.folder / record["results"]["model_folder"] for record in edits}
    if not any(folder.is_dir() for folder in folders.values()):
        return
    known = {record["kind"]: record for record in records[:first] if record["kind"] in (UNEDITED, NEVER_PLANTED)}
    by_digest = {record_digest(record): record for record in (*load_records(subject.folder), *records)}
    attacks = [record for record in by_digest.values() if record["kind"] in (ATTACK, TWIN_ATTACK)]
    task, shown = subject.task, subject.task.forget if subject.task.shown is None else subject.task.shown
    counts = {"shown to the method": len(shown), "held out": len(task.held_out), "to retain": len(task.retain)}
    for record in edits:
        folder = folders[record_digest(record)]
        if folder.is_dir():
            command = files.read_json(folder / SETTINGS).get("command", "")
            card = edited_card(
                record, method, original, known[UNEDITED], known.get(NEVER_PLANTED), attacks,
                counts=counts, command=command, tokenizer=subject.tokenizer is not None,
            )  # fmt: skip
            write_card(folder, card)
