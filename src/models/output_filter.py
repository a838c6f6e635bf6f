"""An output filter: listed n-grams never leave the model, while its weights stay as they are.

Ippolito et al. 2023, "Preventing generation of verbatim memorization in language models gives a false sense of privacy"
(arXiv 2210.17546), section 4: whenever the next token would complete a listed n-gram, its logit is suppressed. Here the
n-grams are kept exactly, not in a Bloom filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tinymem.models.edit import Changes, Extent

SUPPRESSED = -1e4  # added to a logit: probability 0 in any precision, and still a finite number


@dataclass(frozen=True)
class OutputFilter:
    """An edit that suppresses every token that would complete one of the n-grams.

    ngrams    int64 (N, n), without repeats, such as `ngrams_of` returns
    """

    ngrams: torch.Tensor

    def apply(self, model, changes: Changes) -> None:
        changes.hook(model.register_forward_hook(_Hook(self.ngrams), with_kwargs=True))

    def extent(self, model) -> Extent:
        return Extent()  # no weight changes


def ngrams_of(rows: torch.Tensor, first: torch.Tensor, n: int, ignored: int | None = None) -> torch.Tensor:
    """Return the n-grams of token rows (rows, length) that end at position first[row] or later: int64 (N, n), sorted.

    ignored: the token of padding; n-grams with it are left out.
    """
    if n > rows.shape[1]:
        return torch.empty(0, n, dtype=torch.long)
    windows = rows.long().unfold(1, n, 1)
    wanted = torch.arange(n - 1, rows.shape[1]) >= first[:, None]
    if ignored is not None:
        wanted &= windows.ne(ignored).all(-1)
    return windows[wanted].unique(dim=0)


@contextmanager
def unfiltered(model) -> Iterator[None]:
    """Switch all output filters off within the block: whoever has the weights can use the model without them."""
    hooks = _hooks(model)
    for hook in hooks:
        hook.on = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.on = True


def is_filtered(model) -> bool:
    """Return whether an output filter is on; logits must then come from the model's own forward pass."""
    return any(hook.on for hook in _hooks(model))


def _hooks(model) -> list[_Hook]:
    hooks = model._forward_hooks.values() if isinstance(model, torch.nn.Module) else ()
    return [hook for hook in hooks if isinstance(hook, _Hook)]


class _Hook:
    """Changes the logits of a forward pass. Passes with a key-value cache continue the rows of the previous pass."""

    def __init__(self, ngrams: torch.Tensor) -> None:
        self.on = True
        self._ngrams = ngrams
        self._rows: torch.Tensor | None = None  # all tokens of the previous pass

    def __call__(self, model, inputs: tuple, named: dict[str, Any], output: Any) -> Any:
        tokens = named.get("input_ids", inputs[0] if inputs else None)
        if not self.on or tokens is None:  # embeddings as input: an attacker with the weights
            return None
        fresh = tokens.shape[1]
        if named.get("past_key_values") is not None and self._rows is not None:
            tokens = torch.cat([self._rows, tokens.to(self._rows.device)], 1)
        self._rows = tokens
        mask = named.get("attention_mask")
        starts = torch.zeros(len(tokens)) if mask is None else tokens.shape[1] - mask.sum(1)  # padding is on the left
        places = _places(named.get("logits_to_keep", 0), tokens.shape[1], fresh)
        indices = self._completions(tokens.long().cpu(), starts.cpu(), places)
        output.logits = output.logits.index_put(indices, output.logits.new_tensor(SUPPRESSED), accumulate=True)
        return output

    def _completions(self, tokens: torch.Tensor, starts: torch.Tensor, places: torch.Tensor) -> tuple:
        """Return the indices (row, column of places, token) of the tokens that would complete a listed n-gram."""
        prefixes, width = self._ngrams[:, :-1], self._ngrams.shape[1] - 1
        columns = (places >= width - 1).nonzero().flatten()
        rows = torch.arange(len(tokens)).repeat_interleave(len(columns))
        columns = columns.repeat(len(tokens))
        real = places[columns] - width + 1 >= starts[rows]
        rows, columns = rows[real], columns[real]
        if not len(rows) or not len(prefixes):
            return rows[:0], rows[:0], rows[:0]
        windows = tokens.unfold(1, width, 1)[rows, places[columns] - width + 1]
        _, groups = torch.cat([prefixes, windows]).unique(dim=0, return_inverse=True)  # equal rows get equal numbers
        listed, met = groups[: len(prefixes)], groups[len(prefixes) :]
        order = listed.argsort(stable=True)
        low, high = (torch.searchsorted(listed[order], met, right=right) for right in (False, True))
        count = high - low  # how many n-grams begin like each window
        which = torch.arange(len(met)).repeat_interleave(count)
        offset = torch.arange(len(which)) - (count.cumsum(0) - count)[which]
        return rows[which], columns[which], self._ngrams[order[low[which] + offset], -1]


def _places(keep: int | torch.Tensor, length: int, fresh: int) -> torch.Tensor:
    """Return the positions in a row that the logits belong to. fresh: the tokens of this pass, the last of the row."""
    every = torch.arange(length - fresh, length)
    if isinstance(keep, torch.Tensor):
        return every[keep.cpu()]
    return every[-keep:] if keep else every
