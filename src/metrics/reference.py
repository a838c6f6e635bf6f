"""What a model is compared with: itself before the edit, and its never-planted twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tinymem.data.dataset import MemorizationDataset, evenly_spaced
from tinymem.metrics.metric import TEXTS
from tinymem.metrics.probe import OnRows, Probe, silent
from tinymem.models.losses import logits_of

ROWS = 256  # of typical text: enough for their mean
KEPT = 2**26  # log-probabilities of the model before the edit that are kept, 256 MB
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill 0 .. 1 evenly, however many there are
TOP = 10  # tokens that nDCG looks at
Rows = Callable[[int, int], object]  # rows done, rows in total


@dataclass(frozen=True)
class Drift:
    """How far predictions have moved from those before the edit: sums over positions, each float64 (rows,).

    kl          KL(before || after), nats
    flips       positions whose arg-max differs
    gains       nDCG@10: the ten tokens that are likeliest now, graded by their ranks before
    positions   how many were looked at
    """

    kl: torch.Tensor
    flips: torch.Tensor
    gains: torch.Tensor
    positions: torch.Tensor


class Predictions:
    """What a model predicts on some text: log-probabilities at as many positions of each row as can be kept.

    tokens: (rows, T). pad: the token id that is not predicted; None: there is none. on_rows(done, total): called at
    the start and after every batch, here and below.
    """

    def __init__(
        self, model, tokens: torch.Tensor, batch_size: int, pad: int | None = None, on_rows: Rows = lambda *rows: None
    ):
        vocabulary, positions = model.config.get_text_config().vocab_size, tokens.shape[1] - 1
        self._tokens, self._batch_size = tokens, batch_size
        self._places = spread(len(tokens), positions, max(1, KEPT // 2 // (max(len(tokens), 1) * vocabulary)))
        targets = tokens.gather(1, self._places + 1)
        self._real = torch.ones_like(targets, dtype=torch.bool) if pad is None else targets != pad
        self._before = list(self._log_probabilities(model, on_rows))

    def compared(self, model, on_rows: Rows = lambda *rows: None) -> Drift:
        """Compare a model's predictions with these."""
        parts = [_drift(*pair) for pair in zip(self._before, self._log_probabilities(model, on_rows))]
        empty = torch.zeros(self._real.shape)
        kl, flips, gains = (
            (torch.cat([*values, empty[:0]]).double() * self._real).sum(1)
            for values in (zip(*parts) if parts else [()] * 3)
        )
        return Drift(kl, flips, gains, self._real.double().sum(1))

    def mean_kl(self, model) -> float:
        """Return KL(these || the model's), in nats per token."""
        found = self.compared(model)
        return (found.kl.sum() / found.positions.sum().clamp(min=1)).item()

    def _log_probabilities(self, model, on_rows: Rows) -> Iterator[torch.Tensor]:
        """Yield log p, float32 (rows, places, vocabulary), some rows at a time, on the CPU."""
        on_rows(done := 0, len(self._tokens))
        batches = zip(self._tokens.split(self._batch_size), self._places.split(self._batch_size))
        for rows, places in batches if len(self._tokens) else ():
            found = logits_of(model, rows, places).float().log_softmax(-1).cpu()
            on_rows(done := done + len(rows), len(self._tokens))
            yield found


class References:
    """What metrics need of the model before the edit, and its twin, both opened when a metric first asks for them.

    texts           "retain" and "unseen" (`metric.TEXTS`): at most ROWS rows (rows, T) of each, evenly spaced
    open_twin       opens the never-planted twin; None: there is none
    open_original   opens the model before the edit once more; None: it cannot be
    """

    def __init__(
        self,
        dataset: MemorizationDataset,
        retain: torch.Tensor,
        open_twin: Callable[[], Any] | None = None,
        open_original: Callable[[], Any] | None = None,
    ):
        unseen = torch.cat([*dataset.tests.values()])
        self.texts = {name: rows[evenly_spaced(len(rows), ROWS)] for name, rows in zip(TEXTS, (retain, unseen))}
        self.open_twin, self.open_original = open_twin, open_original
        self._dataset = dataset
        self._twin: Probe | None = None
        self._original: Probe | None = None
        self._before: dict[str, Predictions] = {}

    def twin(self, batch_size: int) -> Probe | None:
        """Return a probe of the twin, always the same, so nothing is computed twice."""
        if self._twin is None and self.open_twin is not None:
            self._twin = self._opened(self.open_twin, batch_size)
        return self._twin

    def original(self, batch_size: int) -> Probe | None:
        """Return a probe of the model before the edit, always the same; its weights never change."""
        if self._original is None and self.open_original is not None:
            self._original = self._opened(self.open_original, batch_size)
        return self._original

    def _opened(self, open_model: Callable[[], Any], batch_size: int) -> Probe:
        return Probe.of(open_model().eval(), self._dataset, batch_size, needs=("log_probabilities",))

    def prepare(self, model, batch_size: int, on_rows: OnRows = silent) -> None:
        """Keep what the model predicts before it is edited. Does nothing when called again."""
        for name, tokens in self.texts.items() if not self._before else ():
            tell = partial(on_rows, f"predictions on {name} text")
            self._before[name] = Predictions(model, tokens, batch_size, self._dataset.pad, tell)

    def drift(self, model, name: str, on_rows: Rows = lambda *rows: None) -> Drift:
        """Compare the model with what was kept. Raise KeyError before `prepare`."""
        return self._before[name].compared(model, on_rows)


def spread(rows: int, positions: int, most: int) -> torch.Tensor:
    """Return at most `most` positions of each row, in order: int64 (rows, min(positions, most)).

    Each row is cut into that many parts, with one position from each, at a point of the part that differs from row to
    row. Thus even a single position per row covers all positions of the text.
    """
    count = min(positions, most)
    points = (GOLDEN * torch.arange(1, rows + 1, dtype=torch.float64) % 1)[:, None]
    return ((torch.arange(count) + points) * (positions / max(count, 1))).long()


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
