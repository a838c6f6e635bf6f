"""Memories: sequences that share text reveal one another, so they are shown or measured together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress

import torch

from tinymem.data.dataset import Artifacts, MemorizationDataset

# Shorter runs are headings and names: at 10 tokens, 385 of 2000 rows of WikiText-2 form one group, at 16 only 17. The
# 505 sequences that Pythia-6.9B has memorized share no 12 tokens.
SHARED_TOKENS = 16


def memories(dataset: MemorizationDataset, artifacts: Artifacts) -> torch.Tensor:
    """Return the number of the memory that each artifact belongs to, int64 (A,).

    In real text, sequences that share SHARED_TOKENS consecutive tokens anywhere (or half a continuation, if that is
    fewer) are one memory. If the shared tokens are all equal, it takes half a continuation. Every generated sequence is
    a memory of its own: numbers of one task share long runs, and all continuations of a backdoor are alike.
    """
    if dataset.kind != "natural" or not len(artifacts):
        return torch.arange(len(artifacts))
    half = max(1, dataset.continuation // 2)
    return groups_sharing_tokens(artifacts.planted, min(half, SHARED_TOKENS), half)


def apart_from(dataset: MemorizationDataset, artifacts: Artifacts, seen: Artifacts) -> Artifacts:
    """Return the artifacts that are not in `seen` and, in real text, share no memory with one of its rows."""
    if not len(seen) or not len(artifacts):
        return artifacts
    if dataset.kind != "natural":
        return artifacts.select(~among(artifacts.planted, seen.planted))
    both = Artifacts(*(torch.cat(pair) for pair in zip(vars(seen).values(), vars(artifacts).values())))
    groups = memories(dataset, both)
    return artifacts.select(~torch.isin(groups[len(seen) :], groups[: len(seen)]))


def among(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return which rows (R, T) of token ids equal one of the others, token for token: bool (R,)."""
    known = {row.tobytes() for row in others.long().numpy()}
    return torch.tensor([row.tobytes() in known for row in rows.long().numpy()], dtype=torch.bool)


def groups_sharing_tokens(rows: torch.Tensor, width: int, repeated: int | None = None) -> torch.Tensor:
    """Return the group of each row, int64 (rows,).

    Rows that share `width` consecutive tokens are in one group, directly or through a chain of such rows. A group's
    number is that of its first row. Hashes and width: see `shares_tokens`.

    repeated: the width for runs of a single token (pads, a ruled line); None: `width`.
    """
    group = list(range(len(rows)))

    def first(row: int) -> int:
        while group[row] != row:
            group[row] = row = group[group[row]]
        return row

    owner: dict[int, int] = {}
    for size, same in ((width, False), (repeated or width, True)):
        factors, number = _factors(min(size, rows.shape[1])), 0
        for hashes, constant in zip(_window_hashes(rows, factors), _constant_windows(rows, len(factors))):
            for windows, chosen in zip(hashes.tolist(), (constant == same).tolist()):
                for window in set(compress(windows, chosen)):
                    low, high = sorted((first(owner.setdefault(window, number)), first(number)))
                    group[high] = low
                number += 1
    return torch.tensor([first(row) for row in range(len(rows))], dtype=torch.long)


def shares_tokens(rows: torch.Tensor, others: torch.Tensor, width: int) -> torch.Tensor:
    """Return which rows share `width` consecutive tokens with any of the others: bool (rows,).

    width is at most the length of a row. Rows are compared by 64-bit hashes; collisions among a few million rows are
    negligible.
    """
    factors = _factors(min(width, rows.shape[1], others.shape[1]))
    taken = torch.cat([hashes.flatten() for hashes in _window_hashes(others, factors)]).unique()
    found = [torch.isin(hashes, taken).any(1) for hashes in _window_hashes(rows, factors)]
    return torch.cat([*found, torch.empty(0, dtype=torch.bool)])


def _factors(width: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (width,), generator=torch.Generator().manual_seed(0))


def _window_hashes(rows: torch.Tensor, factors: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the hash (a wrapping sum) of every window of len(factors) tokens, (rows, windows), some rows at a time."""
    for some in rows.long().split(1024):
        yield (some.unfold(1, len(factors), 1) * factors).sum(-1)


def _constant_windows(rows: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    """Yield which windows of `width` tokens repeat a single token, bool (rows, windows), some rows at a time."""
    for some in rows.split(1024):
        windows = some.unfold(1, width, 1)
        yield (windows == windows[..., :1]).all(-1)
