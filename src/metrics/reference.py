"""What a model is compared with: itself before the edit, and its never-planted twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinymem.data.dataset import MemorizationDataset, evenly_spaced
from tinymem.metrics.metric import TEXTS
from tinymem.metrics.probe import Probe
from tinymem.models.losses import logits_of

ROWS = 256  # of typical text: the mean over so many says enough
KEPT = 2**26  # log-probabilities of the model before the edit that are kept, 256 MB
TOP = 10  # tokens that nDCG looks at


@dataclass(frozen=True)
class Drift:
    """How far predictions have moved from those before the edit: sums over positions, each float64 (rows,).

    kl          KL(before || after), nats
    flips       positions whose arg-max is another one
    gains       nDCG@10: the ten tokens that are likeliest now, graded by their ranks before
    positions   how many were looked at
    """

    kl: torch.Tensor
    flips: torch.Tensor
    gains: torch.Tensor
    positions: torch.Tensor


class References:
    """The model before the edit, as far as metrics need it, and its twin, opened when a metric first asks for it.

    texts        "retain" and "unseen" (`metric.TEXTS`): at most ROWS rows (rows, T) of each, evenly spaced
    open_twin    opens the never-planted twin; None: there is none
    """

    def __init__(self, dataset: MemorizationDataset, retain: torch.Tensor, open_twin: Callable[[], Any] | None = None):
        unseen = torch.cat([*dataset.tests.values()])
        self.texts = {name: rows[evenly_spaced(len(rows), ROWS)] for name, rows in zip(TEXTS, (retain, unseen))}
        self.open_twin = open_twin
        self._dataset = dataset
        self._twin: Probe | None = None
        self._before: dict[str, torch.Tensor] = {}

    def twin(self, batch_size: int) -> Probe | None:
        """Return a probe of the twin, always the same one, so that nothing is computed twice."""
        if self._twin is None and self.open_twin is not None:
            model = self.open_twin().eval()
            self._twin = Probe.of(model, self._dataset, batch_size, needs=("log_probabilities",))
        return self._twin

    def prepare(self, model, batch_size: int) -> None:
        """Keep what the model predicts before it is edited. Does nothing when called again."""
        for name, tokens in self.texts.items() if not self._before else ():
            self._before[name] = torch.cat(list(self._log_probabilities(model, tokens, batch_size)))

    def drift(self, model, name: str, batch_size: int) -> Drift:
        """Compare the model with what was kept. Raise KeyError before `prepare`."""
        tokens = self.texts[name]
        kept = self._before[name].split(batch_size)
        parts = [_drift(*pair) for pair in zip(kept, self._log_probabilities(model, tokens, batch_size))]
        real = self._real(tokens)
        kl, flips, gains = ((torch.cat(values).double() * real).sum(1) for values in zip(*parts))
        return Drift(kl, flips, gains, real.double().sum(1))

    def _places(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the positions whose predictions are compared, as many as can be kept, evenly spaced."""
        positions, size = tokens.shape[1] - 1, max(len(tokens), 1) * self._dataset.vocabulary_size
        return evenly_spaced(positions, max(1, KEPT // len(self.texts) // size))

    def _real(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return which of those positions predict a token and no pad, bool (rows, places)."""
        return tokens[:, self._places(tokens) + 1] != self._dataset.pad

    def _log_probabilities(self, model, tokens: torch.Tensor, batch_size: int):
        """Yield log p at the positions of some rows after the other, float32 (rows, places, vocabulary), on the CPU."""
        places = self._places(tokens)
        for rows in tokens.split(batch_size) if len(tokens) else ():
            yield logits_of(model, rows, places).float().log_softmax(-1).cpu()


def _drift(before: torch.Tensor, now: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return KL, flips and nDCG of log-probabilities (rows, places, vocabulary): each (rows, places)."""
    kl = torch.nn.functional.kl_div(now, before, log_target=True, reduction="none").sum(-1).clamp(min=0)
    count = min(TOP, now.shape[-1])
    wanted, found = before.topk(count, dim=-1).indices, now.topk(count, dim=-1).indices
    grades = torch.arange(count, 0, -1, dtype=torch.float32)
    discounts = 1 / torch.log2(torch.arange(2, count + 2, dtype=torch.float32))
    relevance = torch.where(found[..., :, None] == wanted[..., None, :], grades, 0.0).sum(-1)
    gains = (relevance * discounts).sum(-1) / (grades * discounts).sum()
    return kl, (wanted[..., 0] != found[..., 0]).float(), gains
