"""Estimates of a method's duration: the passes of its plan times the seconds of one pass on the real model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from tinymem.localize.learning import backward, frozen, mean_weights
from tinymem.localize.method import Method
from tinymem.localize.task import UnlearningTask
from tinymem.models.adapter import find_mlps
from tinymem.planning.memory import Shape, shape_of
from tinymem.planning.plan import FAILURES, Sizes, first_steps, passes
from tinymem.records.cost import gpus_in_use

LONG = 60.0  # seconds above which the user is warned
OFTEN = 4  # most passes over a batch that a step is expected to make
WARM = 1.0  # seconds: a first pass that takes longer is not timed again


@dataclass(frozen=True)
class Clock:
    """Estimate durations of methods on one model and task by timing a pass of the size that the method uses.

    Estimates are rough: they ignore work other than passes, and early stops.
    """

    model: Any
    task: UnlearningTask
    _known: dict[tuple[str, int], float] = field(default_factory=dict)  # seconds by kind of pass and its sequences

    def seconds(self, method: Method, hp: Any) -> float:
        """Return the seconds of a method over all strengths. Raise RuntimeError for a model that cannot be planned."""
        first = first_steps(method, self._shape, self._sizes, hp)
        forward, backward = passes(method, self._shape, self._sizes, hp, first)
        rows = round(fmean(first[0].forward)) if first and first[0].forward else self.task.microbatch
        alone = max(0, forward - backward)
        return (alone * self._forward(rows) if alone else 0.0) + (backward * self._both(rows) if backward else 0.0)

    def warning(self, method: Method, hp: Any) -> str | None:
        """Return a warning such as "zero_out: about 40 h" for a method that takes more than a minute, else None."""
        if not method.passes and self._bound(method, hp) <= LONG:  # true of most methods on most models: no plan needed
            return None
        try:
            seconds = self.seconds(method, hp)
        except FAILURES:
            return None
        return f"{method.name}: about {duration(seconds)}" if seconds > LONG else None

    def _bound(self, method: Method, hp: Any) -> float:
        """Return the seconds if each step makes OFTEN passes over its batch (without batches: over all sequences)."""
        hp = method.resolve(hp, self.model.num_parameters())
        rows = getattr(hp, "batch_size", None) or len(self.task.forget) + len(self.task.retain)
        return OFTEN * method.steps(self.model, self.task, hp) * self._sizes.passes(rows) * self._both(rows)

    @cached_property
    def _shape(self) -> Shape:
        return shape_of(self.model.config, self.model.dtype, self.model.device.type)

    @cached_property
    def _sizes(self) -> Sizes:
        task = self.task
        (forget, length), prompt = task.forget.planted.shape, int(task.forget.prompt_end.min())
        return Sizes(forget, len(task.retain), length, prompt, task.microbatch, task.gradient_checkpointing)

    def _forward(self, rows: int) -> float:
        """Return the seconds of a forward pass of this many sequences, at most a microbatch."""

        def work() -> None:
            self.task.mean_loss(self.model, self._tokens(rows))

        with frozen(self.model):
            return self._timed("forward", rows, work)

    def _both(self, rows: int) -> float:
        """Return the seconds of a forward and a backward pass of this many sequences, at most a microbatch."""
        tokens = self._tokens(rows)
        weights = mean_weights(self.task, tokens)
        first = find_mlps(self.model)[0].inputs[0].parameter  # a full backward pass that stores few gradients
        with frozen(self.model, [first]):
            return self._timed("both", rows, lambda: backward(self.model, self.task, tokens, weights))

    def _timed(self, what: str, rows: int, work: Callable[[], Any]) -> float:
        key = (what, min(rows, self.task.microbatch))
        if key not in self._known:
            self._known[key] = seconds_of(work)
        return self._known[key]

    def _tokens(self, rows: int) -> torch.Tensor:
        planted = self.task.forget.planted
        return planted[torch.arange(min(rows, self.task.microbatch)) % len(planted)]


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds of one call, including GPU work. A first call warms up; if it takes long, it counts."""
    seconds = 2 * WARM
    for _ in range(2):
        _finish()
        start = time.perf_counter()
        work()
        _finish()
        seconds = time.perf_counter() - start
        if seconds > WARM:
            break
    return seconds


def _finish() -> None:
    for gpu in gpus_in_use():
        torch.cuda.synchronize(gpu)


def duration(seconds: float) -> str:
    """Return seconds in readable units: 40 s, 3 min, 2.5 h, 4 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
