"""The result of a search: of one worker, merged from several, and as files that other scripts read."""

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
class SearchResult:
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
    """Return the file of one worker's result, next to the output."""
    return output.with_name(f"{output.stem}.{worker}of{workers}.json")


def passages_file(output: Path) -> Path:
    """Return the file of passages, next to the output."""
    return output.with_suffix(".jsonl")


def write_result(path: Path, result: SearchResult) -> None:
    """Write the result of one worker. Raise UserError if the path is not writable."""
    files.write_json(path, dataclasses.asdict(result))


def read_results(output: Path, workers: int, key: str) -> dict[int, SearchResult]:
    """Return the results of this search's finished workers, by number. Raise UserError for damaged files."""
    results = {}
    for worker in range(1, workers + 1):
        path = worker_file(output, worker, workers)
        if path.exists():
            results[worker] = read_settings(SearchResult, files.read_json(path), path, whole=True)
    return {worker: result for worker, result in results.items() if result.key == key}


def merge_results(results: Sequence[SearchResult], documents: Sequence[str]) -> SearchResult:
    """Merge the results of several workers. documents: the names of all documents, which give the order of passages."""
    total, *remaining = results
    for result in remaining:
        sums = {
            field.name: getattr(total, field.name) + getattr(result, field.name)
            for field in dataclasses.fields(SearchResult)
            if field.name != "key"
        }
        total = SearchResult(key=total.key, **sums)
    order = {name: number for number, name in enumerate(documents)}
    return replace(total, passages=sorted(total.passages, key=lambda passage: order[passage["document"]]))


def publish(output: Path, result: SearchResult, about: dict[str, Any]) -> Path:
    """Write the token set `output`, if anything was found, and next to it the passages, one JSON object a line.

    Return the file of passages. about: provenance of the token set. Raise UserError if a path is not writable.
    """
    lines = "".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in result.passages)
    passages = passages_file(output)
    files.write_file(passages, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    if result.rows:
        rows = torch.tensor(result.rows, dtype=torch.int32).unique(dim=0)
        counts = {"rows": result.windows, "memorized": result.memorized, "documents": result.documents}
        write_token_set(output, TokenSet(rows, {**about, **counts}))
    return passages
