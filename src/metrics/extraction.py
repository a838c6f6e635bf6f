"""(n, p)-discoverable extraction: how many samples it takes to draw a planted sequence (Hayes et al., 2410.19482).

A row is extractable if n samples hold it with probability p or more: 1 - (1 - p_z)^n >= p. p_z is the probability of
drawing its continuation once, and one teacher-forced pass gives it. Values are log p_z, so the share at any other n and
p, and whole curves, follow from what is kept beside a record.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from tinymem.data.dataset import Artifacts
from tinymem.errors import UserError
from tinymem.metrics.metric import COMPARED, PLANTED, Metric, Values, median
from tinymem.metrics.probe import TOP_K, Probe

logger = logging.getLogger(__name__)

SAMPLES, CHANCE = 100, 0.5  # default n and p
NEVER = math.log(1e-300)  # log p_z below which no number of samples is enough
NAME = re.compile(r"percent_extractable_n(\d+)_p(\d+)(?:_k(\d+))?(?:_t(\d+))?")


def log_probabilities(probe: Probe, artifacts: Artifacts, top_k: int = TOP_K, temperature: float = 1.0) -> Values:
    """Return log p_z of each row, float64: the sum of log q over the tokens that count, after the clean prompt.

    q is the probability with which sampling from the `top_k` likeliest tokens draws the planted one; -infinity if it is
    not among them. A row has no value where no token counts.
    """
    _tell_plain_sampling(top_k, getattr(getattr(probe.model, "config", None), "vocab_size", top_k))
    _, loss_mask = probe.targets(artifacts)
    log_q = probe.sampled(artifacts, top_k, temperature).double().masked_fill(~loss_mask, 0.0)
    return Values(log_q.sum(1).clamp(max=0.0), loss_mask.any(1).double())


@lru_cache
def _tell_plain_sampling(top_k: int, vocabulary: int) -> None:
    if top_k > vocabulary and top_k != TOP_K:  # the default was not asked for, and number models have few tokens
        logger.warning(
            "extraction by sampling: top-k %d is above the vocabulary of %d: plain sampling", top_k, vocabulary
        )


def needed(log_p: torch.Tensor, p: float) -> torch.Tensor:
    """Return the smallest n at which 1 - (1 - p_z)^n >= p, float64; infinity where p_z is below 1e-300.

    log_p: log p_z, of any shape.
    """
    log_p = log_p.double()
    # log(1 - p_z), by whichever of two formulas keeps its digits (Maechler 2012, "Accurately computing
    # log(1 - exp(-a))").
    log_miss = torch.where(log_p > -math.log(2), torch.log(-torch.expm1(log_p)), torch.log1p(-torch.exp(log_p)))
    count = (math.log1p(-p) / log_miss * (1 - 1e-12)).ceil().clamp(min=1)  # an exact 2 must not become 3 by rounding
    return count.masked_fill(log_p < NEVER, torch.inf)


def share(log_p: torch.Tensor, n: int, p: float) -> float | None:
    """Return the share of rows (rows,) that n samples hold with probability p or more; None for no rows."""
    return (needed(log_p, p) <= n).double().mean().item() if len(log_p) else None


def curve(log_p: torch.Tensor, ns: Iterable[int], p: float = CHANCE) -> list[float | None]:
    """Return the share at each n."""
    return [share(log_p, n, p) for n in ns]


def percent_extractable(values: Values, n: int = SAMPLES, p: float = CHANCE) -> float | None:
    """Return the share in percent, from log p_z."""
    found = share(values.sums[values.weights > 0], n, p)
    return None if found is None else 100.0 * found


def median_samples(values: Values) -> float | None:
    """Return the median over rows of the n needed for p = 0.5; infinity where half of the rows never come out."""
    kept = values.weights > 0
    return median(Values(needed(values.sums, CHANCE).masked_fill(~kept, 0.0), values.weights))


@dataclass(frozen=True)
class Setting:
    """n samples, of which at least one is right with probability p percent; top k; temperature in hundredths."""

    n: int
    p: int
    k: int = TOP_K
    t: int = 100

    def check(self, name: str) -> None:
        """Raise UserError for a number out of range."""
        for letter, allowed, good in (
            ("n", "at least 1", self.n >= 1),
            ("p", "1 to 99 (percent)", 1 <= self.p <= 99),
            ("k", "at least 1", self.k >= 1),
            ("t", "at least 1 (hundredths)", self.t >= 1),
        ):
            if not good:
                raise UserError(f"--metrics {name}: {letter} is {getattr(self, letter)}; allowed: {allowed}")


@lru_cache
def variant(name: str) -> Metric | None:
    """Return percent_extractable_nN_pP_kK_tT (k and t may be left out), the same object for the same name.

    None for any other name. Raise UserError for a number out of range.
    """
    found = NAME.fullmatch(name)
    if not found:
        return None
    setting = Setting(**{letter: int(text) for letter, text in zip("npkt", found.groups()) if text is not None})
    setting.check(name)
    return Metric(
        name, "%", "twin", PLANTED, ("distribution",),
        f"sequences that {setting.n} samples hold with probability {setting.p / 100:g} "
        f"(top {setting.k}, temperature {setting.t / 100:g})",
        partial(log_probabilities, top_k=setting.k, temperature=setting.t / 100),
        partial(percent_extractable, n=setting.n, p=setting.p / 100),
        COMPARED, short=name.removeprefix("percent_"),
    )  # fmt: skip


PERCENT_EXTRACTABLE = Metric(
    "percent_extractable", "%", "twin", PLANTED, ("distribution",),
    f"sequences that {SAMPLES} samples hold with probability {CHANCE} (top {TOP_K}, temperature 1)",
    log_probabilities, percent_extractable, COMPARED, short="extractable",
)  # fmt: skip
MEDIAN_N = Metric(
    "median_n", "samples", "twin", PLANTED, ("distribution",),
    f"median number of samples that hold the sequence with probability {CHANCE}; empty where half never come out",
    log_probabilities, median_samples, COMPARED, known_when="low",
)  # fmt: skip
