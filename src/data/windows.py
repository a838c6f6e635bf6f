"""Windows of documents: the sequences of n + k tokens that a search tests, and the passages that its finds form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Windows:
    """Windows of `width` tokens that begin every `stride` tokens of each document; none spans two documents.

    stream      int32 (tokens,) the documents one after the other
    bounds      int64 (documents + 1,) the start of each document in the stream, and the end of the last one
    starts      int64 (windows,) the start of each window in the stream, ascending
    begin       ids before every window (<bos>), not counted in its width
    """

    stream: torch.Tensor
    bounds: torch.Tensor
    starts: torch.Tensor
    width: int
    begin: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return these windows, with the ids `begin` before each: int32 (numbers, begin + width)."""
        own = self.stream[self.starts[numbers, None] + torch.arange(self.width)]
        return torch.cat([torch.tensor(self.begin, dtype=own.dtype).expand(len(own), -1), own], 1)

    def documents(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the number of each window's document: int64 (numbers,)."""
        return torch.searchsorted(self.bounds, self.starts[numbers], right=True) - 1


def cut_windows(
    documents: Iterable[np.ndarray], width: int, stride: int, begin: tuple[int, ...] = (), most: int | None = None
) -> Windows:
    """Return the windows of these documents, each int32 (tokens,). most: stop after this many windows.

    A document with fewer than `width` tokens has no windows. Tokens after a document's last window are not tested.
    """
    parts, starts, bounds, count = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [0], 0
    for document in documents:
        starts.append(bounds[-1] + np.arange(0, len(document) - width + 1, stride))
        parts.append(document)
        bounds.append(bounds[-1] + len(document))
        count += len(starts[-1])
        if most is not None and count >= most:
            break
    stream = torch.from_numpy(np.concatenate(parts).astype(np.int32, copy=False))
    return Windows(stream, torch.tensor(bounds), torch.from_numpy(np.concatenate(starts)[:most]), width, begin)


@dataclass(frozen=True)
class Passage:
    """Overlapping or adjacent finds, merged.

    document   its name
    offset     tokens of the document before the passage
    length     tokens
    windows    number of finds in it
    text       its text; None without a tokenizer
    """

    document: str
    offset: int
    length: int
    windows: int
    text: str | None


def passages(
    windows: Windows,
    found: torch.Tensor,
    tested: int,
    names: Sequence[str],
    decode: Callable[[list[int]], str] | None,
) -> tuple[list[Passage], torch.Tensor]:
    """Return the passages that the windows `found` (ascending) form, and the finds that represent them, int64.

    A passage is represented by its first window and every later one that does not overlap the windows already taken, so
    that no part of a memory counts twice. tested: tokens of a window that the search tested. names: the documents'
    names.
    """
    made: list[Passage] = []
    chosen: list[int] = []
    starts, documents = windows.starts[found].tolist(), windows.documents(found).tolist()
    group = 0  # index of the current passage's first find
    free = -1  # where the next representative may begin
    for place, (number, start, document) in enumerate(zip(found.tolist(), starts, documents)):
        if place and (documents[place - 1] != document or start > starts[place - 1] + tested):
            made.append(_passage(windows, starts[group:place], documents[group], tested, names, decode))
            group, free = place, -1
        if start >= free:
            chosen.append(number)
            free = start + windows.width
    if starts:
        made.append(_passage(windows, starts[group:], documents[group], tested, names, decode))
    return made, torch.tensor(chosen, dtype=torch.long)


def _passage(windows: Windows, starts: list[int], document: int, tested: int, names, decode) -> Passage:
    first, end = starts[0], starts[-1] + tested
    text = None if decode is None else decode(windows.stream[first:end].tolist())
    return Passage(names[document], first - int(windows.bounds[document]), end - first, len(starts), text)
