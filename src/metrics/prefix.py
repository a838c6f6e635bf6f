"""Exact memorization after only the last tokens of the prompt: how much of it a memory needs."""

from __future__ import annotations

import logging
import re
from functools import lru_cache, partial

import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.metrics.memorization import exact
from tinymem.metrics.metric import COMPARED, PLANTED, Metric, no_values, percent
from tinymem.metrics.probe import Probe

logger = logging.getLogger(__name__)
NAME = re.compile(r"percent_memorized_prefix(\d+)")


def exact_after(probe: Probe, artifacts: Artifacts, length: int) -> torch.Tensor:
    """Return 1.0 where the planted continuation comes out after the prompt's last `length` tokens, float64 (A,).

    The tokens before them are cut off, so positions count from the first one left. NaN for a shorter prompt
    and where no token counts.
    """
    long_enough = (artifacts.prompt_end >= length).nonzero().flatten()
    if len(artifacts) and not len(long_enough):
        _tell_too_long(length, int(artifacts.prompt_end.max()))
    some = artifacts.select(long_enough)
    _, loss_mask = probe.targets(some)  # of the whole rows, whose ends are known
    right = exact(probe, _cut(some, length, probe.continuation), loss_mask=loss_mask)
    return no_values(artifacts).index_put((long_enough,), right)


@lru_cache
def _tell_too_long(length: int, longest: int) -> None:
    logger.warning("percent_memorized_prefix%d: no prompt has so many tokens; the longest has %d", length, longest)


def areas(probe: Probe, artifacts: Artifacts) -> torch.Tensor:
    """Return the mean of `exact_after` over 1, 2, 4, 8 ... tokens up to the prompt's length, float64 (A,)."""
    longest = int(artifacts.prompt_end.max()) if len(artifacts) else 0
    lengths = [2**power for power in range(longest.bit_length())]
    found = [exact_after(probe, artifacts, length) for length in lengths]
    return torch.stack(found).nanmean(0) if found else no_values(artifacts)


def _cut(artifacts: Artifacts, length: int, continuation: int) -> Artifacts:
    """Return rows of the last `length` tokens of each prompt and the `continuation` tokens after it.

    A row that ends earlier is padded, which changes nothing before its end. No row becomes longer than it was, so all
    fit the model's context.
    """
    start, width = artifacts.prompt_end - length, artifacts.planted.shape[1]
    places = (start[:, None] + torch.arange(min(length + continuation, width))).clamp(max=width - 1)
    planted, clean = (tokens.gather(1, places) for tokens in (artifacts.planted, artifacts.clean))
    return Artifacts(planted, clean, torch.full_like(start, length), artifacts.group)


@lru_cache
def variant(name: str) -> Metric | None:
    """Return percent_memorized_prefixM, the same object for the same name; None for any other name.

    Raise UserError for no tokens.
    """
    found = NAME.fullmatch(name)
    if not found:
        return None
    length = int(found[1])
    if length < 1:
        raise UserError(f"--metrics {name}: a prefix of {length} tokens; allowed: at least 1")
    return Metric(
        name, "%", "twin", PLANTED, ("argmax_matches", "prefixes"),
        f"sequences whose planted continuation comes out exactly after the prompt's last {length} tokens",
        partial(exact_after, length=length), percent, COMPARED, short=f"mem_prefix{length}",
    )  # fmt: skip


PREFIX_AREA = Metric(
    "prefix_area", "0 to 1", "twin", PLANTED, ("argmax_matches", "prefixes"),
    "exact memorization after the prompt's last 1, 2, 4, 8 ... tokens, mean over these lengths",
    areas, splits=COMPARED,
)  # fmt: skip
