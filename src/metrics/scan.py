"""Looks through any number of sequences for those that a model has memorized. Interrupted, it goes on where it was."""

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

SAVE_SECONDS = 20.0  # a kill loses at most this much work


@dataclass(frozen=True)
class _Progress:
    """What the progress file holds: of which search, rows done, rows found among them."""

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
    """The rows that are (prompt_tokens, continuation) memorized, int64 row numbers in order; one forward pass a batch.

    tokens         (rows, T) token ids
    progress       file that keeps what was done; removed at the end
    key            names model and tokens: progress made under another key is not gone on with
    min_distinct   rows with fewer different tokens in the continuation are passed over: "0, 0, 0, 0 ..." needs no memory
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
        raise UserError(f"{path}: found: rows that it has not looked at; delete it and run again")
    return (state.done, state.found) if state.key == key else (0, [])


def distinct_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """How many different tokens each row has: int64 (rows,)."""
    ordered = tokens.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
