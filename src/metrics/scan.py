"""Search the windows of documents for those that a model has memorized. An interrupted search can resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tinymem import files
from tinymem.data.windows import Windows
from tinymem.errors import UserError
from tinymem.inputs import read_settings
from tinymem.models.losses import greedy_hits

SAVE_SECONDS = 20.0  # an interruption loses at most this much work, and a block
BLOCK = 16  # batches in a block: the few windows that pass the cheap tests of a block fill whole batches
FIRST_TOKENS = 3  # tested alone first: most text fails here, at little more than the cost of its prompt
PIECE = 1024  # tokens of a piece that is screened in one pass


@dataclass(frozen=True)
class _Progress:
    """The content of the progress file: the search's key, windows done, windows found among them."""

    key: str
    done: int
    found: list[int]


def find_memorized(
    model,
    windows: Windows,
    prompt_tokens: int,
    continuation: int,
    progress: Path,
    key: str,
    batch_size: int = 64,
    min_distinct: int = 1,
    screen: float = 0.0,
    on_block: Callable[[int, int], None] = lambda done, found: None,
) -> torch.Tensor:
    """Return the numbers of the (prompt_tokens, continuation) memorized windows, int64, in order.

    A window is memorized if the model, prompted with its <bos> and its first `prompt_tokens` tokens and nothing before
    them, gives the next `continuation` tokens greedily.

    progress       progress file; removed at the end
    key            identifies model and windows: progress under another key is ignored
    min_distinct   windows with fewer distinct tokens in the continuation are skipped: "0, 0, 0 ..." needs no memory
    screen         share of the continuation that must come out in one pass over a long piece of the document before
                   the window is tested; 0: every window is tested. See `screened`
    on_block(windows done, windows found)    after every block of BLOCK batches; before the first of a resumed search
    """
    done, found = _read_progress(progress, key)
    saved, first = time.monotonic(), len(windows.begin) + prompt_tokens
    if done:
        on_block(done, len(found))
    try:
        while done < len(windows):
            block = torch.arange(done, min(done + BLOCK * batch_size, len(windows)))
            if screen:
                block = screened(model, windows, block, prompt_tokens, continuation, screen, batch_size)
            rows = windows.rows(block)[:, : first + continuation]
            chosen = distinct_tokens(rows[:, first:]) >= min_distinct
            hits = memorized_windows(model, rows[chosen], first, batch_size)
            found += block[chosen][hits].tolist()
            done = min(done + BLOCK * batch_size, len(windows))
            if time.monotonic() - saved > SAVE_SECONDS:
                files.write_json(progress, {"key": key, "done": done, "found": found})
                saved = time.monotonic()
            on_block(done, len(found))
    except BaseException:
        files.write_json(progress, {"key": key, "done": done, "found": [row for row in found if row < done]})
        raise
    progress.unlink(missing_ok=True)
    return torch.tensor(found, dtype=torch.long)


def memorized_windows(model, rows: torch.Tensor, first: int, batch_size: int) -> torch.Tensor:
    """Return which rows (rows, T) the model continues exactly from their first `first` tokens: bool (rows,).

    The first FIRST_TOKENS tokens are tested alone, because a row that fails there needs no longer pass.
    """
    left = torch.arange(len(rows))
    for last in sorted({min(first + FIRST_TOKENS, rows.shape[1]), rows.shape[1]}):
        hits = [_all_hit(model, rows[some, :last], first) for some in left.split(batch_size) if len(some)]
        left = left[torch.cat([torch.empty(0, dtype=torch.bool), *hits])]
    flags = torch.zeros(len(rows), dtype=torch.bool)
    flags[left] = True
    return flags


def _all_hit(model, rows: torch.Tensor, first: int) -> torch.Tensor:
    with torch.inference_mode():
        return greedy_hits(model, rows, first, rows.shape[1]).all(1).cpu()


def screened(
    model, windows: Windows, numbers: torch.Tensor, prompt_tokens: int, continuation: int, share: float, batch_size: int
) -> torch.Tensor:
    """Return which of these consecutive windows may be memorized: their numbers, int64, in order.

    One teacher-forced pass over a piece of up to PIECE tokens tells whether each token is the arg-max, so it serves all
    windows of the piece. A window passes if a `share` of its continuation is. In the piece, prompts have more text
    before them and other positions: a window that is memorized only without that text may be missed.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PIECE
    size = max(min(PIECE, longest - len(windows.begin)), prompt_tokens + continuation)
    starts, documents = windows.starts[numbers], windows.documents(numbers)
    pieces = []
    for document in documents.unique().tolist():
        own = starts[documents == document]
        low, end = int(own[0]), int(own[-1]) + prompt_tokens + continuation
        pieces += [(at, min(at + size, end)) for at in range(low, end - prompt_tokens, size - prompt_tokens)]
    low, high = pieces[0][0], pieces[-1][1]
    hits = torch.zeros(high - low + 1, dtype=torch.int64)  # entry i + 1 is about token low + i, for running sums
    for some in _batches(pieces, max(1, batch_size * (prompt_tokens + continuation) // size)):
        matches = _piece_matches(model, windows, some, prompt_tokens)
        for (start, end), row in zip(some, matches):
            inside = slice(start + prompt_tokens - low + 1, end - low + 1)
            hits[inside] = row[: end - start - prompt_tokens]
    sums = hits.cumsum(0)
    after = starts + prompt_tokens - low
    return numbers[sums[after + continuation] - sums[after] >= share * continuation]


def _piece_matches(model, windows: Windows, pieces: list[tuple[int, int]], prompt_tokens: int) -> torch.Tensor:
    """Return whether each token after the first `prompt_tokens` of a piece is the arg-max: int64 (pieces, longest)."""
    begin = len(windows.begin)
    rows = torch.zeros(len(pieces), begin + max(end - start for start, end in pieces), dtype=torch.int32)
    rows[:, :begin] = torch.tensor(windows.begin, dtype=torch.int32)
    for row, (start, end) in zip(rows, pieces):
        row[begin : begin + end - start] = windows.stream[start:end]  # what follows has no effect before it
    with torch.inference_mode():
        return greedy_hits(model, rows, begin + prompt_tokens, rows.shape[1]).long().cpu()


def _batches(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _read_progress(path: Path, key: str) -> tuple[int, list[int]]:
    if not path.exists():
        return 0, []
    state = read_settings(_Progress, files.read_json(path), path, whole=True)
    if any(not 0 <= row < state.done for row in state.found):
        raise UserError(f"{path}: found: windows that were not searched; delete it and run again")
    return (state.done, state.found) if state.key == key else (0, [])


def distinct_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Return the number of distinct tokens in each row: int64 (rows,)."""
    ordered = tokens.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
