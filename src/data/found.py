"""The finds of a search: of one worker, merged from several, and as files that other scripts read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.data.token_sets import TokenSet, write_token_set
from tinymem.inputs import read_settings


@dataclass(frozen=True)
class Found:
    """A finished search of one worker.

    key        identifies the search, the same for all of its workers
    documents  documents searched
    short      number of these with too few tokens for a window
    tokens     tokens in these documents
    windows    windows searched
    memorized  number of these that are memorized
    passages   fields of `tinymem.data.windows.Passage`
    rows       token ids of the windows that represent the passages, including <bos>
    """

    key: str
    documents: int
    short: int
    tokens: int
    windows: int
    memorized: int
    passages: list[dict[str, Any]]
    rows: list[list[int]]


def worker_file(output: Path, worker: int, workers: int) -> Path:
    """Return the file of one worker's finds, next to the output."""
    return output.with_name(f"{output.stem}.{worker}of{workers}.json")


def write_found(path: Path, found: Found) -> None:
    """Write the finds of one worker. Raise UserError if the path is not writable."""
    files.write_json(path, dataclasses.asdict(found))


def read_found(output: Path, workers: int, key: str) -> dict[int, Found]:
    """Return the finds of this search's finished workers, by number. Raise UserError for damaged files."""
    found = {}
    for worker in range(1, workers + 1):
        path = worker_file(output, worker, workers)
        if path.exists():
            found[worker] = read_settings(Found, files.read_json(path), path, whole=True)
    return {worker: each for worker, each in found.items() if each.key == key}


def merged(parts: Sequence[Found], documents: Sequence[str]) -> Found:
    """Merge the finds of several workers. documents: the names of all documents, which give the order of passages."""
    first, *others = parts
    for other in others:
        sums = {
            field.name: getattr(first, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(Found)
            if field.name != "key"
        }
        first = Found(key=first.key, **sums)
    place = {name: number for number, name in enumerate(documents)}
    return replace(first, passages=sorted(first.passages, key=lambda passage: place[passage["document"]]))


def publish(output: Path, found: Found, about: dict[str, Any]) -> Path:
    """Write the token set `output`, if anything was found, and next to it the passages, one JSON object a line.

    Return the file of passages. about: provenance of the token set. Raise UserError if a path is not writable.
    """
    lines = "".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in found.passages)
    passages = output.with_suffix(".jsonl")
    files.write_file(passages, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    if found.rows:
        rows = torch.tensor(found.rows, dtype=torch.int32).unique(dim=0)
        counts = {"rows": found.windows, "memorized": found.memorized, "documents": found.documents}
        write_token_set(output, TokenSet(rows, {**about, **counts}))
    return passages
