"""Search any number of sequences for those that a model has memorized. An interrupted search can resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tinymem import files
from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.inputs import read_settings
from tinymem.metrics.memorization import memorized

SAVE_SECONDS = 20.0  # an interruption loses at most this much work


@dataclass(frozen=True)
class _Progress:
    """The content of the progress file: the search's key, rows done, rows found among them."""

    key: str
    done: int
    found: list[int]


def find_memorized(
    model,
    tokens: torch.Tensor,
    prompt_tokens: int,
    continuation: int,
    progress: Path,
    key: str,
    batch_size: int = 64,
    min_distinct: int = 1,
    on_batch: Callable[[int, int], None] = lambda done, found: None,
) -> torch.Tensor:
    """Return the numbers of (prompt_tokens, continuation) memorized rows, int64, in order; one forward pass per batch.

    tokens         (rows, T) token ids
    progress       progress file; removed at the end
    key            identifies model and tokens: progress under another key is ignored
    min_distinct   rows with fewer distinct tokens in the continuation are skipped: "0, 0, 0, 0 ..." needs no memory
    on_batch(rows done, rows found)    after every batch
    """
    done, found = _read_progress(progress, key)
    saved = time.monotonic()
    candidates = distinct_tokens(tokens[:, prompt_tokens : prompt_tokens + continuation]) >= min_distinct
    try:
        while done < len(tokens):
            rows = torch.arange(done, min(done + batch_size, len(tokens)))
            rows = rows[candidates[rows]]
            zeros = torch.zeros_like(rows)
            artifacts = Artifacts(tokens[rows], tokens[rows], zeros + prompt_tokens, zeros)
            found += rows[memorized(model, artifacts, continuation, batch_size)].tolist()
            done = min(done + batch_size, len(tokens))
            if time.monotonic() - saved > SAVE_SECONDS:
                files.write_json(progress, {"key": key, "done": done, "found": found})
                saved = time.monotonic()
            on_batch(done, len(found))
    except BaseException:
        files.write_json(progress, {"key": key, "done": done, "found": [row for row in found if row < done]})
        raise
    progress.unlink(missing_ok=True)
    return torch.tensor(found, dtype=torch.long)


def _read_progress(path: Path, key: str) -> tuple[int, list[int]]:
    if not path.exists():
        return 0, []
    state = read_settings(_Progress, files.read_json(path), path, whole=True)
    if any(not 0 <= row < state.done for row in state.found):
        raise UserError(f"{path}: found: rows that were not searched; delete it and run again")
    return (state.done, state.found) if state.key == key else (0, [])


def distinct_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Return the number of distinct tokens in each row: int64 (rows,)."""
    ordered = tokens.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
