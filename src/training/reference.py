"""The model before the edit, for the losses of an objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch

from tinymem.models.precision import autocast
from tinymem.training.step import Side

STORED_ROWS, STORED_ENTRIES = 4096, 2**24  # the largest set whose losses or logits are stored: takes seconds, 64 MB

Unedited = Callable[[], AbstractContextManager[Any]]


class Reference:
    """The model before the edit. Values that a loss needs are computed only once, in its first call.

    seed: the run's seed, for random numbers in a loss
    unedited: returns a context that yields the model before the edit; None: a copy is made if needed
    state: tensors that an objective keeps between steps. It creates them in the first call of its loss and updates them
    in place, only in `after_step`. They are saved with the training state.
    """

    def __init__(self, model, microbatch: int, precision: str, unedited: Unedited | None = None, seed: int = 0) -> None:
        self.seed = seed
        self._before, self._microbatch, self._precision = model, microbatch, precision
        self._unedited_context = unedited
        self._config = model.config.get_text_config()
        self._stored: dict[tuple[str, Side], torch.Tensor] = {}
        self._once: dict[str, torch.Tensor] = {}
        self.state: dict[str, torch.Tensor] = {}

    @cached_property
    def model(self):
        """A fixed copy without gradients, for losses that need more than the values below."""
        if self._unedited_context is None:
            return copy.deepcopy(self._unedited()).eval().requires_grad_(False)
        with self._unedited_context() as model:
            return copy.deepcopy(model).eval().requires_grad_(False)

    def row_sums(self, side: Side) -> torch.Tensor:
        """Return each row's summed loss, (R,), in nats. Stored for the whole set, so that no model copy is needed."""
        return self._values("row_sums", side, lambda model, part: part.row_sums(part.losses(model)), stored=True)

    def losses(self, side: Side) -> torch.Tensor:
        """Return the loss of every predicted token, (R, T - 1), in nats. Stored for a small set, else from the copy."""
        return self._values("losses", side, lambda model, part: part.losses(model), self._is_small(side, 1))

    def logits(self, side: Side) -> torch.Tensor:
        """Return the logits of every predicted token, (R, T - 1, vocabulary). Stored as `losses` are."""
        size = self._config.vocab_size
        return self._values("logits", side, lambda model, part: part.logits(model), self._is_small(side, size))

    def activations(self, side: Side, layer: int) -> torch.Tensor:
        """Return the outputs of block `layer`, (R, T - 1, width), as `Side.activations`. Stored as `losses` are."""
        small = self._is_small(side, self._config.hidden_size)
        return self._values(f"block {layer}", side, lambda model, part: part.activations(model, layer), small)

    def once(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return compute(), which is called only once, in the first call of the loss. It may use the methods above."""
        if name not in self._once:
            self._unedited()
            self._once[name] = compute()
        return self._once[name]

    def begin_edit(self) -> None:
        """Mark the start of the edit. Values that the loss has not requested yet are no longer available."""
        self._before = None

    def _values(self, name: str, side: Side, values: Callable, stored: bool) -> torch.Tensor:
        whole = _whole(side)
        if stored and (name, whole) not in self._stored:
            self._unedited()  # not too late
            with self._as_before() as model, torch.no_grad(), autocast(model, self._precision):
                parts = [part.to(model.device) for part in whole.split(self._microbatch)]
                self._stored[name, whole] = torch.cat([values(model, part) for part in parts])
        if stored:
            return self._stored[name, whole][side.ids]
        with self._as_before(kept=True) as model, torch.no_grad():
            return values(model, side)

    def _as_before(self, kept: bool = False) -> AbstractContextManager[Any]:
        """Return a context that yields the model before the edit. kept: also after the edit has begun."""
        if self._unedited_context is not None:
            return self._unedited_context()
        return nullcontext(self.model if kept else self._unedited())

    def _is_small(self, side: Side, depth: int) -> bool:
        whole = _whole(side)
        return len(whole) <= STORED_ROWS and whole.mask.numel() * depth <= STORED_ENTRIES

    def _unedited(self):
        if self._before is None:
            raise RuntimeError("a loss must request the same values of its reference in every call")
        return self._before


def _whole(side: Side) -> Side:
    """Return the set from which rows were selected, or the set itself."""
    return side if side.whole is None else side.whole
